"""Tensors that Meta's files hold as one in each shard, taken apart by views of their rows."""

from collections.abc import Sequence
from dataclasses import replace

from distconv.errors import InputError
from distconv.families.dimensions import Sizes
from distconv.families.rules import Named, Rule, expand_rules
from distconv.formats.meta.catalog import Catalog, Shard
from distconv.formats.views import TensorView


def take_apart(catalog: Catalog, rules: Sequence[Rule], sizes: Sizes) -> Catalog:
    """Give a catalog by the rules' own names: what several rules store as one is cut into rows in their ratio.

    Names that no rule stores under another name stay as they are. InputError for what does not divide in that ratio, and
    for what is there by itself too.
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
        own = shard.stored.get(name, name)
        for part in _cut_rows(view, f"{own} in {shard.name}", groups.get(name, []), sizes):
            if part.name != name:
                if part.name in shard.tensors:
                    raise InputError(
                        f"{shard.name}: {part.name} is there by itself, and in {own}; save a model that has one of them"
                    )
                stored[part.name] = own
            tensors[part.name] = part
    return replace(shard, tensors=tensors, stored=stored)


def _cut_rows(view: TensorView, where: str, parts: Sequence[Named], sizes: Sizes) -> list[TensorView]:
    if not parts:
        return [view]
    whole = [part.shape(sizes)[0] for part in parts]
    if len(view.shape) != len(parts[0].rule.shape) or view.shape[0] * min(whole) % sum(whole):
        names = " and ".join(part.source for part in parts)
        raise InputError(
            f"{where}: shape {view.shape}, expected the rows of {names}, which are as {' to '.join(map(str, whole))}"
        )
    found, first = [], 0
    for part, rows in zip(parts, whole, strict=True):
        count = view.shape[0] * rows // sum(whole)
        offset = view.offset + first * view.strides[0]
        found.append(view._replace(name=part.source, offset=offset, shape=(count, *view.shape[1:])))
        first += count
    return found
