"""A model made of a stranger's config.json on torch's meta device: without memory for any of its weights.

Any architecture that the installed Transformers knows is made, by its own class; code that a config names is
never run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MODULES_A_TENSOR = 16
_FEW_MODULES = 4096


@contextmanager
def empty_model(settings: dict[str, object], tensors: int) -> Iterator["PreTrainedModel"]:
    """Have the model of such settings, without memory for its weights, of which there are about so many."""
    with _quiet(), _few_modules(_FEW_MODULES + _MODULES_A_TENSOR * tensors):
        yield _make_model(settings)


def import_usual_model() -> None:
    """Import what most questions take: the makers of models, and Llama's."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel  # noqa: F401


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
        if not isinstance(config, found.config_class or ()) and name not in _list_classes(config.model_type):
            raise ValueError(f"architecture {name} is none of model_type {config.model_type!a:.40}")
        return found
    for auto in (AutoModelForCausalLM, AutoModel):
        chosen = auto._model_mapping.get(type(config), None)  # noqa: SLF001
        if isinstance(chosen, type) and issubclass(chosen, PreTrainedModel):
            return chosen
    raise ValueError(f"no model of model_type {config.model_type!a:.40}")


def _list_classes(kind: str) -> Iterator[str]:
    """Give the classes that any of the ``Auto`` classes makes: some are other models' with a config of their own."""
    from transformers.models.auto import modeling_auto

    for name, mapping in vars(modeling_auto).items():
        if name.endswith("_MAPPING_NAMES"):
            found = mapping.get(kind, ())
            yield from (found,) if isinstance(found, str) else found


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
