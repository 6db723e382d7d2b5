"""Which tensors a model of Transformers has, and under which names it is saved: told by its own code, without memory.

In memory some models hold tensors in one that are saved apart, as the experts of a mixture. What is saved is
made there of views; on tensors without data these tell where each saved tensor's elements lie in the one in memory.
Source: ``core_model_loading.py`` of transformers 5.23.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.errors import InputError, Stopped
from distconv.layout.dtypes import contiguous_strides
from distconv.sidecars.empty import empty_model
from distconv.sidecars.settings import take_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Shape = tuple[int, ...]

_REMOTE = "auto_map"
_TENSORS = 4096
"""Of a model of which INPUT may hold a few only, which is said then."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A tensor as it is saved: the slab of one in memory, whose ``axes`` are the saved one's, in their order."""

    shape: Shape
    memory: str
    first: Shape
    """Where along each axis in memory the slab begins."""
    axes: tuple[int, ...]

    @classmethod
    def whole(cls, name: str, shape: Shape) -> "Saved":
        """Give a tensor that is saved as it is in memory."""
        return cls(shape, name, (0,) * len(shape), tuple(range(len(shape))))

    @property
    def sizes(self) -> dict[int, int]:
        """How far the slab reaches along those axes; along the others it has one place."""
        return dict(zip(self.axes, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's tensors."""

    kind: str
    """As config.json calls it (``model_type``)."""
    title: str
    """The class that is built."""
    memory: Mapping[str, Shape]
    """Names and shapes of the tensors in memory, as ``state_dict`` gives them."""
    saved: Mapping[str, Saved]
    """By the names under which they are saved."""
    tied: Mapping[str, str]
    """In memory: names of tensors that are others, by which of the two is saved."""


def read_architecture(path: str, config: Mapping[str, object], shapes: Mapping[str, Shape]) -> Architecture:
    """Build the model that a config.json describes, without memory; ``shapes`` are those of INPUT's tensors.

    InputError where that cannot be done.
    """
    _refuse_foreign(path, config)
    try:
        with empty_model(take_settings(config, shapes, _TENSORS), max(len(shapes), _TENSORS)) as model:
            return _look_at(model)
    except (InputError, Stopped):
        raise
    # Whatever a strange config makes of Transformers' code, it is the config's fault.
    except Exception as error:  # noqa: BLE001
        first, *_ = [*str(error).splitlines(), ""]
        raise InputError(f"{path}: no model can be made of it ({type(error).__name__}: {first})") from None


def _refuse_foreign(path: str, config: Mapping[str, object]) -> None:
    if config.get(_REMOTE) is not None:
        raise InputError(
            f"{path}: has {_REMOTE}: a model whose code is not Transformers' own, which is not run"
        )
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{path}: has quantization_config; what was trained is not quantised so: give the bf16 model that it is of"
        )


def _look_at(model: "PreTrainedModel") -> Architecture:
    memory = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {name: kept for name, kept in dict(model.all_tied_weights_keys).items() if name in memory}
    saved = _trace_saving(model, {name: shape for name, shape in memory.items() if name not in tied})
    return Architecture(model.config.model_type, type(model).__name__, memory, saved, tied)


def _trace_saving(model: "PreTrainedModel", memory: Mapping[str, Shape]) -> dict[str, Saved]:
    """Let the model's code make what is saved of what is in memory, and look where that lies."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    class Traced(torch.Tensor):
        """A tensor that stays a view where a copy in another order is asked for."""

        def contiguous(self, memory_format: "torch.memory_format" = torch.contiguous_format) -> "Traced":  # noqa: ARG002
            return self

    traced = {name: torch.empty(shape, device="meta").as_subclass(Traced) for name, shape in memory.items()}
    homes = {tensor.untyped_storage()._cdata: name for name, tensor in traced.items()}  # noqa: SLF001
    found = {}
    for name, tensor in revert_weight_conversion(model, dict(traced)).items():
        home = homes.get(tensor.untyped_storage()._cdata)  # noqa: SLF001
        if home is None:
            raise InputError(f"{name} is computed as it is saved, which distconv does not do")
        view = tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset()
        found[name] = _make_saved(name, home, memory[home], *view)
    return found


def _make_saved(
    name: str, home: str, whole: Shape, shape: Shape, strides: Sequence[int], offset: int
) -> Saved:
    """Find the axes in memory by the strides of a view of it."""
    steps = contiguous_strides(whole)
    first = tuple(offset // step % extent if extent else 0 for step, extent in zip(steps, whole, strict=True))
    left = list(range(len(whole)))
    axes = []
    for extent, stride in zip(shape, strides, strict=True):
        fitting = [axis for axis in left if steps[axis] == stride and first[axis] + extent <= whole[axis]]
        if not fitting:
            raise InputError(f"{name} is saved in an order that distconv does not know")
        # Of axes with one step the one that is wide enough is meant, others have one place.
        axis = max(fitting, key=lambda axis: whole[axis])
        left.remove(axis)
        axes.append(axis)
    if math.prod(shape) and any(
        first[axis] + extent > whole[axis] for axis, extent in zip(axes, shape, strict=True)
    ):
        raise InputError(f"{name} is saved in an order that distconv does not know")
    return Saved(shape, home, first, tuple(axes))
