"""What a pickled ``DTensor`` says: which part of which tensor a rank holds, by its mesh and its placements.

Which classes a mesh consists of changes from one version of torch to the next, so that what they hold counts and not
what they are called. Sources: ``torch/_tensor.py`` (``_rebuild_from_type_v2``), ``torch/distributed/tensor/_utils.py``
(``compute_local_shape_and_global_offset``) and ``device_mesh.py`` of torch 2.13.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from distconv.errors import InputError
from distconv.formats.boxes import Extents
from distconv.formats.marks import NAMES, OPAQUE, Arguments, Class, Function, Record, TensorMark, describe
from distconv.formats.meta.machine import Language
from distconv.formats.meta.pickles import STATE_DICT

_OF_TORCH = "torch.distributed."
_MOST_RUNS = 512
"""More than a rank has on any mesh that somebody trains on; without a bound they multiply."""

Runs = tuple[tuple[int, int], ...]
"""Places along an axis, in their order, as runs of (first, size)."""


@dataclass(frozen=True, slots=True)
class PartMark(TensorMark):
    """A rank's part of a tensor, as the pickle names it."""

    whole: Extents
    """Shape of the tensor."""
    runs: tuple[Runs, ...]
    """Along each axis, which of the tensor's places the part's are."""
    is_copy: bool
    """Whether another rank holds the same part, and is the one to read."""


class _Names(Mapping[tuple[str, str], object]):
    """What state dicts name, the rebuilding of tensors of subclasses, and all classes of torch's distributed part."""

    def __getitem__(self, key: tuple[str, str]) -> object:
        if key[0].startswith(_OF_TORCH):
            return Class(key[1])
        return _OWN[key] if key in _OWN else NAMES[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter({**NAMES, **_OWN})

    def __len__(self) -> int:
        return len({**NAMES, **_OWN})


def _rebuild(arguments: Arguments) -> object:
    """Make a part of ``(function, class, arguments, state)``; of the function's arguments the third is the shape."""
    _function, _kind, given, state = arguments
    known = _merge(state)
    local, spec = known.get("_local_tensor"), known.get("_spec")
    whole = given[2] if type(given) is tuple and len(given) > 2 else None
    if type(local) is not TensorMark or not _is_extents(whole):
        raise InputError(
            "a tensor of a class of its own, which is no DTensor; save the state dict of plain tensors"
        )
    runs, is_copy = _place(whole, _state(spec))
    sizes = tuple(sum(size for _first, size in along) for along in runs)
    if local.shape != sizes:
        raise InputError(f"a part of shape {local.shape} of a tensor of {whole}, its placements give {sizes}")
    return PartMark(
        local.storage, local.dtype, local.offset, local.shape, local.strides, whole, runs, is_copy
    )


_OWN: Mapping[tuple[str, str], object] = {
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_rebuild),
    ("torch._utils", "_rebuild_wrapper_subclass"): OPAQUE,
}
LANGUAGE = Language(_Names(), STATE_DICT.most_steps, STATE_DICT.refusal)


def _merge(state: object) -> dict[object, object]:
    """Take attributes, which are a dict, or a pair of dicts where there are slots."""
    parts = state if type(state) is tuple else (state,)
    return {key: value for part in parts if type(part) is dict for key, value in part.items()}


def _state(value: object) -> dict[object, object]:
    return _merge(value.state) if type(value) is Record else {}


def _is_extents(value: object) -> TypeGuard[Extents]:
    return type(value) is tuple and all(type(one) is int and 0 <= one < 1 << 60 for one in value)


def _place(whole: Extents, spec: Mapping[object, object]) -> tuple[tuple[Runs, ...], bool]:
    """Give which places a part has along each axis, and whether it is a copy.

    One axis of the mesh after the other cuts what the last one left.
    """
    mesh, placements = _state(spec.get("mesh")), spec.get("placements")
    shape, at = _find_shape(mesh), mesh.get("_coordinate_on_dim")
    if not isinstance(placements, (tuple, list)):
        raise InputError(f"placements are {describe(placements)}; not a DTensor that is known")
    if not isinstance(at, (tuple, list)) or not len(at) == len(shape) == len(placements):
        raise InputError(f"a mesh of {shape} at {describe(at)} for {len(placements)} placements")
    runs: list[Runs] = [((0, size),) for size in whole]
    is_copy = False
    for number in _order(spec.get("shard_order"), len(placements)):
        extent, place, placement = shape[number], at[number], placements[number]
        if type(place) is not int or not 0 <= place < extent or type(placement) is not Record:
            raise InputError(f"place {describe(place)} of {extent} on a mesh")
        state, kind = _state(placement), placement.kind.name
        axis, factor = state.get("dim"), state.get("split_factor", 1)
        if kind == "Replicate":
            is_copy |= place > 0
        elif kind in _SHARDS and type(axis) is int and 0 <= axis < len(whole) and _is_factor(factor):
            runs[axis] = _cut_strided(runs[axis], extent, place, factor)
            if math.prod(map(len, runs)) > _MOST_RUNS:
                raise InputError(f"a part of more than {_MOST_RUNS:,} boxes; refused as unsafe")
        else:
            raise InputError(
                f"placement {kind}, expected Shard or Replicate; save it by torch.distributed.checkpoint"
            )
    return tuple(runs), is_copy


_SHARDS = ("Shard", "_StridedShard")


def _is_factor(value: object) -> TypeGuard[int]:
    return type(value) is int and 1 <= value <= _MOST_RUNS


def _order(shard_order: object, axes: int) -> list[int]:
    """Give the mesh's axes in the order in which they cut: as they stand, where nothing else is said.

    What else is said are pairs of an axis of the tensor, and those of the mesh that cut it.
    """
    said: list[object] = []
    if isinstance(shard_order, (tuple, list)):
        for entry in shard_order:
            pair = entry.arguments if type(entry) is Record else None
            if type(pair) is not tuple or len(pair) != 2 or type(pair[1]) is not tuple:
                raise InputError(
                    f"the order of its shards holds {describe(entry)}; not a DTensor that is known"
                )
            said += pair[1]
    order = [axis for axis in said if type(axis) is int and 0 <= axis < axes]
    if len(set(order)) != len(said):
        raise InputError(
            "the order of its shards names axes that its mesh has not; not a DTensor that is known"
        )
    return [*order, *(axis for axis in range(axes) if axis not in order)]


def _cut_strided(runs: Runs, extent: int, place: int, factor: int) -> Runs:
    """Take one of ``extent`` pieces of each of ``factor`` pieces, one behind the other, as ``_StridedShard`` does."""
    pieces = [_cut(_cut(runs, factor, number), extent, place) for number in range(factor)]
    found: list[tuple[int, int]] = []
    for first, size in (run for piece in pieces for run in piece):
        if found and sum(found[-1]) == first:
            found[-1] = found[-1][0], found[-1][1] + size
        else:
            found.append((first, size))
    return tuple(found)


def _cut(runs: Runs, extent: int, place: int) -> Runs:
    """Take one of ``extent`` pieces, of which the last ones may be smaller or empty, as ``torch.chunk`` does."""
    step = -(-sum(size for _first, size in runs) // extent)
    begin, found, passed = place * step, [], 0
    for first, size in runs:
        low, high = max(begin - passed, 0), min(begin + step - passed, size)
        if low < high:
            found.append((first + low, high - low))
        passed += size
    return tuple(found)


def _find_shape(mesh: Mapping[object, object]) -> Extents:
    """Find how many ranks a mesh has along each of its axes, wherever the version of torch keeps that."""
    layout, tensor = _state(mesh.get("_layout")), mesh.get("mesh")
    axes = layout.get("axes")
    if isinstance(axes, (tuple, list)):
        return tuple(_multiply(_state(axis).get("shape")) for axis in axes)
    shape = layout.get("shape")
    if isinstance(shape, tuple):
        return tuple(map(_multiply, shape))
    if isinstance(tensor, TensorMark):
        return tensor.shape
    raise InputError("a mesh whose shape is not to be found; save it by torch.distributed.checkpoint")


def _multiply(value: object) -> int:
    if type(value) is int:
        return value
    if isinstance(value, Sequence) and all(type(one) is int for one in value):
        return math.prod(value)
    raise InputError(f"{describe(value)} is no number of ranks")
