"""What else in a model folder would be loaded with the model, or in its place.

Source: what ``from_pretrained`` of models and tokenizers of transformers 4.45 to 5.23 looks for in
a local folder. It takes ``model.safetensors`` before an index, and either before
``pytorch_model.bin``; an adapter beside the model is put into it; engines that serve models take
whatever weights they find. Meta's code loads every ``*.pth``.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping

from distconv.errors import InputError, OutputError
from distconv.formats.meta.legal import is_legal
from distconv.formats.written import read_object
from distconv.output.receipt import read_receipt
from distconv.output.targets import (
    JOURNAL_NAME,
    RECEIPT_NAME,
    TARGETS,
    TRANSFORMERS,
    Target,
)
from distconv.storage.base import Entry, Storage, join, read_small

SMALL_FILE_BYTES = 64 << 20
"""No file beside the chunks is larger."""

_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack)(\.index\.json)?|adapter_config\.json", re.IGNORECASE
)


def holds_weights(entry: Entry) -> bool:
    """Whether a name is one under which weights are found, an adapter's included."""
    return not entry.is_folder and _WEIGHTS.fullmatch(entry.name) is not None


def holds_settings(entry: Entry, target: Target) -> bool:
    """Whether a name is one that says how a target's model, or its tokenizer, is to be made."""
    return re.fullmatch(target.folders if entry.is_folder else target.settings, entry.name) is not None


def is_loaded(entry: Entry, target: Target) -> bool:
    """Whether a target's loader may read what has this name."""
    return holds_weights(entry) or holds_settings(entry, target)


def find_detours(
    storage: Storage, output: str, target: Target, *, recorded: bool
) -> tuple[list[str], list[str]]:
    """Tell of what config and tokenizer config name that would be loaded in place of the model.

    Gives findings, and notes on what others write beside models that the installed Transformers knows itself.
    """
    findings, notes = [], []
    for name in target.detours:
        path = join(output, name)
        if storage.find(path) is not None:
            try:
                found = read_object(storage, path)
            except OutputError as error:
                findings.append(str(error))
                continue
            for key in target.list_detours(name, found):
                if key == _CODE and not recorded:
                    notes.append(f"{path}: has {key}; the code that it names is never run here")
                else:
                    findings.append(
                        f"{path}: has {key}, which no conversion writes and which changes what is loaded"
                    )
    return findings, notes


_CODE = "auto_map"


def digest_file(storage: Storage, path: str) -> str:
    """Give the SHA-256 of a small file; InputError where it is none."""
    return hashlib.sha256(read_small(storage, path, SMALL_FILE_BYTES)).hexdigest()


def find_obstacles(
    storage: Storage,
    output: str,
    chunks: Collection[str],
    files: Mapping[str, bytes],
    source_digests: Collection[str],
    *,
    overwrite: bool,
    target: Target = TRANSFORMERS,
) -> Iterator[str]:
    """Tell of all in OUTPUT that a conversion may not replace, and with which it would not be whole.

    ``files`` stand beside the chunks; copies of INPUT's files, by their SHA-256, may stand there too.
    What ``overwrite`` removes is in nobody's way.
    """
    written = {*chunks, *files, RECEIPT_NAME, JOURNAL_NAME}
    recorded = read_recorded(storage, output)
    replaced = find_replaced(storage, output, target)
    for entry in storage.list_folder(output):
        path = join(output, entry.name)
        if entry.name in written:
            if entry.is_folder:
                yield f"{path}: a folder, where a file will be written; move it away"
            elif is_legal(entry.name) and not _is_one_of(
                storage, path, {recorded.get(entry.name), hashlib.sha256(files[entry.name]).hexdigest()}
            ):
                yield f"{path}: not the one that belongs to this model; move it away"
        elif overwrite and not entry.is_folder and any(old.is_model_file(entry.name) for old in replaced):
            continue
        elif is_loaded(entry, target) and not is_copy(storage, output, entry, target, source_digests):
            yield f"{path}: not of this model, and may be loaded in its place; move it away"


def read_recorded(storage: Storage, output: str) -> Mapping[str, str]:
    """Give the SHA-256 of all files that OUTPUT's receipt names; none where there is no good one."""
    if RECEIPT_NAME not in storage.list_names(output):
        return {}
    try:
        return read_receipt(storage, join(output, RECEIPT_NAME)).files
    except OutputError:
        return {}


def find_replaced(storage: Storage, output: str, target: Target) -> tuple[Target, ...]:
    """Give the targets whose files ``--overwrite`` removes: the new one, and that of the conversion in OUTPUT."""
    return target, *(found for found in _find_recorded(storage, output) if found is not target)


def _find_recorded(storage: Storage, output: str) -> Iterator[Target]:
    """Give the targets that journal and receipt name; those of older versions name none."""
    there = storage.list_names(output)
    for name in (JOURNAL_NAME, RECEIPT_NAME):
        if name not in there:
            continue
        try:
            identity = read_object(storage, join(output, name)).get("conversion")
        except (OutputError, FileNotFoundError):
            continue
        word = identity.get("to", TRANSFORMERS.name) if isinstance(identity, dict) else None
        if isinstance(word, str) and word in TARGETS:
            yield TARGETS[word]


def find_legal(storage: Storage, output: str) -> frozenset[str]:
    """Give the names of the licence's texts that came with the model which OUTPUT's receipt records."""
    recorded = read_recorded(storage, output)
    found = (name for name in recorded if is_legal(name) and storage.find(join(output, name)) is not None)
    return frozenset(name for name in found if _is_one_of(storage, join(output, name), {recorded[name]}))


def is_copy(
    storage: Storage, output: str, entry: Entry, target: Target, source_digests: Collection[str]
) -> bool:
    """Whether a file is a copy of one of INPUT's small ones, as a tokenizer.model for other programs is."""
    return holds_settings(entry, target) and _is_one_of(storage, join(output, entry.name), source_digests)


def _is_one_of(storage: Storage, path: str, digests: Collection[str | None]) -> bool:
    try:
        return digest_file(storage, path) in digests
    except InputError:
        return False
