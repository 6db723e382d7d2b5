"""Whether tensors of INPUT hold the same bytes: what metadata alone cannot always tell."""

from collections.abc import Callable, Iterator

from distconv.errors import Interrupted
from distconv.formats.views import TensorView
from distconv.layout.files import OutputTensor
from distconv.layout.units import Question
from distconv.moving.contents import make_contents
from distconv.moving.devices import HostDevice
from distconv.moving.digests import NO_DIGESTS
from distconv.moving.job import Job, Receipt
from distconv.moving.sources import Sources
from distconv.moving.spans import Spans
from distconv.storage.base import Storage


def target_of_view(view: TensorView) -> OutputTensor:
    """Take one view as a whole tensor."""
    return OutputTensor(view.name, view.name, view.shape, view.dtype, view.dtype, view.whole().copies)


def answer(
    job: Job, question: Question, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Compare the pairs block by block, up to the first difference, in bounded memory."""
    spans = Spans(kept=job.traced)
    # Their memory is used again for each pair.
    devices = HostDevice(), HostDevice()

    def are_equal(left: OutputTensor, right: OutputTensor) -> bool:
        if (left.shape, left.stored) != (right.shape, right.stored):
            return False
        streams = (_read(tensor, sources, at) for tensor, at in zip((left, right), devices, strict=True))
        for one, other in _align(*streams):
            if stopped():
                raise Interrupted("stopped")
            if not _hold_the_same(one, other):
                return False
            advance(2 * len(one))
        return True

    with Sources(job.storage, spans) as sources:
        equal = all(are_equal(*pair) for pair in question.pairs)
    return Receipt(question.name, NO_DIGESTS, sources.bytes_read, 0, equal=equal, work=spans.finish())


def find_difference(storage: Storage, left: OutputTensor, right: OutputTensor) -> int | None:
    """Give the place, in elements, of the first one that differs between two tensors of one shape and type."""
    import numpy as np

    place = 0
    with Sources(storage) as sources:
        streams = (_read(tensor, sources, HostDevice()) for tensor in (left, right))
        for one, other in _align(*streams):
            if not _hold_the_same(one, other):
                differ = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
                return (place + int(differ.argmax())) // left.dtype.size_bytes
            place += len(one)
    return None


def _read(tensor: OutputTensor, sources: Sources, device: HostDevice) -> Iterator[memoryview]:
    for _block, content, _infinite in make_contents(tensor, sources, device):
        yield content


def _align(
    left: Iterator[memoryview], right: Iterator[memoryview]
) -> Iterator[tuple[memoryview, memoryview]]:
    """Give runs of one length of two streams: what is cut by rows of other shards is cut elsewhere too."""
    nothing = memoryview(b"")
    one, other = next(left, nothing), next(right, nothing)
    while one and other:
        size = min(len(one), len(other))
        yield one[:size], other[:size]
        one, other = one[size:] or next(left, nothing), other[size:] or next(right, nothing)


def _hold_the_same(left: memoryview, right: memoryview) -> bool:
    import numpy as np

    # A comparison of memoryviews goes element by element.
    return np.array_equal(np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8))
