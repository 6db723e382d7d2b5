"""Which files of INPUT are what: shards in order, params.json, tokenizer, licence."""

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.storage import Entry, Storage, join, opened, read_range

_NUMBERED = re.compile(r"consolidated\.(\d+)\.(?:pth|pt)")
_SINGLE = re.compile(r"consolidated\.(?:pth|pt)")
_TORCHTUNE = re.compile(r"meta_model_(\d+)\.pt")
_RANK_FOLDER = re.compile(r"consolidated\.(\d+)")
_RANK_PART = re.compile(r"consolidated-(\d+)-of-(\d+)\.(?:pth|pt)")
LEGAL_NAMES = r"(?i:(LICENSE|USE_POLICY)(\.txt|\.md)?)"
"""Pattern of the names that a licence's text has."""
_LEGAL = re.compile(LEGAL_NAMES)
_OF_META = (re.compile(rb"\bmeta\b", re.IGNORECASE), re.compile(rb"llama", re.IGNORECASE))
_LEGAL_HEAD_BYTES = 1 << 16
_FP8_SCALES = re.compile(r"fp8_scales_\d+\.pt")
_ADAPTER = re.compile(r"adapter_(model|config)\..*|.*lora.*\.(pt|pth|bin)", re.IGNORECASE)

PARAMS_NAME = "params.json"
TOKENIZER_NAME = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """One model-parallel rank: usually one file, on the hub sometimes a folder of parts."""

    number: int
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """Show it in messages."""
        return posixpath.basename(self.paths[0])


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """All files of one checkpoint, as paths in the storage."""

    folder: str
    shards: tuple[ShardFiles, ...]
    params: str
    tokenizer: str | None
    legal: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What lies near and was left alone, and why."""


def find_files(storage: Storage, source: str, tokenizer: str | None = None) -> SourceFiles:
    """Find a checkpoint's files in a folder (or its ``original/``), or beside a single file.

    The tokenizer and the licence may lie in the parent folder, as Llama 1 and 2 have them.
    Raises InputError with what was found where that is not one whole set of shards.
    """
    entry = storage.find(source)
    if entry is None:
        raise InputError(f"{source}: no such file or folder")
    if entry.is_folder:
        folder, shards = _shards_of_tree(storage, source)
    else:
        folder, shards = _shards_of_file(storage, source)
    near = (folder, _parent(storage, folder))
    params = _first(storage, near[:1], PARAMS_NAME)
    if params is None:
        raise InputError(
            f"{folder}: no {PARAMS_NAME} beside the shards; copy it from Meta's download of this model"
        )
    if tokenizer is not None:
        found = storage.find(tokenizer)
        if found is not None and found.is_folder:
            tokenizer = join(tokenizer, TOKENIZER_NAME)
        if storage.find(tokenizer) is None:
            raise InputError(f"{tokenizer}: no such file (given as the tokenizer)")
    else:
        tokenizer = _first(storage, near, TOKENIZER_NAME)
    return SourceFiles(folder, shards, params, tokenizer, *_find_legal(storage, *near))


def find_tokenizer(storage: Storage, source: str) -> str:
    """Find the tokenizer of a folder (or its ``original/`` or parent), or take the file itself."""
    entry = storage.find(source)
    if entry is not None and not entry.is_folder:
        return source
    found = _first(storage, (source, join(source, "original"), _parent(storage, source)), TOKENIZER_NAME)
    if found is None:
        raise InputError(f"{source}: no {TOKENIZER_NAME} here, in original/ or in the parent folder")
    return found


def _parent(storage: Storage, folder: str) -> str:
    return posixpath.dirname(storage.real_path(folder))


def _first(storage: Storage, folders: Iterable[str], name: str) -> str | None:
    for folder in folders:
        entry = storage.find(join(folder, name))
        if entry is not None and not entry.is_folder:
            return join(folder, name)
    return None


def _find_legal(storage: Storage, folder: str, parent: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the model's licence and policy; and notes on those nearby that may be somebody else's.

    What lies beside the shards is the model's, and so is what lies beside ``original/``. Any other
    parent may be a project of its own, with a licence of its own.
    """
    found = {name: join(folder, name) for name in _legal_names(storage, folder)}
    notes = []
    for name in _legal_names(storage, parent):
        path = join(parent, name)
        if name in found:
            continue
        if posixpath.basename(storage.real_path(folder)) == "original" or _is_of_meta(storage, path):
            found[name] = path
        else:
            notes.append(
                f"{path}: not copied, it does not read like Meta's; put the model's own beside the shards"
            )
    return tuple(found[name] for name in sorted(found)), tuple(notes)


def _legal_names(storage: Storage, folder: str) -> list[str]:
    entries = storage.list_folder(folder)
    return [entry.name for entry in entries if _LEGAL.fullmatch(entry.name) and not entry.is_folder]


def _is_of_meta(storage: Storage, path: str) -> bool:
    """Whether a text speaks of Meta and Llama, as all of Meta's licences and policies do."""
    try:
        with opened(storage, path) as reader:
            text = read_range(reader, 0, min(reader.size_bytes, _LEGAL_HEAD_BYTES))
    except (OSError, InputError):  # nobody asked for it
        return False
    return all(word.search(text) for word in _OF_META)


def _shards_of_tree(storage: Storage, source: str) -> tuple[str, tuple[ShardFiles, ...]]:
    """Look in the folder, then in ``original/``; several candidates below are only named."""
    original = join(source, "original")
    for folder in (source, original):
        shards = _shards_of_folder(storage, folder)
        if shards:
            return folder, shards
    below = [
        join(folder, entry.name)
        for folder in (source, original)
        for entry in storage.list_folder(folder)
        if entry.is_folder and _holds_shards(storage, join(folder, entry.name))
    ]
    if len(below) == 1:
        shards = _shards_of_folder(storage, below[0])
        if shards:
            return below[0], shards
    if below:
        raise InputError(f"{source}: several checkpoints below it; give one of them: {', '.join(below)}")
    raise InputError(f"{source}: no consolidated.*.pth here or in original/; {_what_else(storage, source)}")


def _holds_shards(storage: Storage, folder: str) -> bool:
    return any(
        _NUMBERED.fullmatch(entry.name) or _SINGLE.fullmatch(entry.name) or _is_rank_folder(entry)
        for entry in storage.list_folder(folder)
    )


def _what_else(storage: Storage, folder: str) -> str:
    names = [entry.name for entry in storage.list_folder(folder)]
    if any(name.endswith(".safetensors") for name in names):
        return "it holds safetensors files: already in Transformers' format"
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"it holds {', '.join(names[:8])}{more}"


def _shards_of_file(storage: Storage, path: str) -> tuple[str, tuple[ShardFiles, ...]]:
    """Take a file as the whole model, unless its name says that it is one shard of several."""
    folder, name = posixpath.split(path)
    folder = folder or "."
    if _NUMBERED.fullmatch(name):
        return folder, _shards_of_folder(storage, folder)
    return folder, (ShardFiles(0, (path,)),)


def _is_rank_folder(entry: Entry) -> bool:
    return entry.is_folder and _RANK_FOLDER.fullmatch(entry.name) is not None


def _shards_of_folder(storage: Storage, folder: str) -> tuple[ShardFiles, ...]:
    """Find the shards directly in a folder, in numeric order; empty where there is none."""
    entries = storage.list_folder(folder)
    files = [entry.name for entry in entries if not entry.is_folder]
    _refuse_foreign(folder, files)
    numbered = [
        ShardFiles(int(match[1]), (join(folder, match[0]),))
        for match in map(_NUMBERED.fullmatch, files)
        if match
    ]
    numbered += [
        ShardFiles(int(entry.name.rpartition(".")[2]), _rank_parts(storage, join(folder, entry.name)))
        for entry in entries
        if _is_rank_folder(entry)
    ]
    single = [name for name in files if _SINGLE.fullmatch(name)]
    torchtune = [name for name in files if _TORCHTUNE.fullmatch(name)]
    if numbered and single:
        raise InputError(
            f"{folder}: both {single[0]} and {numbered[0].name}; remove the one that is not the model's"
        )
    if numbered:
        return _in_order(folder, numbered)
    if len(single or torchtune) > 1:
        raise InputError(
            f"{folder}: {', '.join(single or torchtune)}: several whole models; give the path of the one to convert"
        )
    return tuple(ShardFiles(0, (join(folder, name),)) for name in single or torchtune)


def _refuse_foreign(folder: str, names: Iterable[str]) -> None:
    for name in names:
        if _FP8_SCALES.fullmatch(name):
            raise InputError(
                f"{join(folder, name)}: an FP8-quantized checkpoint; convert the bf16 one instead"
            )
        if _ADAPTER.fullmatch(name):
            raise InputError(f"{join(folder, name)}: a LoRA adapter lies here; merge it into the model first")


def _rank_parts(storage: Storage, folder: str) -> tuple[str, ...]:
    """Files of a rank that was cut into several, in their order."""
    found = {}
    totals = set()
    for entry in storage.list_folder(folder):
        match = _RANK_PART.fullmatch(entry.name)
        if match and not entry.is_folder:
            found[int(match[1])] = join(folder, entry.name)
            totals.add(int(match[2]))
    numbers = sorted(found)
    total = max(totals, default=0)
    if len(totals) != 1 or numbers not in (list(range(total)), list(range(1, total + 1))):
        raise InputError(
            f"{folder}: parts {_listing(numbers)} of {_listing(sorted(totals))}; expected consolidated-*-of-N.pth, all N of them"
        )
    return tuple(found[number] for number in numbers)


def _in_order(folder: str, shards: list[ShardFiles]) -> tuple[ShardFiles, ...]:
    """Sort by number, not by name, and prove that no number is missing or there twice."""
    findings = []
    by_number: dict[int, ShardFiles] = {}
    for shard in shards:
        twin = by_number.setdefault(shard.number, shard)
        if twin is not shard:
            findings.append(f"{folder}: shard {shard.number} is there twice: {twin.name} and {shard.name}")
    missing = sorted(set(range(max(by_number) + 1)) - set(by_number))
    if missing:
        findings.append(
            f"{folder}: shards {_listing(sorted(by_number))} found, {_listing(missing)} missing; "
            "download the missing files"
        )
    if findings:
        raise InputError.of(findings)
    return tuple(by_number[number] for number in sorted(by_number))


def _listing(numbers: list[int]) -> str:
    return ", ".join(f"{number:02d}" for number in numbers) or "none"
