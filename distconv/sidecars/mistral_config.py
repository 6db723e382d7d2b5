"""config.json of Mistral's models: ``configuration_mistral.py``, ``_mixtral.py`` and ``_ministral.py`` of transformers 5.23.

The values of a dense model are those of ``convert_mistral_weights_to_hf.py`` of transformers 4.47.1, the rotary base where
params.json does not say it excepted, see ``absent_theta`` in ``formats/meta/mistral.py``.
"""

from importlib import metadata

from distconv.errors import InputError
from distconv.families.dimensions import Dimensions
from distconv.formats.meta.mistral import MistralParams
from distconv.sidecars.config import Settings


def make_mistral_config(
    path: str, sizes: Dimensions, params: MistralParams, settings: Settings
) -> dict[str, object]:
    """Make config.json's content; InputError where none can say which layers attend to how much."""
    layers, window = _spread(path, sizes.layers, params)
    mixed = {key is None for key in layers} == {True, False}
    if mixed and params.experts:
        raise InputError(
            f"{path}: sliding_window differs between layers, which a Mixtral of Transformers cannot have"
        )
    kind = "mixtral" if params.experts else "ministral" if mixed else "mistral"
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "attention_dropout": 0.0,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.ffn_dim,
        "model_type": kind,
        "sliding_window": window,
        **settings.list_keys(sizes),
        **settings.list_dtype(),
        **(_list_experts(params) if params.experts else {}),
        **({"layer_types": [_LAYER_TYPES[key is None] for key in layers]} if mixed else {}),
        "transformers_version": metadata.version("transformers"),
    }


_LAYER_TYPES = {False: "sliding_attention", True: "full_attention"}


def _list_experts(params: MistralParams) -> dict[str, object]:
    return {
        "num_experts_per_tok": params.experts_per_token,
        "num_local_experts": params.experts,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
    }


def _spread(path: str, layers: int, params: MistralParams) -> tuple[list[int | None], int | None]:
    """Give each layer's window, and the one that all have which have any."""
    pattern = params.windows
    if layers % len(pattern):
        raise InputError(
            f"{path}: sliding_window has {len(pattern)} entries, which repeat over the layers; {layers} is no multiple of that: "
            "take the params.json of this model"
        )
    windows = {window for window in pattern if window is not None}
    if len(windows) > 1:
        shown = ", ".join(f"{window:,}" for window in sorted(windows))
        raise InputError(f"{path}: sliding_window has {shown}; Transformers has one window for all layers")
    return list(pattern) * (layers // len(pattern)), next(iter(windows), None)
