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


@dataclass(frozen=True, slots=True)
class PartMark(TensorMark):
    """A rank's part of a tensor, as the pickle names it."""

    whole: Extents
    """Shape of the tensor."""
    first: Extents
    """Where in it the part begins."""
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
    first, sizes, is_copy = _place(whole, _state(spec))
    if local.shape != sizes:
        raise InputError(f"a part of shape {local.shape} of a tensor of {whole}, its placements give {sizes}")
    return PartMark(
        local.storage, local.dtype, local.offset, local.shape, local.strides, whole, first, is_copy
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


def _place(whole: Extents, spec: Mapping[object, object]) -> tuple[Extents, Extents, bool]:
    """Give where a part begins, its sizes, and whether it is a copy; each axis of the mesh cuts what the last one left."""
    mesh, placements = _state(spec.get("mesh")), spec.get("placements")
    shape, at = _find_shape(mesh), mesh.get("_coordinate_on_dim")
    if not isinstance(placements, (tuple, list)):
        raise InputError(f"placements are {describe(placements)}; not a DTensor that is known")
    if not isinstance(at, (tuple, list)) or not len(at) == len(shape) == len(placements):
        raise InputError(f"a mesh of {shape} at {describe(at)} for {len(placements)} placements")
    first, sizes, is_copy = [0] * len(whole), list(whole), False
    for extent, place, placement in zip(shape, at, placements, strict=True):
        if type(place) is not int or not 0 <= place < extent or type(placement) is not Record:
            raise InputError(f"place {describe(place)} of {extent} on a mesh")
        axis = _state(placement).get("dim")
        if placement.kind.name == "Replicate":
            is_copy |= place > 0
        elif placement.kind.name == "Shard" and type(axis) is int and 0 <= axis < len(whole):
            step = -(-sizes[axis] // extent)
            begin = min(place * step, sizes[axis])
            first[axis] += begin
            sizes[axis] = min(begin + step, sizes[axis]) - begin
        else:
            raise InputError(
                f"placement {placement.kind.name}, expected Shard or Replicate; save it by torch.distributed.checkpoint"
            )
    return tuple(first), tuple(sizes), is_copy


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
