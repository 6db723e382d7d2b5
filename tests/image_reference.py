"""What conversions of models that see must give, from whole tensors of Meta's, the plain way. Nothing is distconv's."""

from collections.abc import Iterator

import torch

from tests.image_checkpoints import RATIOS, Llama4Spec, Tensors, VisionSpec

_LAYER = {
    "attn.wq": "self_attn.q_proj", "attn.wk": "self_attn.k_proj", "attn.wv": "self_attn.v_proj",
    "attn.wo": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
}  # fmt: skip
_BLOCK = {
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj", "attention.wq": "A.q_proj",
    "attention.wk": "A.k_proj", "attention.wv": "A.v_proj", "attention.wo": "A.o_proj", "attention.q_norm": "A.q_norm",
    "attention.k_norm": "A.k_norm", "gate_attn": "cross_attn_attn_gate", "gate_ffwd": "cross_attn_mlp_gate",
}  # fmt: skip
_TEXT = "language_model.model."
_TOP = {"norm.weight": f"{_TEXT}norm.weight", "output.weight": "language_model.lm_head.weight"}


def convert(spec: VisionSpec | Llama4Spec, model: Tensors) -> Tensors:
    """Give Transformers' tensors by the names that they have in files."""
    found = dict(_list_vision(spec, model) if isinstance(spec, VisionSpec) else _list_llama_4(model))
    return {name: tensor.contiguous() for name, tensor in found.items()}


def find_cross_layers(spec: VisionSpec) -> list[int]:
    """Number the layers that attend to images, as Meta's schedule puts them between the others."""
    step = -(-spec.layers // spec.cross)
    before = list(range(spec.layers))[::-1][::step][: spec.cross][::-1]
    return [layer + place for place, layer in enumerate(before)]


def permute(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Turn interleaved rotary pairs into split halves, head by head."""
    rows, columns = weight.shape
    return weight.view(-1, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def make_table(source: torch.Tensor) -> torch.Tensor:
    """Lay a table by places out by ratios."""
    found = torch.zeros(len(RATIOS) + 1, 4, *source.shape[2:], dtype=source.dtype)
    for number, (rows, columns) in enumerate(RATIOS, 1):
        tiles = [source[row, column] for row in range(rows) for column in range(columns)]
        found[number, : len(tiles)] = torch.stack(tiles)
    return found.flatten(1)


def _list_vision(spec: VisionSpec, model: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    cross = find_cross_layers(spec)
    own = [layer for layer in range(spec.layers + len(cross)) if layer not in cross]
    extra = model["text_model.learnable_embedding.weight"]
    for name, tensor in model.items():
        tower, rest = name.split(".", 1)
        if tower == "vision_model":
            yield _name_vision(rest), _turn_vision(rest, tensor)
        elif rest.startswith("tok_"):
            yield f"{_TEXT}embed_tokens.weight", torch.cat([tensor, extra])
        elif rest in _TOP:
            yield _TOP[rest], tensor
        elif "layers." in rest:
            kind, number, part = rest.split(".", 2)
            key, attends = part.removesuffix(".weight"), kind != "layers"
            layer = (cross if attends else own)[int(number)]
            theirs = _BLOCK[key].replace("A.", "cross_attn." if attends else "self_attn.")
            theirs += ".weight" if part != key else ""
            turned = not attends and key in {"attention.wq", "attention.wk"}
            yield f"{_TEXT}layers.{layer}.{theirs}", permute(tensor, spec.head_dim) if turned else tensor


def _name_vision(rest: str) -> str:
    if rest.startswith("vision_projection"):
        return rest.replace("vision_projection", "multi_modal_projector")
    name = rest.removeprefix("vision_encoder.")
    special = {
        "conv1._linear.weight": "patch_embedding.weight",
        "positional_embedding": "gated_positional_embedding.embedding",
        "gated_positional_embedding": "gated_positional_embedding.tile_embedding.weight",
        "gated_positional_embedding_gate": "gated_positional_embedding.gate",
        "pre_tile_pos_embed.embedding": "pre_tile_positional_embedding.embedding.weight",
        "post_tile_pos_embed.embedding": "post_tile_positional_embedding.embedding.weight",
        "pre_tile_pos_embed.gate": "pre_tile_positional_embedding.gate",
        "post_tile_pos_embed.gate": "post_tile_positional_embedding.gate",
    }
    return "vision_model." + (special.get(name) or _name_layer(name.replace("resblocks", "layers")))


def _name_layer(name: str) -> str:
    for ours, theirs in _LAYER.items():
        name = name.replace(f"{ours}.", f"{theirs}.")
    return name.replace("ln_pre", "layernorm_pre").replace("ln_post", "layernorm_post")


def _turn_vision(rest: str, tensor: torch.Tensor) -> torch.Tensor:
    if rest.endswith("conv1._linear.weight"):
        return tensor.reshape(tensor.shape[0], 3, 14, 14)
    is_table = rest.endswith(("gated_positional_embedding", "_tile_pos_embed.embedding"))
    return make_table(tensor) if is_table else tensor


def _list_llama_4(model: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    halves = {"w_in_shared_FD": "gate_proj", "w_swiglu_FD": "up_proj", "w_out_shared_DF": "down_proj"}
    for name, tensor in model.items():
        if name.startswith("layers."):
            _layers, number, part = name.split(".", 2)
            key, here = part.removesuffix(".weight"), f"{_TEXT}layers.{number}."
            ours = key.rpartition(".")[2]
            if key in _BLOCK:
                theirs = _BLOCK[key].replace("A.", "self_attn.").replace("mlp.", "feed_forward.")
                yield f"{here}{theirs}.weight", tensor
            elif ours == "router_DE":
                yield f"{here}feed_forward.router.weight", tensor.T
            elif ours in halves:
                yield f"{here}feed_forward.shared_expert.{halves[ours]}.weight", tensor
            elif ours == "moe_w_in_eD_F":
                both = torch.cat([tensor, model[name.replace("w_in", "w_swiglu")]], 2)
                yield f"{here}feed_forward.experts.gate_up_proj", both
            elif ours == "moe_w_out_eF_D":
                yield f"{here}feed_forward.experts.down_proj", tensor
        elif name.startswith("vision_embeddings.vision_adapter."):
            yield f"vision_model.vision_adapter.mlp.{'fc1' if 'c_fc' in name else 'fc2'}.weight", tensor
        elif name.startswith("vision_embeddings."):
            ours = name.removeprefix("vision_embeddings.vision_encoder.")
            theirs = _name_layer(ours.replace("transformer.resblocks", "model.layers"))
            yield f"vision_model.{theirs.replace('conv1._linear', 'patch_embedding.linear')}", tensor
        elif name == "vision_projection.weight":
            yield "multi_modal_projector.linear_1.weight", tensor
        elif name == "tok_embeddings.weight":
            yield f"{_TEXT}embed_tokens.weight", tensor
        else:
            yield _TOP[name], tensor
