"""The tensors that a model made of config.json takes, without memory for any, by the names that files have.

Any architecture that the installed Transformers knows is made, by its own class; code that a config names is
never run. Since Transformers 5 names on disk differ from those in memory, experts for instance lie one by one:
what is expected is what ``save_pretrained`` would write (``core_model_loading.py`` of transformers 5.23).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from typing import TYPE_CHECKING

from distconv.sidecars.settings import read_settings
from distconv.storage.base import Storage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Shape = tuple[int, ...]

_MODULES_A_TENSOR = 16
_FEW_MODULES = 4096


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor that a model takes."""

    shape: Shape
    is_float: bool


@dataclass(frozen=True, slots=True)
class EmptyModel:
    """What a model takes, and what of the tensors that there are stands for it."""

    architecture: str
    wanted: Mapping[str, Wanted]
    optional: frozenset[str]
    """Those of ``wanted`` that it takes from others, or makes, where they are not there."""
    others: Mapping[str, tuple[str, ...]]
    """Of tensors that are there under other names, as older versions wrote them: the wanted ones they stand for."""
    ignored: frozenset[str]
    """Tensors that are there and that its loader passes over."""


def read_empty_model(storage: Storage, path: str, shapes: Mapping[str, Shape]) -> EmptyModel:
    """Make the model of a config and tell what it takes; ``shapes`` are of all tensors that there are.

    Whatever is raised, no model can be made.
    """
    from transformers.core_model_loading import revert_weight_conversion

    settings = read_settings(storage, path, shapes)
    with empty_model(settings, len(shapes)) as model:
        state = dict(model.state_dict())
        saved = revert_weight_conversion(model, dict(state))
        wanted = {
            name: Wanted(tuple(tensor.shape), tensor.dtype.is_floating_point)
            for name, tensor in saved.items()
        }
        tied = {own for name in _list_tied(model, state) for own in revert_weight_conversion(model, name)}
        optional = {name for name in wanted if name in tied or _matches(model, "missing", name)}
        strange = [name for name in shapes if name not in wanted]
        find = _make_finder(model, state, wanted)
        others = {name: found for name in strange if (found := find(name, shapes[name]))}
    ignored = {name for name in strange if name not in others and _matches(model, "unexpected", name)}
    return EmptyModel(type(model).__name__, wanted, frozenset(optional), others, frozenset(ignored))


@contextmanager
def empty_model(settings: dict[str, object], tensors: int) -> Iterator["PreTrainedModel"]:
    """Have the model of such settings, without memory for its weights, of which there are about so many."""
    with _quiet(), _few_modules(_FEW_MODULES + _MODULES_A_TENSOR * tensors):
        yield _make_model(settings)


def _make_model(settings: dict[str, object]) -> "PreTrainedModel":
    import torch
    import transformers
    from transformers import CONFIG_MAPPING, PreTrainedModel

    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(
            f"model_type {kind!a:.40} is unknown to transformers {transformers.__version__}; "
            "code that lies beside weights is never run"
        )
    config = CONFIG_MAPPING[kind].from_dict(settings)
    chosen = _choose_class(config, settings.get("architectures"))
    # What a module computes for itself takes no memory either.
    with torch.device("meta"):
        made = chosen._from_config(config, dtype=torch.float32, attn_implementation="eager")  # type: ignore[no-untyped-call]  # noqa: SLF001
    assert isinstance(made, PreTrainedModel)  # noqa: S101  mypy is told nothing of it
    return made


def _choose_class(config: "PreTrainedConfig", architectures: object) -> "type[PreTrainedModel]":
    """Take the class that a config names, else the one that ``AutoModelForCausalLM`` or ``AutoModel`` takes."""
    import transformers
    from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

    if isinstance(architectures, list) and architectures:
        name = architectures[0]
        found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
            raise ValueError(
                f"architecture {name!a:.60} is no model of transformers {transformers.__version__}"
            )
        if not isinstance(config, found.config_class or ()):
            raise ValueError(f"architecture {name} is none of model_type {config.model_type!a:.40}")
        return found
    for auto in (AutoModelForCausalLM, AutoModel):
        chosen = auto._model_mapping.get(type(config), None)  # noqa: SLF001
        if isinstance(chosen, type) and issubclass(chosen, PreTrainedModel):
            return chosen
    raise ValueError(f"no model of model_type {config.model_type!a:.40}")


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
    model: "PreTrainedModel", state: Mapping[str, "torch.Tensor"], wanted: Mapping[str, Wanted]
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


@contextmanager
def _few_modules(limit: int) -> Iterator[None]:
    """Refuse, with ValueError, to make more modules: some sizes say how many there are."""
    from torch.nn.modules.module import register_module_module_registration_hook

    made = 0

    def count(_module: object, _name: str, _submodule: object) -> None:
        nonlocal made
        made += 1
        if made > limit:
            raise ValueError(f"a model of more than {limit:,} modules, far more than there are tensors")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers from writing what it thinks of a config."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
