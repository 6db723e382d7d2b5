"""A file a rank, each with a state dict of ``DTensor`` parts, as verl and SkyRL save them."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product

from distconv.errors import InputError
from distconv.formats.boxes import Box, BoxedTensor, Described, Extents, TrainedFiles
from distconv.formats.dcp.dtensors import LANGUAGE, PartMark, Runs
from distconv.formats.marks import TensorMark
from distconv.formats.meta.archive import read_archive
from distconv.formats.views import checksum_of, make_view
from distconv.humanize import shorten
from distconv.layout.regions import Region
from distconv.storage.base import Storage, join, opened
from distconv.storage.parallel import read_at_once
from distconv.storage.window import read_by_windows

_NAME = re.compile(r"model_world_size_(?P<total>\d{1,6})_rank_(?P<rank>\d{1,6})\.pt")
_BELOW = "actor"
"""Where verl puts the model that is trained, below a folder a step."""
_OPENERS = 16
_MOST_FINDINGS = 8

_Marks = Mapping[str, tuple[TensorMark, Region]]


def find_rank_file_folders(storage: Storage, source: str) -> tuple[str, ...]:
    """Give the folder that has a file a rank: this one, or ``actor`` in it."""
    for folder in (source, join(source, _BELOW)):
        if _list_ranks(storage, folder):
            return (folder,)
    return ()


def _list_ranks(storage: Storage, folder: str) -> list[re.Match[str]]:
    names = (entry.name for entry in storage.list_folder(folder) if not entry.is_folder)
    return [match for name in names if (match := _NAME.fullmatch(name))]


def read_rank_files(storage: Storage, folder: str) -> TrainedFiles:
    """Read the headers of all ranks' files; InputError with all that is missing or wrong."""
    paths = tuple(join(folder, name) for name in _order(folder, _list_ranks(storage, folder)))

    def read(path: str, _stopped: Callable[[], bool]) -> _Marks:
        with opened(storage, path) as reader:
            return read_archive(read_by_windows(reader), LANGUAGE)

    files = read_at_once(read, paths, _OPENERS)
    tensors = _put_together(files)
    return TrainedFiles(
        folder=folder,
        form="a file a rank, of DTensor parts",
        weights=paths,
        tensors={name: Described(tensor.dtype, tensor.shape) for name, tensor in tensors.items()},
        others=(),
        read=lambda _storage, names: _take(files, tensors, names),
        read_checksums=lambda _storage, regions: [
            region for region in dict.fromkeys(regions) if region.crc32
        ],
        read_again=lambda storage: read_rank_files(storage, folder),
    )


def _take(
    files: Sequence[_Marks], tensors: Mapping[str, BoxedTensor], names: Collection[str]
) -> Mapping[str, BoxedTensor]:
    """Give some tensors; InputError where ranks that have the same part of one have other data by its checksum."""
    findings = [words for name in names if (words := _find_other_copy(files, name)) is not None]
    if findings:
        raise InputError.of(shorten(findings, _MOST_FINDINGS))
    return {name: tensors[name] for name in names}


def _find_other_copy(files: Sequence[_Marks], name: str) -> str | None:
    first: dict[object, Region] = {}
    for file in files:
        if name not in file:
            continue
        mark, region = file[name]
        if not checksum_of(make_view(name, mark, region)):
            continue
        part = (mark.runs if isinstance(mark, PartMark) else None, mark.shape, mark.strides)
        known = first.setdefault(part, region)
        if known.crc32 != region.crc32:
            return (
                f"{region.path}: {name:.80} is not what {known.path} holds, and both are the same part of it; "
                "the files are of several steps or runs"
            )
    return None


def _order(folder: str, found: Sequence[re.Match[str]]) -> list[str]:
    """Sort by rank, and prove that none is missing."""
    totals = sorted({int(match["total"]) for match in found})
    if len(totals) > 1:
        raise InputError(
            f"{folder}: files of {' and of '.join(map(str, totals))} ranks; keep those of one checkpoint"
        )
    by_rank = {int(match["rank"]): match for match in found}
    lost = next((rank for rank in range(totals[0]) if rank not in by_rank), None)
    if lost is not None:
        raise InputError(
            f"{folder}: no model_world_size_{totals[0]}_rank_{lost}.pt; copy the files of all ranks into one folder"
        )
    return [by_rank[rank][0] for rank in range(totals[0])]


def _put_together(files: list[_Marks]) -> dict[str, BoxedTensor]:
    """Give the tensors of all ranks; what is no DTensor is whole in each, and is the first one's.

    A mesh need not have all ranks: those beside it have what its own have, as where FSDP is on one axis of two.
    """
    found: dict[str, BoxedTensor] = {}
    boxes: dict[str, dict[tuple[Extents, Extents], Box]] = {}
    for rank, file in enumerate(files):
        for name, (mark, region) in file.items():
            whole = mark.whole if isinstance(mark, PartMark) else mark.shape
            tensor = found.setdefault(name, BoxedTensor(name, mark.dtype, whole, ()))
            if (tensor.dtype, tensor.shape) != (mark.dtype, whole):
                raise InputError(
                    f"{region.path}: {name:.80} is a {mark.dtype} of {whole}, in another rank a {tensor.dtype} of "
                    f"{tensor.shape}: the files are of several steps or runs"
                )
            held = boxes.setdefault(name, {})
            for box in _make_boxes(rank, name, mark, region):
                held.setdefault((box.first, box.view.shape), box)
    return {
        name: BoxedTensor(name, tensor.dtype, tensor.shape, tuple(boxes[name].values()))
        for name, tensor in found.items()
    }


def _make_boxes(rank: int, name: str, mark: TensorMark, region: Region) -> Iterator[Box]:
    if 0 in mark.shape or (mark.is_copy if isinstance(mark, PartMark) else rank > 0):
        return
    if not isinstance(mark, PartMark):
        yield Box((0,) * len(mark.shape), make_view(name, mark, region))
        return
    for runs in product(*map(_list_runs, mark.runs)):
        first, sizes, local = (tuple(run[place] for run in runs) for place in range(3))
        offset = mark.offset + sum(at * stride for at, stride in zip(local, mark.strides, strict=True))
        yield Box(first, make_view(name, mark, region)._replace(offset=offset, shape=sizes))


def _list_runs(runs: Runs) -> Iterator[tuple[int, int, int]]:
    """Give each run's first place, its size, and where in the part it begins."""
    begin = 0
    for first, size in runs:
        yield first, size, begin
        begin += size
