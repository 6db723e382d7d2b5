"""Tensors that Meta's files hold as one in each shard, taken apart by views of their rows."""

from collections.abc import Sequence
from dataclasses import replace

from distconv.families.dimensions import Sizes
from distconv.families.rules import Named, Rule, expand_rules
from distconv.formats.meta.catalog import Catalog, Shard
from distconv.formats.views import TensorView


def take_apart(catalog: Catalog, rules: Sequence[Rule], sizes: Sizes) -> Catalog:
    """Give a catalog by the rules' own names: what several rules store as one is cut into rows in their ratio.

    Names that no rule stores under another name, and what does not divide in that ratio, stay as they are.
    """
    groups: dict[str, list[Named]] = {}
    for one in expand_rules(rules, sizes):
        if one.stored != one.source:
            groups.setdefault(one.stored, []).append(one)
    if not groups:
        return catalog
    return replace(catalog, shards=tuple(_take_shard_apart(shard, groups, sizes) for shard in catalog))


def _take_shard_apart(shard: Shard, groups: dict[str, list[Named]], sizes: Sizes) -> Shard:
    tensors: dict[str, TensorView] = {}
    stored = dict(shard.stored)
    for name, view in shard.tensors.items():
        parts = _cut_rows(view, groups.get(name, []), sizes)
        for part in parts:
            tensors[part.name] = part
            if part.name != name:
                stored[part.name] = shard.stored.get(name, name)
    return replace(shard, tensors=tensors, stored=stored)


def _cut_rows(view: TensorView, parts: Sequence[Named], sizes: Sizes) -> list[TensorView]:
    whole = [part.shape(sizes)[0] for part in parts]
    if not parts or not view.shape or len(view.shape) != len(parts[0].rule.shape):
        return [view]
    if view.shape[0] * min(whole) % sum(whole):
        return [view]
    found, first = [], 0
    for part, rows in zip(parts, whole, strict=True):
        count = view.shape[0] * rows // sum(whole)
        offset = view.offset + first * view.strides[0]
        found.append(replace(view, name=part.source, offset=offset, shape=(count, *view.shape[1:])))
        first += count
    return found
