"""Sizes of a model that are told by its tensors' shapes in all shards, and the layers that there are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.meta.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of a checkpoint's tensors; InputError where one is asked for that is not there."""

    catalog: Catalog
    beside: str
    """The params.json, for messages."""

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return bool(self.catalog.views(name))

    def first(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape in the first shard that has it."""
        views = self.catalog.views(name)
        if not views:
            held = self.catalog.names()
            shown = ", ".join(self.catalog.stored_name(own) for own in held[:4])
            raise InputError(f"{self.beside}: no tensor {name} in its shards (they hold {shown}, …)")
        shape = views[0].shape
        if not shape or 0 in shape:
            raise InputError(f"{name} in {views[0].region.path}: shape {shape}, expected rows")
        return shape

    def columns(self, name: str) -> int:
        """Give how wide a matrix is, whose rows may be cut."""
        shape = self.first(name)
        if len(shape) != 2:
            path = self.catalog.views(name)[0].region.path
            raise InputError(f"{name} in {path}: shape {shape}, expected rows and columns")
        return shape[1]

    def sum_rows(self, name: str) -> int:
        """Count a tensor's rows in all shards; one without it, which is told later, counts as the first does."""
        first = self.first(name)
        shapes = [shard.tensors[name].shape if name in shard.tensors else first for shard in self.catalog]
        return sum(shape[0] if shape else 0 for shape in shapes)

    def list_layers(self, prefix: str) -> frozenset[int]:
        """Give the numbers of the layers whose tensors' names begin so."""
        pattern = re.compile(re.escape(prefix) + r"\.([0-9]{1,9})\..*", re.DOTALL)
        return frozenset(int(found[1]) for name in self.catalog.names() if (found := pattern.fullmatch(name)))

    def count_layers(self, prefix: str) -> int:
        """Count layers from the first one on; what is missing between them is told by its names later."""
        return len(self.list_layers(prefix))

    def check_layers(self, prefix: str, stated: int, path: str) -> Iterator[str]:
        """Tell where the shards hold other layers than params.json says, before anything of its size is built."""
        held = self.list_layers(prefix)
        if len(held) != stated or max(held) >= stated:
            missing = next(layer for layer in range(len(held) + 1) if layer not in held)
            what = (
                f"there is no {prefix}.{missing}.*"
                if missing < stated
                else f"{prefix}.{max(held)}.* is beyond"
            )
            yield (
                f"{path}: gives {stated} {prefix}, the shards hold {len(held)}: {what}; "
                "download the missing files, or take the params.json of this model"
            )
