"""Which folder is a distributed checkpoint, and which files it consists of."""

from distconv.errors import InputError
from distconv.formats.boxes import Described, TrainedFiles
from distconv.formats.dcp.boxes import read_boxes, read_checksums
from distconv.formats.dcp.metadata import METADATA_NAME, read_metadata
from distconv.humanize import list_some
from distconv.storage.base import Storage, is_file, is_folder, join
from distconv.storage.looks import find_each

_MOST_SHOWN = 8
_MEGATRON = frozenset({"common.pt", "metadata.json"})
"""What lies beside ``.metadata`` where Megatron wrote it (``dist_checkpointing`` of megatron-core)."""


def find_dcp_folders(storage: Storage, source: str) -> tuple[str, ...]:
    """Give the folders that are distributed checkpoints of a model: this one, or those directly below it.

    Beside those of a model trainers have others for the optimizer (accelerate: ``optimizer_0``).
    """
    if not is_folder(storage, source):
        return ()
    if _is_dcp(storage, source):
        return (source,)
    below = (entry.name for entry in storage.list_folder(source) if entry.is_folder)
    marks = {join(source, name, METADATA_NAME): join(source, name) for name in below if _is_model(name)}
    found = find_each(storage, marks)
    return tuple(marks[path] for path, mark in found.items() if mark is not None and not mark.is_folder)


def _is_model(name: str) -> bool:
    return not name.startswith("optim")


def _is_dcp(storage: Storage, folder: str) -> bool:
    return is_file(storage, join(folder, METADATA_NAME))


def read_dcp_folder(storage: Storage, folder: str) -> TrainedFiles:
    """Read a folder's ``.metadata``; InputError where it is damaged, or of a kind that cannot be read."""
    names = {entry.name for entry in storage.list_folder(folder)}
    if names >= _MEGATRON:
        raise InputError(
            f"{folder}: a checkpoint of Megatron's (torch_dist), whose layers are stacked and whose projections are fused; "
            "bring it into Transformers' format by Megatron-Bridge"
        )
    path = join(folder, METADATA_NAME)
    metadata = read_metadata(storage, path)
    if not metadata.tensors:
        raise InputError(
            f"{path}: no tensors in it, only {list_some(list(metadata.others), _MOST_SHOWN) or 'nothing'}"
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
