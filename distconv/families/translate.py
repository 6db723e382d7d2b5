"""Whole models from one dialect into the other, tensor by tensor, as copies."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError, UsageError
from distconv.families.cuts import Cut
from distconv.families.llama import CUTS, EMBEDDING, OUTPUT
from distconv.families.rules import Match, Rule, expand_rules
from distconv.formats.meta.shards import MOST_SHARDS
from distconv.humanize import format_choice
from distconv.layout.dtypes import DType
from distconv.layout.files import OutputTensor
from distconv.layout.tensors import Tensor, cut


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
    targets, findings = [], []
    for match in matches:
        if match.source == OUTPUT and decisions.tied:
            continue
        stored = match.views[0].dtype
        try:
            joined = match.cut.join(match.views, decisions.kv_replication)
            tensor = match.operation.apply(joined, head_dim)
            targets.append(
                OutputTensor(match.target, match.source, tensor.shape, stored, dtype or stored, tensor.copies)
            )
        except InputError as error:
            findings.append(str(error))
    if findings:
        raise InputError.of(findings)
    return tuple(targets)


@dataclass(frozen=True, slots=True)
class MetaTensor:
    """A whole tensor by Meta's name, how it is cut among ranks, and what INPUT calls it."""

    tensor: Tensor
    cut: Cut
    source: str


def join_ranks(matches: Sequence[Match], kv_replication: int) -> Iterator[MetaTensor]:
    """Give the whole tensors of a checkpoint of Meta's."""
    for match in matches:
        yield MetaTensor(match.cut.join(match.views, kv_replication), match.cut, match.source)


def invert_rules(
    rules: Sequence[Rule], tensors: Mapping[str, Tensor], layers: int, head_dim: int, embedding: Cut
) -> Iterator[MetaTensor]:
    """Give the whole tensors that Meta's code has, made of Transformers' by their names."""
    for source, (target, rule) in expand_rules(rules, layers):
        if target in tensors:
            tensor = rule.operation.invert(tensors[target], head_dim)
            yield MetaTensor(replace(tensor, name=source), CUTS.get(rule.source, embedding), target)


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
    return tuple(
        tuple(_take_part(whole, rank, ranks, head_dim, dtype) for whole in tensors) for rank in range(ranks)
    )


def list_shard_counts(tensors: Sequence[MetaTensor], head_dim: int) -> tuple[int, ...]:
    """Give all numbers of shards, up to the most that can be named, that Meta's code can divide a model among."""
    alike = {(whole.cut, whole.tensor.shape): whole for whole in tensors}.values()
    return tuple(
        ranks
        for ranks in range(1, MOST_SHARDS + 1)
        if not any(words for whole in alike for words in _find_uneven(whole, ranks, head_dim))
    )


def _find_uneven(whole: MetaTensor, ranks: int, head_dim: int) -> Iterator[str]:
    axis, heads = whole.cut.axis, whole.cut.heads
    if axis is None:
        return
    size = whole.tensor.shape[axis]
    unit, what = (head_dim, f"{heads} heads") if heads else (1, "rows" if axis == 0 else "columns")
    count = size // unit
    if count % ranks and not (heads == "key" and ranks % count == 0):
        kind = re.sub(r"layers\.\d+\.", "", whole.tensor.name)
        yield f"{ranks} shards: {kind} has {count:,} {what}, which Meta's code cannot divide among them"


def _take_part(whole: MetaTensor, rank: int, ranks: int, head_dim: int, dtype: DType | None) -> OutputTensor:
    part = whole.cut.part(whole.tensor, rank, ranks, head_dim)
    return OutputTensor(part.name, whole.source, part.shape, part.dtype, dtype or part.dtype, part.copies)
