"""Stripes: runs of tensors that one worker writes into several files, each of which holds its share of them.

Ranks that share a tensor by its columns have a few kilobytes each of every row. Whoever writes all their
files reads whole rows, once; whoever writes one of them reads as many short ranges as there are rows.
"""

from bisect import bisect_left
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from distconv.layout.copies import Copy, Loop, with_gaps
from distconv.layout.files import File, OutputTensor, Part, Section, Trailer
from distconv.layout.rows import list_runs


@dataclass(frozen=True, slots=True)
class Stripe:
    """Parts of several files with the same run of tensors, or one of a single file: one unit of work."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Name it for people, and for the scheduler."""
        first, last = self.parts[0], self.parts[-1]
        return first.name if first is last else f"{first.file} to {last.name}"

    @property
    def size_bytes(self) -> int:
        """Size of all that is in it."""
        return sum(part.size_bytes for part in self.parts)


def list_sections(unit: File | Stripe) -> tuple[Section, ...]:
    """Give what of each file is written."""
    return unit.parts if isinstance(unit, Stripe) else (unit,)


def group_alike(files: Sequence[File], most: int) -> Iterator[tuple[File, ...]]:
    """Group neighbours that may be written in stripes: sealed, and of tensors that are alike; at most so many."""

    def describe(file: File) -> object:
        return file.name if file.seal is None else [(tensor.shape, tensor.dtype) for tensor in file.tensors]

    for _forms, found in groupby(files, describe):
        alike = tuple(found)
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


def split_files(
    files: Sequence[File],
    limit_bytes: int,
    least_bytes: int = 0,
    whole: Container[str] = (),
    *,
    cuts_tensors: bool = False,
) -> tuple[File | Stripe, ...]:
    """Split files that are alike into stripes of at most so many bytes of tensors in all.

    Larger tensors are cut where ``cuts_tensors`` says so, and else are in a stripe alone. Where a part would be
    of less than ``least_bytes`` the tensors before or behind it are in it too. Files that ``whole`` names are not
    split, and change nothing about how the others are.
    """
    run_bytes = max(1, limit_bytes // len(files)) if cuts_tensors else None
    pieces = [tuple(_list_pieces(file, run_bytes)) for file in files]
    sizes = [len(files) * piece.tensor.size_bytes for piece in pieces[0]]
    runs = group_runs(sizes, limit_bytes, len(files) * least_bytes)
    if not sizes or len(files) == len(runs) == 1:
        return tuple(files)
    parts = [_cut(file, own, runs) for file, own in zip(files, pieces, strict=True) if file.name not in whole]
    return (
        *(file for file in files if file.name in whole),
        *(Stripe(found) for found in zip(*parts, strict=True)),
    )


_MOST_PIECES = 1000
"""Of one tensor, however small the parts are to be: each is planned, and made durable, by itself."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor of a file, or some rows of it."""

    place: int
    tensor: OutputTensor
    offset_bytes: int
    trailer: Trailer | None

    def is_first(self, file: File) -> bool:
        return self.offset_bytes == file.offsets_bytes[self.place]


def _list_pieces(file: File, run_bytes: int | None) -> Iterator[_Piece]:
    """Give a file's tensors, cut into runs of about so many bytes."""
    trailers = file.trailers or (None,) * len(file.tensors)
    described = zip(file.tensors, file.offsets_bytes, trailers, strict=True)
    for place, (tensor, start, trailer) in enumerate(described):
        if run_bytes is None or tensor.size_bytes <= run_bytes:
            yield _Piece(place, tensor, start, trailer)
            continue
        end = start
        for run in list_runs(tensor, max(run_bytes, tensor.size_bytes // _MOST_PIECES)):
            is_whole = run.size_bytes == tensor.size_bytes
            yield _Piece(place, run, end, trailer if is_whole else None)
            end += run.size_bytes


def _cut(file: File, pieces: Sequence[_Piece], runs: Sequence[range]) -> Iterator[Part]:
    starts = [literal.offset_bytes for literal in file.literals]

    def find_edge(piece: _Piece) -> int:
        # A part begins where the one before ends: behind the trailer of its last tensor.
        before = piece.place - 1 if piece.is_first(file) else piece.place
        return bisect_left(starts, file.offsets_bytes[before])

    edges = [find_edge(pieces[run.start]) for run in runs[1:]]
    literals = [file.literals[first:end] for first, end in pairwise([0, *edges, len(starts)])]
    for number, (run, own) in enumerate(zip(runs, literals, strict=True), 1):
        held = pieces[run.start : run.stop]
        yield Part(
            file.name,
            file.size_bytes,
            number,
            len(runs),
            tuple(piece.place for piece in held),
            own,
            tuple(piece.tensor for piece in held),
            tuple(piece.offset_bytes for piece in held),
            tuple(piece.trailer for piece in held) if file.trailers else (),
        )


def group_runs(sizes_bytes: Sequence[int], limit_bytes: int, least_bytes: int = 0) -> tuple[range, ...]:
    """Group neighbours into runs of at most so many bytes, larger ones alone; none of less than ``least_bytes``."""
    edges, held = [0], 0
    for place, size in enumerate(sizes_bytes):
        if held >= max(1, least_bytes) and held + size > limit_bytes:
            edges.append(place)
            held = 0
        held += size
    if held < least_bytes and len(edges) > 1:
        edges.pop()
    return tuple(range(first, end) for first, end in pairwise([*edges, len(sizes_bytes)]))


@dataclass(frozen=True, slots=True)
class Step:
    """What is made at once of some sections: their tensors of one place, and which sections have them."""

    tensor: OutputTensor
    """One, or as many stacked as there are sections."""
    place: int
    sections: range


def list_steps(sections: Sequence[Section]) -> Iterator[Step]:
    """Give how the tensors of sections are made: together where that reads longer runs, else one by one."""
    for place, tensors in enumerate(zip(*(section.tensors for section in sections), strict=True)):
        together = stack(tensors)
        if together is not None:
            yield Step(together, place, range(len(sections)))
            continue
        for number, tensor in enumerate(tensors):
            yield Step(tensor, place, range(number, number + 1))


def stack(tensors: Sequence[OutputTensor]) -> OutputTensor | None:
    """Give tensors as one, of shape (rows, tensors, …), where they take turns in what they are copied from.

    None where they do not, as shares of rows, where they are scaled, or where one alone lacks what to stack.
    """
    first = tensors[0]
    forms = {(tensor.shape, tensor.stored, tensor.dtype) for tensor in tensors}
    if len(tensors) == 1 or len(forms) > 1 or len(first.shape) < 2 or first.scale is not None:
        return None
    alike: dict[object, list[tuple[int, Copy]]] = {}
    for number, tensor in enumerate(tensors):
        for copy in tensor.copies:
            alike.setdefault((copy.region, copy.start, copy.loops), []).append((number, copy))
    merged = [_merge(found) for found in alike.values()]
    if not any(_takes_turns(copy) for copy in merged if copy is not None):
        return None
    copies = [
        found
        for copy, places in zip(merged, alike.values(), strict=True)
        for found in ([copy] if copy is not None else [_place(*one, 1, 0) for one in places])
    ]
    shape = (first.shape[0], len(tensors), *first.shape[1:])
    return replace(first, shape=shape, copies=tuple(copies), stacked=len(tensors))


def _merge(places: Sequence[tuple[int, Copy]]) -> Copy | None:
    """Make one copy of those that differ by as much in the storage from one tensor to the next; None of others."""
    steps = {
        (after - before, following.source_offset - copy.source_offset)
        for (before, copy), (after, following) in pairwise(places)
    }
    if len(steps) != 1:
        return None
    ((apart, source_step),) = steps
    return _place(*places[0], len(places), source_step) if apart == 1 and source_step > 0 else None


def _place(number: int, copy: Copy, extent: int, source_step: int) -> Copy:
    """Give a copy of a tensor as one of so many tensors, from this number on, that are stacked."""
    rows = [loop for loop in copy.loops if loop.axis == 0]
    others = [loop._replace(axis=loop.axis + 1) for loop in copy.loops if loop.axis > 0]
    loops = (*rows, Loop(extent, source_step, 1), *others)
    start = (copy.start[0], number, *copy.start[1:])
    return Copy(copy.region, copy.source_offset, start, with_gaps(loops))


def _takes_turns(copy: Copy) -> bool:
    (between,) = (loop.source_step for loop in copy.loops if loop.axis == 1)
    return any(loop.source_step > between for loop in copy.loops if loop.axis == 0 and loop.extent > 1)
