"""Run as a process of its own: logits of Meta's Llama 4 on the CPU, one process, in float32.

``python -m tests.meta_image_logits REQUESTS ANSWERS`` loads the one shard of each request's folder into Meta's modules and
runs them on its tokens, and its tiles where there are any; both are files of torch's. What of Meta's code needs CUDA or
torchvision is replaced; how it loads and computes is not touched.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fairscale.nn.model_parallel import initialize
from torch import distributed


def build(folder: Path) -> torch.nn.Module:
    """Make Meta's model, and let it take the shard, whose fused names its own hooks take apart."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules.setdefault(name, ModuleType(name))
    torch.Tensor.cuda = lambda tensor, *_args, **_options: tensor  # type: ignore[method-assign, assignment]
    from llama_models.llama4.args import ModelArgs
    from llama_models.llama4.model import Transformer

    args = ModelArgs(**json.loads((folder / "params.json").read_text()), max_batch_size=2, max_seq_len=64)
    model = Transformer(args).float()
    state = torch.load(folder / "consolidated.00.pth", weights_only=False)
    known = model.state_dict().keys()
    # Statistics of training have no place in the modules, whose loader takes only what they have.
    state = {
        name: tensor for name, tensor in state.items() if "_stats_" not in name and "activation" not in name
    }
    found = model.load_state_dict({name: _widen(tensor) for name, tensor in state.items()}, strict=False)
    assert not found.missing_keys
    assert not [name for name in found.unexpected_keys if "_extra_state" not in name], known
    return model.eval()


def _widen(value: object) -> object:
    return value.float() if isinstance(value, torch.Tensor) else value


def run(request: dict[str, Any]) -> torch.Tensor:
    """Give the logits: (sequences, length, vocabulary)."""
    from llama_models.llama4.datatypes import MaskedEmbedding, TransformerInput

    model, tokens = build(Path(request["meta"])), request["tokens"]
    embedding = None
    with torch.inference_mode():
        if request["tiles"] is not None:
            mask = (tokens == request["patch"]).unsqueeze(-1)
            images = [[tiles] for tiles in request["tiles"]]
            embedding = MaskedEmbedding(
                embedding=model.vision_embeddings(images, mask, model.tok_embeddings(tokens)),  # type: ignore[operator]
                mask=mask,
            )
        found = model(TransformerInput(tokens=tokens, tokens_position=0, image_embedding=embedding))
    logits: torch.Tensor = found.logits
    return logits


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        distributed.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=0, world_size=1)
        initialize.initialize_model_parallel(1)
        torch.save([run(request) for request in torch.load(sys.argv[1], weights_only=True)], sys.argv[2])
        distributed.destroy_process_group()
