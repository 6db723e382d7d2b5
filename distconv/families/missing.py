"""Shards that are missing behind the last one that is there: told by the heads, whose number params.json says."""

from collections.abc import Sequence

from distconv.errors import InputError
from distconv.families.dimensions import Sizes
from distconv.families.rules import Rule, expand_rules
from distconv.formats.meta.catalog import Catalog


def refuse_missing_shards(folder: str, catalog: Catalog, rules: Sequence[Rule], sizes: Sizes) -> None:
    """Raise InputError where more shards, of as many query heads each, would be needed for all heads.

    What else contradicts params.json is told by each tensor's name later.
    """
    one = next(one for one in expand_rules(rules, sizes) if one.rule.shape[0] == "q")
    whole, columns = one.shape(sizes)
    views, held = catalog.views(one.source), len(catalog.shards)
    each = views[0].shape[0] if views and views[0].shape else 0
    if len(views) != held or any(view.shape != (each, columns) for view in views):
        return
    if each and whole % each == 0 and whole // each > held:
        raise InputError(
            f"{folder}: {held} of {whole // each} shards, by their heads: {one.source} has {each:,} rows in each, "
            f"{sizes.head_dim} a head, and params.json says {whole // sizes.head_dim} heads; download the missing shards, or take the "
            "params.json of this model"
        )
