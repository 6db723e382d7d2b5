"""Which folder is a distributed checkpoint, and which files it consists of."""

import re

from distconv.errors import InputError
from distconv.formats.boxes import Described, TrainedFiles
from distconv.formats.dcp.boxes import read_boxes, read_checksums
from distconv.formats.dcp.metadata import METADATA_NAME, read_metadata
from distconv.humanize import list_some
from distconv.storage.base import Storage, is_file, is_folder, join
from distconv.storage.looks import find_each

_MOST_SHOWN = 8
_RANKS = re.compile(r"__\d+_\d+\.distcp")
_FIRST_NAME = "__0_0.distcp"
_MEGATRON = frozenset({"common.pt", "metadata.json"})
"""What lies beside ``.metadata`` where Megatron wrote it (``dist_checkpointing`` of megatron-core)."""


def find_dcp_folders(storage: Storage, source: str) -> tuple[str, ...]:
    """Give the folders that are distributed checkpoints of a model: this one, or those directly below it.

    Beside those of a model trainers have others for the optimizer (accelerate: ``optimizer_0``). Where none below has
    a ``.metadata``, those are given that lack it.
    """
    if not is_folder(storage, source):
        return ()
    entries = storage.list_folder(source)
    if any(not entry.is_folder and _is_of_dcp(entry.name) for entry in entries):
        return (source,)
    below = [join(source, entry.name) for entry in entries if entry.is_folder and _is_model(entry.name)]
    for name in (METADATA_NAME, _FIRST_NAME):
        marks = {join(folder, name): folder for folder in below}
        found = find_each(storage, marks)
        folders = tuple(
            marks[path] for path, mark in found.items() if mark is not None and not mark.is_folder
        )
        if folders:
            return folders
    return ()


def _is_model(name: str) -> bool:
    return not name.startswith("optim")


def _is_of_dcp(name: str) -> bool:
    return name == METADATA_NAME or _RANKS.fullmatch(name) is not None


def is_unfinished(storage: Storage, folder: str) -> bool:
    """Whether a distributed checkpoint has no ``.metadata``, which is written when all ranks have saved."""
    return not is_file(storage, join(folder, METADATA_NAME))


def read_dcp_folder(storage: Storage, folder: str) -> TrainedFiles:
    """Read a folder's ``.metadata``; InputError where it is damaged, or of a kind that cannot be read."""
    names = {entry.name for entry in storage.list_folder(folder)}
    if names >= _MEGATRON:
        raise InputError(
            f"{folder}: a checkpoint of Megatron's (torch_dist), whose layers are stacked and whose projections are fused; "
            "bring it into Transformers' format by Megatron-Bridge"
        )
    path = join(folder, METADATA_NAME)
    if METADATA_NAME not in names:
        raise InputError(
            f"{folder}: files of ranks (*.distcp) and no {METADATA_NAME}, which is written last: the checkpoint was not saved "
            f"to its end, or its hidden file was not copied; wait for the trainer, or copy {METADATA_NAME} too"
        )
    metadata = read_metadata(storage, path)
    if not metadata.tensors:
        raise InputError(
            f"{path}: no tensors in it"
            + (f", only {list_some(list(metadata.others), _MOST_SHOWN)}" if metadata.others else "")
            + "; save the model's state dict"
        )
    tensors = {name: Described(tensor.dtype, tensor.shape) for name, tensor in metadata.tensors.items()}
    return TrainedFiles(
        folder=folder,
        form="a distributed checkpoint (torch.distributed.checkpoint)",
        # Which are missing counts only where their tensors are wanted.
        weights=(path, *(join(folder, file) for file in metadata.file_names() if file in names)),
        tensors=tensors,
        others=metadata.others,
        read=lambda storage, names: read_boxes(storage, folder, metadata, names),
        read_checksums=read_checksums,
        read_again=lambda storage: read_dcp_folder(storage, folder),
    )
