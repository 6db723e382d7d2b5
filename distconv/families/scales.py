"""Which tensors of FP8 shards are multiplied by which scales, and in which order these lie.

Sources: ``llama3/quantization/loader.py`` and ``llama4/scripts/quantize.py`` of llama-models 0.3.0. A dense matrix has
a scale for each of its rows in the shard. An expert is quantized as it is multiplied, transposed: it has a scale for
each of its columns in the shard.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.formats.meta.catalog import Catalog, Shard
from distconv.formats.meta.scales import scales_name
from distconv.formats.views import TensorView
from distconv.humanize import shorten
from distconv.layout.dtypes import DTYPES, FLOAT32

FLOAT8 = DTYPES["float8_e4m3fn"]
_DENSE = re.compile(r"(?P<layer>\d+)_feed_forward\.(?P<name>w[123])_(?P<rank>\d+)")
_EXPERTS = re.compile(r"layers\.(?P<layer>\d+)\.feed_forward\.experts\.(?P<name>w[123])")
_EXPERT_NAMES = {"w1": "moe_w_in_eD_F", "w2": "moe_w_out_eF_D", "w3": "moe_w_swiglu_eD_F"}
_MOST_FINDINGS = 20


def attach_scales(catalog: Catalog, experts: int) -> Catalog:
    """Give each float8 tensor of a checkpoint, with so many experts a layer, its scale in each shard.

    InputError, with all findings, where one has none, or a scale is of no such tensor, or not of its shape.
    """
    scale = next((scale for shard in catalog for scale in shard.scales.values()), None)
    if scale is not None and not any(view.dtype == FLOAT8 for view in catalog.all_views):
        raise InputError(
            f"{scale.region.path}: the scales of a shard, and no tensor is stored as {FLOAT8}; take the files of one model"
        )
    findings: list[str] = []
    shards = tuple(_attach(shard, rank, experts, findings) for rank, shard in enumerate(catalog))
    if findings:
        raise InputError.of(shorten(findings, _MOST_FINDINGS))
    return replace(catalog, shards=shards)


@dataclass(frozen=True, slots=True)
class _Named:
    """Whose scale a name stands for."""

    tensor: str
    rank: int | None
    """Where the name tells it."""
    by_expert: bool


def _read_name(name: str) -> _Named | None:
    if dense := _DENSE.fullmatch(name):
        return _Named(
            f"layers.{dense['layer']}.feed_forward.{dense['name']}.weight",
            int(dense["rank"]),
            by_expert=False,
        )
    if expert := _EXPERTS.fullmatch(name):
        tensor = f"layers.{expert['layer']}.feed_forward.experts.{_EXPERT_NAMES[expert['name']]}"
        return _Named(tensor, None, by_expert=True)
    return None


def _attach(shard: Shard, rank: int, experts: int, findings: list[str]) -> Shard:
    tensors, named_ones = dict(shard.tensors), set[str]()
    for name, scale in shard.scales.items():
        named, where = _read_name(name), f"{scale.region.path}: {name}"
        view = None if named is None else shard.tensors.get(named.tensor)
        if named is None or view is None:
            findings.append(f"{where} is the scale of no tensor of {shard.name}; take the files of one model")
            continue
        named_ones.add(named.tensor)
        wrong = _find_wrong(named, rank, experts, view, scale, shard)
        if wrong is not None:
            findings.append(f"{where}: {wrong}")
        else:
            tensors[named.tensor] = view._replace(scale=_spread(scale, view, named))
    unscaled = [name for name, view in tensors.items() if view.dtype == FLOAT8 and name not in named_ones]
    findings += _name_unscaled(shard, unscaled)
    return replace(shard, tensors=tensors)


def _name_unscaled(shard: Shard, names: list[str]) -> Iterator[str]:
    """Name the float8 tensors that have no scale, in one line."""
    if not names:
        return
    path = next((view.region.path for view in shard.scales.values()), None)
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    missing = f"{path} has no scale for {'them' if more else 'it'}; download it again"
    if path is None:
        missing = (
            f"there is no file of scales ({scales_name(0)} …) beside the shards in {posixpath.dirname(shard.paths[0]) or '.'}; "
            "download the scales"
        )
    yield f"{names[0]}{more} in {shard.name}: stored as {FLOAT8}, and {missing}"


def _find_wrong(
    named: _Named, rank: int, experts: int, view: TensorView, scale: TensorView, shard: Shard
) -> str | None:
    if named.rank not in {None, rank}:
        return f"a scale of shard {named.rank} in the file of shard {rank}; download it again"
    if view.dtype != FLOAT8:
        return f"{named.tensor} in {shard.name} is stored as {view.dtype}, expected {FLOAT8}; take the files of one model"
    if scale.dtype != FLOAT32:
        return f"stored as {scale.dtype}, expected {FLOAT32}"
    rows, columns = view.shape if len(view.shape) == 2 else (0, 0)
    expected = (experts, columns) if named.by_expert else (rows,)
    if scale.shape != expected or (named.by_expert and rows % experts):
        which = "column of each expert" if named.by_expert else "row"
        return f"shape {scale.shape}, expected {expected}: one for each {which} of {named.tensor} in {shard.name}"
    return None


def _spread(scale: TensorView, view: TensorView, named: _Named) -> TensorView:
    """Give a scale a number for each element: strides of 0 lead to the same one again."""
    rows, columns = view.shape
    if not named.by_expert:
        return scale._replace(shape=(rows, columns), strides=(scale.strides[0], 0))
    experts, between = scale.shape[0], scale.strides
    return scale._replace(shape=(experts, rows // experts, columns), strides=(between[0], 0, between[1]))
