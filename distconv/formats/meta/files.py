"""Which files of INPUT are what: shards in order, params.json, tokenizer, licence."""

import posixpath
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.content import HEAD_BYTES
from distconv.formats.meta.archive import describe_other, may_be_archive
from distconv.formats.meta.foreign import describe_folder, note_adapters
from distconv.formats.meta.layouts import (
    SINGLE,
    Candidate,
    ShardFiles,
    is_rank_name,
    list_candidates,
    make_shards,
)
from distconv.formats.meta.legal import find_legal
from distconv.formats.meta.scales import find_scales
from distconv.formats.meta.small_files import (
    CONFIG_NAME,
    ORIGINAL,
    PARAMS_NAME,
    TOKENIZER_NAME,
    find_first_tokenizer,
    find_parent,
)
from distconv.formats.safetensors.header import is_safetensors
from distconv.storage.base import Storage, is_file, join, opened, read_range, read_small
from distconv.storage.given import find_given, take_given


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """All files of one checkpoint, as paths in the storage; notes say what is not where it usually is."""

    folder: str
    shards: tuple[ShardFiles, ...]
    params: str
    tokenizer: str | None
    legal: tuple[str, ...]
    notes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    """One file a rank beside FP8 shards, in their order."""

    @property
    def weights(self) -> tuple[str, ...]:
        """The shards' files, and those of their scales."""
        return (*(path for shard in self.shards for path in shard.paths), *self.scales)

    @property
    def small(self) -> tuple[str, ...]:
        """The files beside the shards that have a part in a conversion."""
        return (self.params, *self.legal, *([self.tokenizer] if self.tokenizer else []))


def find_files(
    storage: Storage, source: str, tokenizer: str | None = None, params: str | None = None
) -> SourceFiles:
    """Find a checkpoint's files in a folder (or its ``original/``), or beside a single file.

    The tokenizer and the licence may lie in the parent folder, as Llama 1 and 2 have them,
    params.json there or in ``original/``, as trainers leave it. Raises InputError with what
    was found where that is not one whole set of shards.
    """
    entry = find_given(storage, source)
    if not entry.is_folder:
        chosen = _candidate_of_file(storage, source)
    else:
        candidates = _list_in_tree(storage, source)
        if params is None:
            _refuse_transformers(storage, candidates)
        chosen = _choose(storage, source, candidates)
    folder = chosen.folder
    shards, scales = make_shards(storage, chosen), find_scales(storage, folder)
    parent = find_parent(storage, folder)
    near = (folder, parent, join(folder, ORIGINAL), join(parent, ORIGINAL))
    found_params, notes = _find_params(storage, chosen, near, params)
    if tokenizer is None:
        tokenizer = find_first_tokenizer(storage, near)
    else:
        tokenizer = take_given(storage, tokenizer, TOKENIZER_NAME, "the tokenizer")
    if entry.is_folder and not notes and folder not in {source, join(source, ORIGINAL)}:
        notes += (f"the checkpoint is {folder}",)
    notes += note_adapters(storage, folder)
    legal = find_legal(storage, *near[:2])
    return SourceFiles(folder, shards, found_params, tokenizer, legal, notes, scales)


def _find_params(
    storage: Storage, chosen: Candidate, near: tuple[str, ...], given: str | None
) -> tuple[str, tuple[str, ...]]:
    """Find params.json beside the shards; elsewhere only where all that are there say the same."""
    if given is not None:
        return take_given(storage, given, PARAMS_NAME, PARAMS_NAME), ()
    beside = join(near[0], PARAMS_NAME)
    if is_file(storage, beside):
        return beside, ()
    contents: dict[bytes, str] = {}
    for folder in near[1:]:
        path = join(folder, PARAMS_NAME)
        if is_file(storage, path):
            contents.setdefault(read_small(storage, path, _PARAMS_BYTES), path)
    paths = list(contents.values())
    if len(paths) > 1:
        raise InputError(
            f"{near[0]}: no {PARAMS_NAME} beside the shards, and {' and '.join(paths)} differ; give the model's by `params=`"
        )
    if paths:
        return paths[0], (f"{paths[0]} is taken as the model's: there is none beside the shards",)
    _refuse_transformers(storage, [chosen])
    if chosen.layout is SINGLE:
        _refuse_other(storage, join(chosen.folder, chosen.name))
    raise InputError(f"{near[0]}: {_describe_missing(chosen)}")


def _refuse_other(storage: Storage, path: str) -> None:
    """Refuse a file of any name that holds nothing of torch's."""
    with opened(storage, path) as reader:
        head = bytes(read_range(reader, 0, min(HEAD_BYTES, reader.size_bytes)))
    if not may_be_archive(head) and not is_safetensors(head):
        raise InputError(f"{path}: {describe_other(head)}")


def _describe_missing(chosen: Candidate) -> str:
    """Say which file is missing that says what the weights are: their names tell whose they are, if anything does."""
    way_out = "download of this model, or give it by `params=`"
    if chosen.layout.shared:
        return (
            f"no {CONFIG_NAME} beside the weights ({chosen.name}); copy it from the model that this one is, "
            f"or was trained from; if its tensors are Meta's, copy {PARAMS_NAME} from Meta's {way_out}"
        )
    where = f"beside the shards ({chosen.name}), in original/ or in the parent folder"
    return f"no {PARAMS_NAME} {where}; copy it from Meta's or Mistral's {way_out}"


_PARAMS_BYTES = 1 << 20


def _list_in_tree(storage: Storage, source: str) -> list[Candidate]:
    """Look in the folder and in ``original/``, then below them; in the end for what Transformers writes too."""
    places = (source, join(source, ORIGINAL))
    here = [found for folder in places for found in list_candidates(storage, folder)]
    own = [found for found in here if not found.layout.shared]
    if own:
        return own
    below = [
        found
        for place in places
        for entry in storage.list_folder(place)
        if entry.is_folder and entry.name != ORIGINAL
        for found in list_candidates(storage, join(place, entry.name))
        if not found.layout.shared
    ]
    return [*here, *below]


def _choose(storage: Storage, source: str, candidates: list[Candidate]) -> Candidate:
    """Take the only candidate; several are only named."""
    if not candidates:
        raise InputError(
            f"{source}: no checkpoint of Meta's, Transformers' or a trainer's here; {describe_folder(storage, source)}"
        )
    if len(candidates) == 1:
        return candidates[0]
    folders = dict.fromkeys(found.folder for found in candidates)
    if len(folders) > 1 and not {source, join(source, ORIGINAL)} & set(folders):
        raise InputError(f"{source}: several checkpoints below it; give one of them: {', '.join(folders)}")
    names = [found.names[0] if set(folders) == {source} else found.path for found in candidates]
    raise InputError(
        f"{source}: both {' and '.join(names)}: several whole models; give the path of the one to convert"
    )


def _refuse_transformers(storage: Storage, candidates: list[Candidate]) -> None:
    """A folder with a config.json, no params.json and weights called as Transformers calls them is its own."""
    for found in candidates:
        beside = {entry.name for entry in storage.list_folder(found.folder)}
        if not found.layout.shared or CONFIG_NAME not in beside or PARAMS_NAME in beside:
            return
    if candidates:
        raise InputError(
            f"{candidates[0].folder}: no consolidated.*.pth here or in original/; it holds {candidates[0].name} "
            f"and {CONFIG_NAME}: already in Transformers' format, which needs no conversion; "
            "a Llama for Meta's code is made by `to='meta'`, other chunks or a right index by `like=` and the folder itself; if its tensors are Meta's, give `params=`"
        )


def _candidate_of_file(storage: Storage, path: str) -> Candidate:
    """Take a file as the whole model, unless its name says that it is one of several."""
    folder, name = posixpath.split(path)
    folder = folder or "."
    for found in list_candidates(storage, folder):
        if name in found.names:
            return _whole_of_rank(storage, found)
    return Candidate(name, folder, SINGLE, (name,))


def _whole_of_rank(storage: Storage, part: Candidate) -> Candidate:
    """Go up from a part in the folder of one rank to all ranks."""
    rank = posixpath.basename(storage.real_path(part.folder))
    if part.layout.kind != "parts" or not is_rank_name(rank):
        return part
    ranks = list_candidates(storage, find_parent(storage, part.folder))
    return next((found for found in ranks if rank in found.names), part)
