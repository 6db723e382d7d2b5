"""Weights in files that no index puts together: each rank's part of each tensor, or whole tensors in several files.

Source of the format: ``hf_storage.py`` and ``_hf_utils.py`` of ``torch.distributed.checkpoint``, torch 2.13: the metadata of
``shard-RRRRR-model-KKKKK-of-NNNNN.safetensors`` says at which coordinates of a tensor the part in the file begins.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError, escape
from distconv.formats.boxes import Box, BoxedTensor, Described, Extents, TrainedFiles
from distconv.formats.marks import LIMIT_NAME_CHARACTERS, TensorMark
from distconv.formats.meta.archive import read_archive
from distconv.formats.safetensors.header import is_safetensors, read_with_metadata
from distconv.formats.safetensors.weights import has_meta_names
from distconv.formats.state import LIMIT_TENSORS
from distconv.formats.views import make_view
from distconv.layout.regions import Region
from distconv.storage.base import Storage, join, list_files, opened, read_range
from distconv.storage.parallel import read_at_once
from distconv.storage.window import read_by_windows

_RANKS = re.compile(r"shard-\d+-model-(?P<number>\d+)-of-(?P<total>\d+)\.safetensors")
_WEIGHTS = re.compile(r"(?!adapter_|optimizer|scheduler|training_args).*\.(safetensors|bin)")
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})\.(?P<kind>\w+)")
_INFO, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_BELOW = "sharded"
"""Where torchtitan puts them, beside what it made of them."""
_OPENERS = 16
_HEAD_BYTES = 16
_MOST_FILES = 1 << 14


def find_rank_folders(storage: Storage, source: str) -> tuple[str, ...]:
    """Give the folder whose safetensors files hold parts of ranks: this one, or ``sharded`` in it."""
    for folder in (source, join(source, _BELOW)):
        if any(_RANKS.fullmatch(name) for name in list_files(storage, folder)):
            return (folder,)
    return ()


def find_weight_folders(storage: Storage, source: str) -> tuple[str, ...]:
    """Give a folder that has files of weights which are called as Transformers calls them, or otherwise."""
    if has_meta_names(storage, source):
        return ()
    found = any(_WEIGHTS.fullmatch(name) for name in list_files(storage, source))
    return (source,) if found else ()


@dataclass(frozen=True, slots=True)
class _Part:
    """What one file holds of a tensor."""

    first: Extents
    mark: TensorMark
    region: Region


def read_weight_folder(storage: Storage, folder: str) -> TrainedFiles:
    """Read the headers of all files of weights in a folder, whatever an index says; InputError with all that is wrong."""
    names = list_files(storage, folder)
    ranks = [name for name in names if _RANKS.fullmatch(name)]
    chosen = ranks or [name for name in names if _WEIGHTS.fullmatch(name)]
    if len(chosen) > _MOST_FILES:
        raise InputError(f"{folder}: {len(chosen):,} files of weights, expected at most {_MOST_FILES:,}")
    paths = tuple(join(folder, name) for name in sorted(chosen))

    missing = list(_find_missing(folder, ranks))
    files = read_at_once(lambda path, _stopped: _read_file(storage, path), paths, _OPENERS, missing)
    tensors = _put_together(files)
    form = "safetensors of a trainer's ranks" if ranks else "files of weights, by whatever index"
    return TrainedFiles(
        folder=folder,
        form=form,
        weights=paths,
        tensors={name: Described(tensor.dtype, tensor.shape) for name, tensor in tensors.items()},
        others=(),
        read=lambda _storage, names: _take(tensors, names),
        read_checksums=lambda _storage, regions: [region for region in regions if region.crc32],
        read_again=lambda storage: read_weight_folder(storage, folder),
        notes=() if ranks else tuple(_find_lost(folder, chosen)),
    )


def _take(tensors: Mapping[str, BoxedTensor], names: Collection[str]) -> Mapping[str, BoxedTensor]:
    return {name: tensors[name] for name in names}


def _find_missing(folder: str, names: Iterable[str]) -> Iterator[str]:
    """Tell of numbers that no rank has a file of."""
    matches = [match for name in names if (match := _RANKS.fullmatch(name))]
    totals = {int(match["total"]) for match in matches}
    held = {int(match["number"]) for match in matches}
    if len(totals) > 1:
        yield f"{folder}: files of {' and of '.join(map(str, sorted(totals)))} in all; keep those of one checkpoint"
    elif totals and len(held) < (total := totals.pop()) <= _MOST_FILES:
        lost = sorted(set(range(1, total + 1)) - held)
        if lost:
            yield f"{folder}: no shard-*-model-{lost[0]:05d}-of-{total:05d}.safetensors; copy the files of all ranks"


def _find_lost(folder: str, names: Iterable[str]) -> Iterator[str]:
    """Tell of files that are missing of those that are numbered, from 0 or from 1 on; they may have another name."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            sets.setdefault((match["stem"], match["total"], match["kind"]), set()).add(int(match["number"]))
    for (stem, total, kind), held in sets.items():
        first = min(1, *held)
        lost = next((number for number in range(first, first + int(total)) if number not in held), None)
        if lost is not None:
            yield (
                f"{folder}: {len(held):,} files of {int(total):,} by their names, no {stem}-{lost:0{len(total)}}-of-{total}.{kind}"
            )


def _read_file(storage: Storage, path: str) -> Mapping[str, _Part]:
    with opened(storage, path) as reader:
        near = read_by_windows(reader)
        head = bytes(read_range(near, 0, min(_HEAD_BYTES, near.size_bytes)))
        if not is_safetensors(head):
            return {
                name: _Part((0,) * len(mark.shape), mark, region)
                for name, (mark, region) in read_archive(near).items()
            }
        found, metadata = read_with_metadata(near)
    info = _read_info(path, metadata.get(_INFO))
    return {
        name: _Part(_take_first(path, name, mark, info.get(name)), mark, region)
        for name, (mark, region) in found.items()
    }


def _read_info(path: str, value: object) -> Mapping[str, object]:
    if value is None:
        return {}
    try:
        found = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: {_INFO} is no JSON object; the file is damaged")
    return found


def _take_first(path: str, name: str, mark: TensorMark, info: object) -> Extents:
    """Take where a part begins; whole tensors begin at 0."""
    if info is None:
        return (0,) * len(mark.shape)
    first = info.get(_OFFSETS) if isinstance(info, dict) else None
    if not (
        isinstance(first, list)
        and len(first) == len(mark.shape)
        and all(type(at) is int and 0 <= at < 1 << 60 for at in first)
    ):
        raise InputError(
            f"{path}: {escape(name):.80}: {_OFFSETS} is {first!r:.60}, expected {len(mark.shape)} numbers"
        )
    return tuple(first)


def _put_together(files: Iterable[Mapping[str, _Part]]) -> dict[str, BoxedTensor]:
    """Give the tensors of all files; each one's shape is as far as its parts reach."""
    parts: dict[str, list[_Part]] = {}
    for file in files:
        for name, part in file.items():
            if len(name) > LIMIT_NAME_CHARACTERS:
                raise InputError(
                    f"{part.region.path}: a tensor whose name has {len(name):,} characters; refused as unsafe"
                )
            parts.setdefault(name, []).append(part)
    if len(parts) > LIMIT_TENSORS:
        raise InputError(f"more than {LIMIT_TENSORS:,} tensors; refused as unsafe")
    return {name: _join(name, found) for name, found in parts.items()}


def _join(name: str, parts: list[_Part]) -> BoxedTensor:
    first = parts[0]
    for part in parts[1:]:
        if part.mark.dtype != first.mark.dtype or len(part.first) != len(first.first):
            raise InputError(
                f"{part.region.path}: {escape(name):.80} is a {part.mark.dtype} of {len(part.first)} axes, in "
                f"{first.region.path} a {first.mark.dtype} of {len(first.first)}; keep the files of one model only"
            )
        if part.first == first.first and 0 not in part.mark.shape:
            raise InputError(
                f"{part.region.path}: {escape(name):.80} also in {first.region.path}; keep the files of one model only"
            )
    ends = [[at + size for at, size in zip(part.first, part.mark.shape, strict=True)] for part in parts]
    shape = tuple(max(along) for along in zip(*ends, strict=True))
    boxes = (
        Box(part.first, make_view(name, part.mark, part.region)) for part in parts if 0 not in part.mark.shape
    )
    return BoxedTensor(name, first.mark.dtype, shape, tuple(boxes))
