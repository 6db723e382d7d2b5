"""Whether two tensors of INPUT hold the same bytes: what metadata alone cannot always tell."""

from distconv.formats.views import TensorView
from distconv.layout.files import OutputTensor
from distconv.moving.contents import make_contents
from distconv.moving.devices import HostDevice
from distconv.moving.sources import Sources
from distconv.storage.base import Storage


def target_of_view(view: TensorView) -> OutputTensor:
    """Take one view as a whole tensor."""
    return OutputTensor(view.name, view.name, view.shape, view.dtype, view.dtype, view.whole().copies)


def equal_targets(storage: Storage, left: OutputTensor, right: OutputTensor) -> bool:
    """Compare two tensors block by block, up to the first difference, in bounded memory."""
    if (left.shape, left.stored) != (right.shape, right.stored):
        return False
    with Sources(storage) as sources:
        # A block that is cut by rows of other shards is cut elsewhere too: compare a stream of bytes.
        streams = [_Stream(target, sources) for target in (left, right)]
        remaining = left.elements * left.stored.size_bytes
        while remaining:
            size = min(remaining, HostDevice.block_bytes)
            if streams[0].take(size) != streams[1].take(size):
                return False
            remaining -= size
    return True


class _Stream:
    """A tensor's bytes, in pieces of any size."""

    def __init__(self, target: OutputTensor, sources: Sources) -> None:
        self._contents = make_contents(target, sources, HostDevice())
        self._held = bytearray()

    def take(self, size_bytes: int) -> bytes:
        while len(self._held) < size_bytes:
            self._held += next(self._contents)[1]
        taken = bytes(self._held[:size_bytes])
        del self._held[:size_bytes]
        return taken
