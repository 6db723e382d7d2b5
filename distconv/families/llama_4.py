"""Llama 4 and Llama Guard 4: their tensors in both dialects, told from the tensors' own sizes.

Sources: ``llama4/`` and ``checkpoint.py`` of llama-models 0.3.0, ``modeling_llama4.py`` of transformers 5.23. Query and key
rows are the same in both: Transformers rotates pairs of neighbours here, as Meta does.
"""

from collections.abc import Iterator

from distconv.errors import InputError
from distconv.families.cuts import COLUMNS, REPLICATED, ROWS, Cut
from distconv.families.dimensions import Dimensions, Llama4Dimensions, VisionEncoder
from distconv.families.llama_vision import list_encoder_layer, read_encoder
from distconv.families.operations import SAME, TRANSPOSED, Split
from distconv.families.rules import Rule
from distconv.families.shapes import Shapes
from distconv.formats.meta.multimodal import TowerParams
from distconv.formats.meta.params import Params

EMBEDDING = "tok_embeddings.weight"
OUTPUT = "output.weight"
IGNORED = (
    r"rope\.freqs",
    r"freqs_cis|freq_cis",
    r"layers\.\d+\.(.*\.)?_extra_state",
    r"layers\.\d+\.feed_forward\.((running|global)_gate_stats_3E|expert_activation_DE)",
    r"vision_embeddings\.vision_adapter\.fc\..*",
)
"""Statistics of training, and what Meta's code has and does not use."""

_BLOCK, _THEIRS = "layers.{i}.", "language_model.model.layers.{i}."
_ENCODER = "vision_embeddings.vision_encoder."
_ADAPTER = "vision_embeddings.vision_adapter.mlp.c_fc.weight"


def read_dimensions(shapes: Shapes, params: Params) -> Llama4Dimensions:
    """Take counts from params.json, sizes from the tensors."""
    found = params.llama_4
    if found is None:
        raise InputError(f"{params.path}: no 'vision_args', though the tensors are of Llama 4")
    findings = [*shapes.check_layers("layers", params.n_layers, params.path)]
    if findings:
        raise InputError.of(findings)
    step = 0 if found.experts is None else found.experts.step
    moe = tuple(range(step - 1, params.n_layers, step)) if step else ()
    _check_kinds(shapes, params, moe)
    dense = next((layer for layer in range(params.n_layers) if layer not in moe), None)
    text = Dimensions.of(params, ffn_dim=_read_dense(shapes, dense), vocab=shapes.sum_rows(EMBEDDING))
    shared = f"layers.{moe[0]}.feed_forward.w_in_shared_FD.weight" if moe else None
    return Llama4Dimensions(
        text=text,
        experts=found.experts.experts if found.experts and moe else 0,
        expert_ffn_dim=0 if shared is None else shapes.sum_rows(shared),
        moe_layers=moe,
        vision=_read_encoder(shapes, params.path, found.tower),
        adapter_dim=shapes.columns(_ADAPTER),
    )


def _check_kinds(shapes: Shapes, params: Params, moe: tuple[int, ...]) -> None:
    """Raise InputError for the first layer that has experts, or none, otherwise than params.json says."""
    for layer in range(params.n_layers):
        block = f"layers.{layer}.feed_forward."
        routed = shapes.has(f"{block}router_DE")
        dense = shapes.has(f"{block}mlp.fc1_weight") or shapes.has(f"{block}w1.weight")
        if routed not in {dense, layer in moe}:
            raise InputError(
                f"{params.path}: by moe_args {f'layers {list(moe)}' if moe else 'no layers'} have experts, in the shards layer "
                f"{layer} has {'some' if routed else 'none'}; take the params.json of this model"
            )


def _read_dense(shapes: Shapes, layer: int | None) -> int:
    """Give the feed-forward size of a layer without experts; 0 where there is none."""
    if layer is None:
        return 0
    fused = f"layers.{layer}.feed_forward.mlp.fc1_weight"
    if shapes.has(fused):
        return shapes.sum_rows(fused) // 2
    return shapes.sum_rows(f"layers.{layer}.feed_forward.w1.weight")


def _read_encoder(shapes: Shapes, path: str, tower: TowerParams) -> VisionEncoder:
    """Take the encoder's sizes from the tensors; InputError with all that ``vision_args`` have otherwise."""
    positions, projection = f"{_ENCODER}positional_embedding_vlm", "vision_projection.weight"
    vision = read_encoder(shapes, _ENCODER, positions, projection, heads=tower.heads)
    findings = list(_find_other_sizes(vision, tower, shapes.columns(_ADAPTER)))
    if findings:
        raise InputError.of(
            f"{path}: vision_args.{finding}; take the params.json of this model, or download the missing shards"
            for finding in findings
        )
    return vision


def _find_other_sizes(vision: VisionEncoder, tower: TowerParams, adapter_dim: int) -> Iterator[str]:
    if vision.width % tower.heads:
        yield f"n_heads {tower.heads} does not divide the encoder's width {vision.width}"
    if vision.width != tower.width:
        # Whatever else follows from it says no more.
        yield f"dim is {tower.width}, the tensors have {vision.width}"
        return
    for key, said, held in (
        ("n_layers", tower.layers, vision.layers),
        ("output_dim", tower.output_dim, vision.output_dim),
        ("patch_size", tower.patch, vision.patch),
        ("image_size", tower.image_size, vision.image_size),
    ):
        if said != held:
            yield f"{key} is {said}, the tensors have {held}"
    # The shuffle lays a square of neighbours side by side.
    if adapter_dim != round(vision.width / tower.pixel_shuffle_ratio**2):
        yield (
            f"pixel_shuffle_ratio is {tower.pixel_shuffle_ratio:g}: {vision.width} wide patches become "
            f"{vision.width / tower.pixel_shuffle_ratio**2:g} wide, the adapter takes {adapter_dim}"
        )


def make_rules(sizes: Llama4Dimensions) -> tuple[Rule, ...]:
    """Give all tensors of a model of these sizes."""
    return (
        Rule(EMBEDDING, "language_model.model.embed_tokens.weight", SAME, ("vocab", "dim"), ROWS),
        *_list_attention(sizes),
        *_list_dense(),
        *(_list_experts(sizes) if sizes.moe_layers else ()),
        Rule("norm.weight", "language_model.model.norm.weight", SAME, ("dim",), REPLICATED),
        Rule(OUTPUT, "language_model.lm_head.weight", SAME, ("vocab", "dim"), ROWS),
        *_list_vision(sizes),
    )


def _list_attention(sizes: Llama4Dimensions) -> Iterator[Rule]:
    heads, stored = Cut(0, unit=sizes.head_dim), f"{_BLOCK}attention.wqkv.weight"
    for name, symbol in (("q", "q"), ("k", "kv"), ("v", "kv")):
        source, target = f"{_BLOCK}attention.w{name}.weight", f"{_THEIRS}self_attn.{name}_proj.weight"
        yield Rule(source, target, SAME, (symbol, "dim"), heads, stored=stored)
    columns = Cut(1, unit=sizes.head_dim)
    yield Rule(
        f"{_BLOCK}attention.wo.weight", f"{_THEIRS}self_attn.o_proj.weight", SAME, ("dim", "q"), columns
    )
    norm, stored = f"{_THEIRS}input_layernorm.weight", f"{_BLOCK}attention.wqkv.layer_norm_weight"
    yield Rule(f"{_BLOCK}attention_norm.weight", norm, SAME, ("dim",), REPLICATED, stored=stored)


def _list_dense() -> Iterator[Rule]:
    ours, theirs = f"{_BLOCK}feed_forward.", f"{_THEIRS}feed_forward."
    for name, target in ((1, "gate_proj"), (3, "up_proj")):
        shape, stored = ("ffn", "dim"), f"{ours}mlp.fc1_weight"
        yield Rule(
            f"{ours}w{name}.weight", f"{theirs}{target}.weight", SAME, shape, ROWS, "dense", stored=stored
        )
    down, shape, stored = f"{theirs}down_proj.weight", ("dim", "ffn"), f"{ours}mlp.fc2_weight"
    yield Rule(f"{ours}w2.weight", down, SAME, shape, COLUMNS, "dense", stored=stored)
    yield _make_norm("dense", f"{ours}mlp.layer_norm_weight")


def _make_norm(kind: str, stored: str) -> Rule:
    target = f"{_THEIRS}post_attention_layernorm.weight"
    return Rule(f"{_BLOCK}ffn_norm.weight", target, SAME, ("dim",), REPLICATED, kind, stored=stored)


def _list_experts(sizes: Llama4Dimensions) -> Iterator[Rule]:
    ours, theirs = f"{_BLOCK}feed_forward.", f"{_THEIRS}feed_forward."
    count, dim, ffn = sizes.experts, sizes.dim, sizes.expert_ffn_dim
    yield _make_norm("moe", f"{ours}norm.weight")
    router = f"{theirs}router.weight"
    yield Rule(f"{ours}router_DE", router, TRANSPOSED, ("dim", "experts"), REPLICATED, "moe")
    for source, target, shape, cut in (
        ("w_in_shared_FD", "gate_proj", ("expert_ffn", "dim"), ROWS),
        ("w_swiglu_FD", "up_proj", ("expert_ffn", "dim"), ROWS),
        ("w_out_shared_DF", "down_proj", ("dim", "expert_ffn"), COLUMNS),
    ):
        yield Rule(
            f"{ours}{source}.weight", f"{theirs}shared_expert.{target}.weight", SAME, shape, cut, "moe"
        )
    for source in ("moe_w_in_eD_F", "moe_w_swiglu_eD_F"):
        target, shape, each = (
            f"{theirs}experts.gate_up_proj",
            ("experts_dim", "expert_ffn"),
            Split(0, (count, dim)),
        )
        yield Rule(f"{ours}experts.{source}", target, each, shape, COLUMNS, "moe", axis=2)
    each, shape, cut = Split(0, (count, ffn)), ("experts_ffn", "dim"), Cut(0, groups=count)
    yield Rule(f"{ours}experts.moe_w_out_eF_D", f"{theirs}experts.down_proj", each, shape, cut, "moe")


def _list_vision(sizes: Llama4Dimensions) -> Iterator[Rule]:
    vision, to, width = sizes.vision, "vision_model.", ("width",)
    patches = f"{to}patch_embedding.linear.weight"
    yield Rule(f"{_ENCODER}conv1._linear.weight", patches, SAME, ("width", "pixels"), ROWS)
    yield Rule(f"{_ENCODER}class_embedding", f"{to}class_embedding", SAME, width, REPLICATED)
    shape = ("positions", "width")
    position = "positional_embedding_vlm"
    yield Rule(f"{_ENCODER}{position}", f"{to}{position}", SAME, shape, REPLICATED)
    for name in ("pre", "post"):
        for part in ("weight", "bias"):
            yield Rule(f"{_ENCODER}ln_{name}.{part}", f"{to}layernorm_{name}.{part}", SAME, width, REPLICATED)
    for source, target, sides, cut in list_encoder_layer(vision, bias=True):
        block, layer = f"{_ENCODER}transformer.resblocks.{{i}}.", f"{to}model.layers.{{i}}."
        yield Rule(block + source, layer + target, SAME, sides, cut, "vision")
    adapter, theirs = "vision_embeddings.vision_adapter.mlp.", f"{to}vision_adapter.mlp."
    yield Rule(f"{adapter}c_fc.weight", f"{theirs}fc1.weight", SAME, ("features", "shuffled"), ROWS)
    yield Rule(f"{adapter}c_proj.weight", f"{theirs}fc2.weight", SAME, ("features", "features"), COLUMNS)
    projector = "multi_modal_projector.linear_1.weight"
    yield Rule("vision_projection.weight", projector, SAME, ("dim", "features"), ROWS)
