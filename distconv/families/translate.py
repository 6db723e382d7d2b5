"""Whole models from one dialect into the other, tensor by tensor, as copies."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError, UsageError
from distconv.families.cuts import ROWS, Cut
from distconv.families.dimensions import Sizes
from distconv.families.llama import EMBEDDING, OUTPUT
from distconv.families.rules import Match, Named, Rule, expand_rules
from distconv.formats.meta.shards import MOST_SHARDS
from distconv.humanize import format_choice
from distconv.layout.dtypes import BFLOAT16, DType
from distconv.layout.files import OutputTensor
from distconv.layout.reshape import zeros
from distconv.layout.tensors import Tensor, cut, join


@dataclass(frozen=True, slots=True)
class Decisions:
    """What only data can tell: whether embedding and output are equal, how often key heads are stored."""

    tied: bool
    kv_replication: int


def make_targets(
    matches: Sequence[Match], head_dim: int, decisions: Decisions, dtype: DType | None = None
) -> tuple[OutputTensor, ...]:
    """Turn matched rules into target tensors; ``dtype`` None keeps each tensor's own type.

    All tensors that their parts do not fill are collected and raised as one InputError.
    """
    groups: dict[str, list[Match]] = {}
    for match in matches:
        if match.source != OUTPUT or not decisions.tied:
            groups.setdefault(match.target, []).append(match)
    targets, findings = [], []
    for group in groups.values():
        try:
            targets.append(_make_target(group, head_dim, decisions, dtype))
        except InputError as error:
            findings.append(str(error))
    if findings:
        raise InputError.of(findings)
    return tuple(targets)


def _make_target(
    matches: Sequence[Match], head_dim: int, decisions: Decisions, dtype: DType | None
) -> OutputTensor:
    """Make one target, of several tensors of Meta's where they lie beside each other."""
    first, names = matches[0], " and ".join(match.source for match in matches)
    types = {match.views[0].dtype for match in matches}
    if len(types) > 1:
        shown = " and ".join(sorted(map(str, types)))
        raise InputError(
            f"{names}: stored as {shown}, expected one type: they are one tensor, {first.target}"
        )
    wholes = [
        match.operation.apply(match.cut.join(match.views, decisions.kv_replication), head_dim)
        for match in matches
    ]
    tensor = wholes[0] if len(wholes) == 1 else join(wholes, first.axis)
    return _make_output(first.target, names, tensor, dtype)


def _make_output(name: str, source: str, tensor: Tensor, dtype: DType | None) -> OutputTensor:
    return OutputTensor(
        name, source, tensor.shape, tensor.dtype, dtype or tensor.dtype, tensor.copies, scale=tensor.scale
    )


@dataclass(frozen=True, slots=True)
class MetaTensor:
    """A whole tensor by Meta's name, how it is cut among ranks, and what INPUT calls it."""

    tensor: Tensor
    cut: Cut
    source: str
    stored: str | None = None
    """How Meta's files call it, and others that lie behind it in each rank; None for its own name."""


def join_ranks(matches: Sequence[Match], kv_replication: int) -> Iterator[MetaTensor]:
    """Give the whole tensors of a checkpoint of Meta's."""
    for match in matches:
        yield MetaTensor(match.cut.join(match.views, kv_replication), match.cut, match.source, match.stored)


def invert_rules(
    rules: Sequence[Rule], tensors: Mapping[str, Tensor], sizes: Sizes, embedding: Cut = ROWS
) -> Iterator[MetaTensor]:
    """Give the whole tensors that Meta's code has, made of Transformers' by their names.

    ``embedding`` is the cut of what has none in its rule.
    """
    ends: dict[str, int] = {}
    for one in expand_rules(rules, sizes):
        if one.target not in tensors:
            continue
        axis, first = one.rule.axis, ends.get(one.target, 0)
        end = ends[one.target] = first + shape_of_target(one, sizes)[axis]
        tensor = tensors[one.target]
        if (first, end) != (0, tensor.shape[axis]):
            tensor = cut(tensor, axis, first, end)
        whole = replace(one.rule.operation.invert(tensor, sizes.head_dim), name=one.source)
        yield MetaTensor(whole, one.rule.cut or embedding, one.target, one.stored)


def shape_of_target(one: Named, sizes: Sizes) -> tuple[int, ...]:
    """Give the shape of what a rule makes of its tensor."""
    return one.rule.operation.apply(zeros(one.source, BFLOAT16, one.shape(sizes)), sizes.head_dim).shape


def list_target_shapes(rules: Sequence[Rule], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Give the shapes of all of Transformers' tensors, of what they are made beside each other."""
    found: dict[str, tuple[int, ...]] = {}
    for one in expand_rules(rules, sizes):
        shape, axis = shape_of_target(one, sizes), one.rule.axis
        before = found.get(one.target)
        size = shape[axis] if before is None else before[axis] + shape[axis]
        found[one.target] = (*shape[:axis], size, *shape[axis + 1 :])
    return found


def keep_rows(whole: MetaTensor, rows: int) -> MetaTensor:
    """Leave out the rows of a vocabulary behind the first ones."""
    if whole.tensor.name not in {EMBEDDING, OUTPUT} or whole.tensor.shape[0] == rows:
        return whole
    return replace(whole, tensor=cut(whole.tensor, 0, 0, rows))


def cut_for_ranks(
    tensors: Sequence[MetaTensor], ranks: int, head_dim: int, dtype: DType | None = None
) -> tuple[tuple[OutputTensor, ...], ...]:
    """Give each rank's tensors, in their order; ``dtype`` None keeps each tensor's own type.

    UsageError, with all findings and the numbers that would do, where Meta's code could not load so many
    parts: it divides every axis evenly, and has at least a key head a rank.
    """
    findings = [words for whole in tensors for words in _find_uneven(whole, ranks, head_dim)]
    if findings:
        counts = format_choice(list_shard_counts(tensors, head_dim), "shard")
        raise UsageError("\n".join((*dict.fromkeys(findings), f"expected {counts}")))
    groups: dict[str, list[MetaTensor]] = {}
    for whole in tensors:
        groups.setdefault(whole.stored or whole.tensor.name, []).append(whole)
    return tuple(
        tuple(_take_part(name, group, Rank(rank, ranks, head_dim), dtype) for name, group in groups.items())
        for rank in range(ranks)
    )


@dataclass(frozen=True, slots=True)
class Rank:
    """One of so many model-parallel ranks; heads of so many rows are never cut."""

    number: int
    count: int
    head_dim: int


def list_shard_counts(tensors: Sequence[MetaTensor], head_dim: int) -> tuple[int, ...]:
    """Give all numbers of shards, up to the most that can be named, that Meta's code can divide a model among."""
    alike = {(whole.cut, whole.tensor.shape): whole for whole in tensors}.values()
    return tuple(
        ranks
        for ranks in range(1, MOST_SHARDS + 1)
        if not any(words for whole in alike for words in _find_uneven(whole, ranks, head_dim))
    )


def _find_uneven(whole: MetaTensor, ranks: int, head_dim: int) -> Iterator[str]:
    cut, axis = whole.cut, whole.cut.axis
    if axis is None:
        return
    size = whole.tensor.shape[axis] // cut.groups
    unit = head_dim if cut.heads else cut.unit
    what = f"{cut.heads} heads" if cut.heads else "rows" if axis == 0 else "columns"
    if not cut.heads and cut.unit > 1:
        what = f"heads of {cut.unit} {what}"
    elif cut.groups > 1:
        what = f"{what} in each of {cut.groups:,} experts"
    count = size // unit
    if count % ranks and not (cut.heads == "key" and ranks % count == 0):
        kind = re.sub(r"layers\.\d+\.", "", whole.tensor.name)
        yield f"{ranks} shards: {kind} has {count:,} {what}, which Meta's code cannot divide among them"


def _take_part(name: str, wholes: Sequence[MetaTensor], rank: Rank, dtype: DType | None) -> OutputTensor:
    """Give what a rank has of tensors that are stored as one."""
    parts = [whole.cut.part(whole.tensor, rank.number, rank.count, rank.head_dim) for whole in wholes]
    part = parts[0] if len(parts) == 1 else join(parts, 0)
    sources = " and ".join(dict.fromkeys(whole.source for whole in wholes))
    return _make_output(name, sources, part, dtype)
