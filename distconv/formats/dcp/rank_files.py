"""A file a rank, each with a state dict of ``DTensor`` parts, as verl and SkyRL save them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from distconv.errors import InputError
from distconv.formats.boxes import Box, BoxedTensor, Described, TrainedFiles
from distconv.formats.dcp.dtensors import LANGUAGE, PartMark
from distconv.formats.marks import TensorMark
from distconv.formats.meta.archive import read_archive
from distconv.formats.views import make_view
from distconv.layout.regions import Region
from distconv.storage.base import Storage, join, opened
from distconv.storage.parallel import map_at_once
from distconv.storage.window import read_by_windows

_NAME = re.compile(r"model_world_size_(?P<total>\d{1,6})_rank_(?P<rank>\d{1,6})\.pt")
_BELOW = "actor"
"""Where verl puts the model that is trained, below a folder a step."""
_OPENERS = 16

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

    def read(path: str, _stopped: Callable[[], bool]) -> _Marks | str:
        try:
            with opened(storage, path) as reader:
                return read_archive(read_by_windows(reader), LANGUAGE)
        except InputError as error:
            return str(error)

    outcomes = map_at_once(read, paths, _OPENERS)
    if findings := [outcome for outcome in outcomes if isinstance(outcome, str)]:
        raise InputError.of(findings)
    tensors = _put_together([outcome for outcome in outcomes if not isinstance(outcome, str)])
    return TrainedFiles(
        folder=folder,
        form="a file a rank, of DTensor parts",
        weights=paths,
        tensors={name: Described(tensor.dtype, tensor.shape) for name, tensor in tensors.items()},
        others=(),
        read=lambda _storage, names: {name: tensors[name] for name in names},
        read_checksums=lambda _storage, regions: [
            region for region in dict.fromkeys(regions) if region.crc32
        ],
        read_again=lambda storage: read_rank_files(storage, folder),
    )


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
    """Give the tensors of all ranks; what is no DTensor is whole in each, and is the first one's."""
    found: dict[str, BoxedTensor] = {}
    boxes: dict[str, list[Box]] = {}
    for rank, file in enumerate(files):
        for name, (mark, region) in file.items():
            whole = mark.whole if isinstance(mark, PartMark) else mark.shape
            tensor = found.setdefault(name, BoxedTensor(name, mark.dtype, whole, ()))
            if (tensor.dtype, tensor.shape) != (mark.dtype, whole):
                raise InputError(
                    f"{region.path}: {name:.80} is a {mark.dtype} of {whole}, in another rank a {tensor.dtype} of "
                    f"{tensor.shape}: the files are of several steps or runs"
                )
            boxes.setdefault(name, []).extend(_make_boxes(rank, name, mark, region))
    return {
        name: BoxedTensor(name, tensor.dtype, tensor.shape, tuple(boxes[name]))
        for name, tensor in found.items()
    }


def _make_boxes(rank: int, name: str, mark: TensorMark, region: Region) -> Iterator[Box]:
    if 0 in mark.shape or (mark.is_copy if isinstance(mark, PartMark) else rank > 0):
        return
    first = mark.first if isinstance(mark, PartMark) else (0,) * len(mark.shape)
    yield Box(first, make_view(name, mark, region))
