"""Which tensors a model of a config has and takes: told by Transformers' own code, in JSON, for a process of its own.

``python -m distconv.sidecars.looks`` answers the one question that is on its standard input, see ``apart.py``. Since
Transformers 5 names on disk differ from those in memory, experts for instance lie one by one. What is saved is made
there of views of what is in memory; on tensors without data these tell where each saved tensor's elements lie.
Source: ``core_model_loading.py`` of transformers 5.23.
"""

import gc
import json
import math
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from distconv.errors import InputError, Stopped
from distconv.layout.dtypes import contiguous_strides
from distconv.sidecars.lean_torch import leave_out_of_torch
from distconv.sidecars.meta_device import empty_model, import_usual_model
from distconv.sidecars.settings import take_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Shape = tuple[int, ...]
Slab = tuple[Shape, str, Shape, Shape]
"""Shape, name of the tensor in memory, where it begins along each of its axes, and which axes are the shape's."""
Answer = dict[str, object]

_SHOWN_CHARACTERS = 300
_NOT_DONE = "let Transformers load what was trained, and save it by save_pretrained"


def look(kind: str, config: Mapping[str, object], shapes: Mapping[str, Shape], least_tensors: int) -> Answer:
    """Make a config's model and tell what it ``saves``, or what it ``takes`` of tensors of such names and shapes.

    A model may have ``least_tensors`` whatever ``shapes`` holds. An answer with ``wrong`` says why there is none,
    one with ``refused`` does so of a model that could be made.
    """
    try:
        tensors = max(len(shapes), least_tensors)
        with empty_model(take_settings(config, shapes, least_tensors), tensors) as model:
            return _look_at_saved(model) if kind == "saves" else _look_at_taken(model, shapes)
    except Stopped:
        raise
    except InputError as error:
        return {"refused": str(error)}
    # Whatever a strange config makes of Transformers' code, it is the config's fault.
    except Exception as error:  # noqa: BLE001
        return {"wrong": f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN_CHARACTERS]}"}


def _look_at_saved(model: "PreTrainedModel") -> Answer:
    state = model.state_dict()
    memory = {name: tuple(tensor.shape) for name, tensor in state.items()}
    integers = [name for name, tensor in state.items() if not tensor.dtype.is_floating_point]
    tied = {name: kept for name, kept in dict(model.all_tied_weights_keys).items() if name in memory}
    left_out = {*tied, *(model._keys_to_ignore_on_save or ())}  # noqa: SLF001
    saved = _trace_saving(model, {name: shape for name, shape in memory.items() if name not in left_out})
    title = type(model).__name__
    return {
        "kind": model.config.model_type,
        "title": title,
        "memory": memory,
        "integers": integers,
        "saved": saved,
        "tied": tied,
    }


def _look_at_taken(model: "PreTrainedModel", shapes: Mapping[str, Shape]) -> Answer:
    from transformers.core_model_loading import revert_weight_conversion

    state = dict(model.state_dict())
    saved = revert_weight_conversion(model, dict(state))
    wanted = {name: (tuple(tensor.shape), tensor.dtype.is_floating_point) for name, tensor in saved.items()}
    tied = {own for name in _list_tied(model, state) for own in revert_weight_conversion(model, name)}
    optional = [name for name in wanted if name in tied or _matches(model, "missing", name)]
    strange = [name for name in shapes if name not in wanted]
    find = _make_finder(model, state, wanted)
    others = {name: found for name in strange if (found := find(name, shapes[name]))}
    ignored = [name for name in strange if name not in others and _matches(model, "unexpected", name)]
    return {
        "title": type(model).__name__,
        "wanted": wanted,
        "optional": optional,
        "others": others,
        "ignored": ignored,
    }


def _trace_saving(model: "PreTrainedModel", memory: Mapping[str, Shape]) -> dict[str, Slab]:
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
            raise InputError(f"{name} is put together of several tensors as it is saved; {_NOT_DONE}")
        view = tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset()
        found[name] = _find_slab(name, home, memory[home], *view)
    return found


def _find_slab(name: str, home: str, whole: Shape, shape: Shape, strides: Sequence[int], offset: int) -> Slab:
    """Find the axes in memory by the strides of a view of it."""
    steps = contiguous_strides(whole)
    first = tuple(offset // step % extent if extent else 0 for step, extent in zip(steps, whole, strict=True))
    left = list(range(len(whole)))
    axes = []
    for extent, stride in zip(shape, strides, strict=True):
        fitting = [axis for axis in left if steps[axis] == stride and first[axis] + extent <= whole[axis]]
        if not fitting:
            raise InputError(f"{name} is saved in an order that distconv does not know; {_NOT_DONE}")
        # Of axes with one step the one that is wide enough is meant, others have one place.
        axis = max(fitting, key=lambda axis: whole[axis])
        left.remove(axis)
        axes.append(axis)
    if math.prod(shape) and any(
        first[axis] + extent > whole[axis] for axis, extent in zip(axes, shape, strict=True)
    ):
        raise InputError(f"{name} is saved in an order that distconv does not know; {_NOT_DONE}")
    return shape, home, first, tuple(axes)


def _list_tied(
    model: "PreTrainedModel", state: Mapping[str, "torch.Tensor"]
) -> Iterator[dict[str, "torch.Tensor"]]:
    """Give each tensor that is another one by another name, which need not be saved."""
    for name in getattr(model, "all_tied_weights_keys", {}):
        if name in state:
            yield {name: state[name]}


def _matches(model: "PreTrainedModel", kind: str, name: str) -> bool:
    """Whether a loader says nothing of a name that is missing, or unexpected."""
    patterns = getattr(model, f"_keys_to_ignore_on_load_{kind}", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _make_finder(
    model: "PreTrainedModel", state: Mapping[str, "torch.Tensor"], wanted: Collection[str]
) -> Callable[[str, Shape], tuple[str, ...]]:
    """Give what tells of which wanted tensors one of another name is, as the loader renames it; of none perhaps."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
        revert_weight_conversion,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix

    def find(name: str, shape: Shape) -> tuple[str, ...]:
        for near in (f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if near != name and near in wanted:
                return (near,)
        own, converted = rename_source_key(name, renamings, converters, prefix, dict(state))
        if own not in state:
            own, converted = name, None
        # One that lies together in memory, as some versions wrote it, has to have the shape that it has there.
        if own in state and converted is None and tuple(state[own].shape) == shape:
            return tuple(revert_weight_conversion(model, {own: state[own]}))
        return ()

    return find


def main() -> None:
    """Answer the question on standard input, and end at once where that is closed before."""
    # What is imported and made here lives as long as the process.
    gc.disable()
    # Others' code may write there.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_question, args=(questions,), daemon=True).start()
    # Who asks may have started this before there was a question.
    leave_out_of_torch()
    import_usual_model()
    kind, config, shapes, least_tensors = json.loads(questions.get())
    answer = look(kind, config, {name: tuple(shape) for name, shape in shapes.items()}, least_tensors)
    out.write(json.dumps(answer))
    out.flush()
    # Who has the answer waits for no more: torch takes its time to go.
    os._exit(0)


def _read_question(questions: "SimpleQueue[bytes]") -> None:
    """Take what is asked, and end with whoever asked it."""
    # By nothing that Python closes when it ends: that would wait for this, and then abort.
    content = b""
    while not content.endswith(b"\n"):
        more = os.read(0, 1 << 20)
        if not more:
            os._exit(1)
        content += more
    questions.put(content)
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
