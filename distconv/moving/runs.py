"""Runs of bytes read one behind the other: tensors that lie in a file as they are, whatever lies between, and others.

What follows each other in a file is read as one stretch, in large blocks, however small its tensors are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from distconv.errors import Interrupted
from distconv.layout.dtypes import contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.units import Gap
from distconv.moving.contents import Contents
from distconv.moving.devices import Device
from distconv.moving.sources import Sources
from distconv.moving.spans import READ
from distconv.storage.blocks import read_blocks

Run = OutputTensor | Gap


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Runs that follow each other in a file; ``path`` is None for tensors that have to be put together."""

    path: str | None
    first: int
    end: int
    runs: tuple[Run, ...]


def read_runs(
    runs: Sequence[Run], sources: Sources, device: Device, stopped: Callable[[], bool]
) -> Iterator[tuple[int, memoryview]]:
    """Give the bytes of all runs, block by block, each with its run's place; those of no bytes are passed over.

    The bytes are good until the next block is asked for. Interrupted where ``stopped`` says so.
    """
    place = 0
    for stretch in _find_stretches(runs):
        if stretch.path is None:
            blocks = _put_together(stretch, sources, device, stopped)
        else:
            blocks = _read_stretch(stretch, stretch.path, sources, stopped)
        for number, content in blocks:
            yield place + number, content
        place += len(stretch.runs)


def _find_stretches(runs: Sequence[Run]) -> Iterator[_Stretch]:
    """Group runs that are read together, in their order."""
    held: list[Run] = []
    path: str | None = None
    first = end = 0
    for run in runs:
        own, start = _locate(run)
        if held and (own != path or (own is not None and start != end)):
            yield _Stretch(path, first, end, tuple(held))
            held = []
        if not held:
            path, first, end = own, start, start
        held.append(run)
        end += run.size_bytes
    if held:
        yield _Stretch(path, first, end, tuple(held))


def _locate(run: Run) -> tuple[str | None, int]:
    """Give where in which file a run's bytes lie as they are; no file where they do not."""
    if isinstance(run, Gap):
        return run.path, run.first
    if run.dtype != run.stored or len(run.copies) != 1 or run.copies[0].region.zipped:
        return None, 0
    (copy,) = run.copies
    steps = [1] * len(run.shape)
    for loop in copy.loops:
        steps[loop.axis] = loop.source_step
    plain = all(
        extent == 1 or step == wanted
        for extent, step, wanted in zip(run.shape, steps, contiguous_strides(run.shape), strict=True)
    )
    if len(copy.loops) != len(run.shape) or not plain:
        return None, 0
    return copy.region.path, copy.region.offset_bytes + copy.source_offset * run.stored.size_bytes


def _read_stretch(
    stretch: _Stretch, path: str, sources: Sources, stopped: Callable[[], bool]
) -> Iterator[tuple[int, memoryview]]:
    edges = []
    edge = stretch.first
    for run in stretch.runs:
        edge += run.size_bytes
        edges.append(edge)
    place, position = 0, stretch.first
    blocks = read_blocks(sources.open(path), stretch.first, stretch.end, stopped)
    while True:
        with sources.spans.during(READ, 0):
            block = next(blocks, None)
        if block is None:
            return
        sources.bytes_read += len(block)
        start = 0
        while start < len(block):
            while edges[place] == position:
                place += 1
            size = min(len(block) - start, edges[place] - position)
            yield place, block[start : start + size]
            start += size
            position += size


def _put_together(
    stretch: _Stretch, sources: Sources, device: Device, stopped: Callable[[], bool]
) -> Iterator[tuple[int, memoryview]]:
    tensors = tuple(run for run in stretch.runs if isinstance(run, OutputTensor))
    contents = Contents(tensors, [0] * len(tensors), sources, device, stopped=stopped)
    for place in range(len(tensors)):
        for _block, content, _infinite in contents.of(place):
            if stopped():
                raise Interrupted("stopped")
            yield place, content
