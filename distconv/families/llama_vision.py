"""Llama 3.2 Vision: its tensors in both dialects, told from the tensors' own sizes.

Sources: ``llama3/multimodal/model.py`` of llama-models 0.3.0, ``modeling_mllama.py`` of transformers 5.23.
"""

import math
from collections.abc import Iterator

from distconv.errors import InputError
from distconv.families.cuts import COLUMNS, REPLICATED, ROWS, Cut
from distconv.families.dimensions import Dimensions, MllamaDimensions, VisionEncoder
from distconv.families.operations import ROTARY, SAME, Split, TileTable
from distconv.families.rules import Rule
from distconv.families.shapes import Shapes
from distconv.formats.meta.params import Params

EMBEDDING = "text_model.tok_embeddings.weight"
OUTPUT = "text_model.output.weight"
IGNORED = (r"text_model\.rope\.freqs",)

_ENCODER = "vision_model.vision_encoder."
CHANNELS = 3
HEADS = 16
"""Of the image encoder: a constant of Meta's code, as no tensor tells."""
EXTRA_TOKENS = 8
"""Rows that ``MllamaTextModel`` adds to its embedding, whatever the vocabulary."""


def read_dimensions(shapes: Shapes, params: Params) -> MllamaDimensions:
    """Take the text model's numbers from params.json, all other sizes from the tensors."""
    if params.vision is None:
        raise InputError(f"{params.path}: no 'vision_chunk_size', though the tensors are of Llama 3.2 Vision")
    cross = params.vision.cross_attention_layers
    if cross > params.n_layers:
        raise InputError(
            f"{params.path}: {cross} cross-attention layers, expected at most one for each of {params.n_layers}"
        )
    ffn_dim = shapes.sum_rows("text_model.layers.0.feed_forward.w1.weight")
    text = Dimensions.of(params, ffn_dim=ffn_dim, vocab=shapes.sum_rows(EMBEDDING))
    positions, projection = f"{_ENCODER}positional_embedding", "vision_model.vision_projection.weight"
    vision = read_encoder(shapes, _ENCODER, positions, projection, heads=HEADS, tiles=params.vision.max_tiles)
    dimensions = MllamaDimensions(text, cross, EXTRA_TOKENS, vision)
    findings = [*_check(shapes, params, dimensions)]
    if findings:
        raise InputError.of(findings)
    return dimensions


def read_encoder(
    shapes: Shapes, prefix: str, positions: str, projection: str, *, heads: int, tiles: int = 1
) -> VisionEncoder:
    """Read the sizes of an image encoder whose tensors' names begin with ``prefix``, but for these two."""
    embedding = f"{prefix}conv1._linear.weight"
    return VisionEncoder(
        width=shapes.sum_rows(embedding),
        layers=shapes.count_layers(f"{prefix}transformer.resblocks"),
        global_layers=shapes.count_layers(f"{prefix}global_transformer.resblocks"),
        heads=heads,
        ffn_dim=shapes.sum_rows(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"),
        channels=CHANNELS,
        patch=math.isqrt(shapes.columns(embedding) // CHANNELS),
        positions=shapes.first(positions)[0],
        tiles=tiles,
        output_dim=shapes.columns(projection),
    )


def _check(shapes: Shapes, params: Params, sizes: MllamaDimensions) -> Iterator[str]:
    """Tell of what the sizes must be to each other for there to be a model, and the layers that there are."""
    vision = sizes.vision
    yield from shapes.check_layers("text_model.layers", sizes.text.layers, params.path)
    yield from shapes.check_layers("text_model.cross_attention_layers", len(sizes.cross_numbers), params.path)
    if vision.width % vision.heads:
        yield f"{_ENCODER}conv1._linear.weight: {vision.width} rows in all shards, expected a multiple of {vision.heads} heads"
    if params.vision is not None and vision.image_size != params.vision.chunk_size:
        yield (
            f"{params.path}: vision_chunk_size {params.vision.chunk_size}, {_ENCODER}positional_embedding is for tiles of "
            f"{vision.image_size}; Meta's code resamples it, which no copy does: give the params.json of these files"
        )


def make_rules(sizes: MllamaDimensions) -> tuple[Rule, ...]:
    """Give all tensors of a model of these sizes."""
    return (*_list_text(sizes), *_list_vision(sizes))


def _list_text(sizes: MllamaDimensions) -> Iterator[Rule]:
    embedding = "language_model.model.embed_tokens.weight"
    heads = Cut(0, unit=sizes.head_dim)
    yield Rule(EMBEDDING, embedding, SAME, ("vocab", "dim"), ROWS)
    yield Rule("text_model.learnable_embedding.weight", embedding, SAME, ("extra", "dim"), ROWS)
    for kind, ours, theirs, rotary in (
        ("text", "layers", "self_attn", ROTARY),
        ("cross", "cross_attention_layers", "cross_attn", SAME),
    ):
        block, layer = f"text_model.{ours}.{{i}}.", "language_model.model.layers.{i}."
        attention = f"{layer}{theirs}."
        for source, target, operation, shape, cut in (
            ("attention.wq.weight", f"{attention}q_proj.weight", rotary, ("q", "dim"), heads),
            ("attention.wk.weight", f"{attention}k_proj.weight", rotary, ("kv", "dim"), heads),
            ("attention.wv.weight", f"{attention}v_proj.weight", SAME, ("kv", "dim"), heads),
            (
                "attention.wo.weight",
                f"{attention}o_proj.weight",
                SAME,
                ("dim", "q"),
                Cut(1, unit=sizes.head_dim),
            ),
            ("feed_forward.w1.weight", f"{layer}mlp.gate_proj.weight", SAME, ("ffn", "dim"), ROWS),
            ("feed_forward.w2.weight", f"{layer}mlp.down_proj.weight", SAME, ("dim", "ffn"), COLUMNS),
            ("feed_forward.w3.weight", f"{layer}mlp.up_proj.weight", SAME, ("ffn", "dim"), ROWS),
            ("attention_norm.weight", f"{layer}input_layernorm.weight", SAME, ("dim",), REPLICATED),
            ("ffn_norm.weight", f"{layer}post_attention_layernorm.weight", SAME, ("dim",), REPLICATED),
        ):
            yield Rule(block + source, target, operation, shape, cut, kind)
    for name in ("q_norm", "k_norm"):
        block = "text_model.cross_attention_layers.{i}.attention."
        theirs = f"language_model.model.layers.{{i}}.cross_attn.{name}.weight"
        yield Rule(f"{block}{name}.weight", theirs, SAME, ("head",), REPLICATED, "cross")
    for name, theirs in (("gate_attn", "attn"), ("gate_ffwd", "mlp")):
        target = f"language_model.model.layers.{{i}}.cross_attn_{theirs}_gate"
        yield Rule(
            f"text_model.cross_attention_layers.{{i}}.{name}", target, SAME, ("one",), REPLICATED, "cross"
        )
    yield Rule("text_model.norm.weight", "language_model.model.norm.weight", SAME, ("dim",), REPLICATED)
    yield Rule(OUTPUT, "language_model.lm_head.weight", SAME, ("vocab", "dim"), ROWS)


def _list_vision(sizes: MllamaDimensions) -> Iterator[Rule]:
    vision, to = sizes.vision, "vision_model."
    patches = Split(1, (vision.channels, vision.patch, vision.patch))
    tiles = TileTable(vision.tiles, vision.positions)
    yield Rule(
        f"{_ENCODER}conv1._linear.weight", f"{to}patch_embedding.weight", patches, ("width", "pixels"), ROWS
    )
    yield Rule(f"{_ENCODER}class_embedding", f"{to}class_embedding", SAME, ("width",), REPLICATED)
    for name in ("pre", "post"):
        for part in ("weight", "bias"):
            source, target = f"{_ENCODER}ln_{name}.{part}", f"{to}layernorm_{name}.{part}"
            yield Rule(source, target, SAME, ("width",), REPLICATED)
        source, target = f"{_ENCODER}{name}_tile_pos_embed.", f"{to}{name}_tile_positional_embedding."
        shape = ("tiles", "tiles", "one", "width")
        yield Rule(
            f"{source}embedding", f"{target}embedding.weight", TileTable(vision.tiles, 1), shape, REPLICATED
        )
        yield Rule(f"{source}gate", f"{target}gate", SAME, ("one",), REPLICATED)
    position, theirs = f"{_ENCODER}gated_positional_embedding", f"{to}gated_positional_embedding."
    shape = ("tiles", "tiles", "positions", "width")
    yield Rule(
        f"{_ENCODER}positional_embedding", f"{theirs}embedding", SAME, ("positions", "width"), REPLICATED
    )
    yield Rule(position, f"{theirs}tile_embedding.weight", tiles, shape, REPLICATED)
    yield Rule(f"{position}_gate", f"{theirs}gate", SAME, ("one",), REPLICATED)
    for kind, name in (("vision", "transformer"), ("global", "global_transformer")):
        for source, target, sides, cut in list_encoder_layer(vision, bias=False):
            block, layer = f"{_ENCODER}{name}.resblocks.{{i}}.", f"{to}{name}.layers.{{i}}."
            yield Rule(block + source, layer + target, SAME, sides, cut, kind)
    for name in ("gate_attn", "gate_ffn"):
        source = f"{_ENCODER}global_transformer.resblocks.{{i}}.{name}"
        yield Rule(
            source, f"{to}global_transformer.layers.{{i}}.{name}", SAME, ("one",), REPLICATED, "global"
        )
    projection, projector = "vision_model.vision_projection.", "multi_modal_projector."
    yield Rule(f"{projection}weight", f"{projector}weight", SAME, ("dim", "features"), ROWS)
    yield Rule(f"{projection}bias", f"{projector}bias", SAME, ("dim",), ROWS)


def list_encoder_layer(
    vision: VisionEncoder, *, bias: bool
) -> Iterator[tuple[str, str, tuple[str, ...], Cut]]:
    """Give the names, shapes and cuts of an image encoder's layer; ``bias`` says whether its attention has any."""
    heads = Cut(0, unit=vision.width // vision.heads)
    for name in "qkv":
        yield f"attn.w{name}.weight", f"self_attn.{name}_proj.weight", ("width", "width"), heads
        if bias:
            yield f"attn.w{name}.bias", f"self_attn.{name}_proj.bias", ("width",), heads
    yield "attn.wo.weight", "self_attn.o_proj.weight", ("width", "width"), Cut(1, unit=heads.unit)
    if bias:
        yield "attn.wo.bias", "self_attn.o_proj.bias", ("width",), REPLICATED
    yield "mlp.c_fc.weight", "mlp.fc1.weight", ("hidden", "width"), ROWS
    yield "mlp.c_fc.bias", "mlp.fc1.bias", ("hidden",), ROWS
    yield "mlp.c_proj.weight", "mlp.fc2.weight", ("width", "hidden"), COLUMNS
    yield "mlp.c_proj.bias", "mlp.fc2.bias", ("width",), REPLICATED
    for number, theirs in ((1, "input"), (2, "post_attention")):
        for part in ("weight", "bias"):
            yield f"ln_{number}.{part}", f"{theirs}_layernorm.{part}", ("width",), REPLICATED
