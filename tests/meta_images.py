"""Meta's models that see, on the CPU: how one rank loads its shard and computes logits, in float32.

Part of ``tests/meta_ranks.py``. What of Meta's code needs CUDA or torchvision, and constants that allow no small model,
are replaced; how it loads and computes is not touched.
"""

import json
from pathlib import Path
from typing import Any

import torch
from fairscale.nn.model_parallel.layers import ColumnParallelLinear

from tests.meta_model import Images

INNER_LAYERS = (3, 7, 15, 23, 30)


def shrink_encoder(folder: Path) -> None:
    """Give the image encoder of Llama 3.2 Vision, a constant in Meta's code, the sizes that the first shard has.

    Tiles come as tensors, so that nothing is left to do for the transform of images.
    """
    from llama_models.llama3.multimodal import model

    state = torch.load(folder / "consolidated.00.pth", mmap=True)
    width = state["vision_model.vision_encoder.class_embedding"].shape[0]
    layers, global_layers = (
        len({name.split(".resblocks.")[1].split(".")[0] for name in state if f".{kind}.resblocks." in name})
        for kind in ("transformer", "global_transformer")
    )
    inner = [layer for layer in INNER_LAYERS if layer < layers]
    sizes = {
        "width": width, "layers": layers, "n_global_layers": global_layers, "return_intermediate": inner
    }  # fmt: skip
    make_encoder = model.VisionEncoder
    model.VisionEncoder = lambda **given: make_encoder(**given | sizes)

    class SmallVision(model.CrossAttentionTransformerVision):
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            self.vision_projection = ColumnParallelLinear(
                width * (len(inner) + 1), args.dim, bias=True, init_method=lambda weight: weight
            )

    model.CrossAttentionTransformerVision = SmallVision
    model.VariableSizeImageTransform = lambda **_sizes: lambda given, **_options: given


def run_vision(model: Any, tokens: torch.Tensor, images: Images | None) -> torch.Tensor:
    """Do what ``generation.py`` of Llama 3.2 Vision does for the first token of an answer, and give all logits."""
    from llama_models.llama3.chat_format import create_vision_mask

    seen: list[list[object]] = [[] for _ in tokens]
    masks: list[list[list[int]]] = [[] for _ in tokens]
    if images is not None:
        # As many tiles as the image has, and no padding: that is Meta's code's part.
        seen = [
            [(tiles[: rows * columns], (rows, columns))]
            for tiles, (rows, columns) in zip(images.tiles, images.ratios, strict=True)
        ]
        masks = [create_vision_mask(sequence.tolist(), images.token) for sequence in tokens]
    length = tokens.shape[1]
    caches, cross, rows_seen = model.compute_vision_tokens_masks(seen, masks, length, torch.device("cpu"))
    logits: torch.Tensor = model(torch.arange(length), tokens, cross, rows_seen, caches, images is None)
    return logits


def load_llama_4(folder: Path, rank: int, tokens: torch.Tensor) -> Any:
    """Make Llama 4, and let it take the rank's shard, whose fused names its own hooks take apart.

    Its ``Llama4.build`` wants CUDA, and experts in every model.
    """
    torch.Tensor.cuda = lambda tensor, *_args, **_options: tensor  # type: ignore[method-assign, assignment]
    from llama_models.llama4.args import ModelArgs
    from llama_models.llama4.model import Transformer

    params = json.loads((folder / "params.json").read_text())
    model = Transformer(ModelArgs(**params, max_batch_size=len(tokens), max_seq_len=tokens.shape[1])).float()
    state = torch.load(folder / f"consolidated.{rank:02d}.pth", weights_only=False)
    found = model.load_state_dict({name: _widen(tensor) for name, tensor in state.items()}, strict=False)
    # Statistics of training have no place in the modules, whose own loader says nothing of what it does not take.
    dropped = ("_extra_state", "_gate_stats_3E", "expert_activation_DE")
    assert not found.missing_keys
    assert not [name for name in found.unexpected_keys if not name.endswith(dropped)]
    return model.eval()


def _widen(value: object) -> object:
    return value.float() if isinstance(value, torch.Tensor) else value


def run_llama_4(model: Any, tokens: torch.Tensor, images: Images | None) -> torch.Tensor:
    """Do what ``generation.py`` of Llama 4 does for the first token of an answer, and give all logits."""
    from llama_models.llama4.datatypes import MaskedEmbedding, TransformerInput

    embedding = None
    if images is not None:
        mask = (tokens == images.token).unsqueeze(-1)
        seen = [[tiles] for tiles in images.tiles]
        embedding = MaskedEmbedding(
            embedding=model.vision_embeddings(seen, mask, model.tok_embeddings(tokens)), mask=mask
        )
    found = model(TransformerInput(tokens=tokens, tokens_position=0, image_embedding=embedding))
    logits: torch.Tensor = found.logits
    return logits
