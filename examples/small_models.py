"""Two small Llama 2 checkpoints in Meta's layout: one of random weights, and one that was trained to tell stories.

    python examples/small_models.py FOLDER

writes the first one, in one shard, to try distconv with.
"""

import json
import struct
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

Tensors = dict[str, torch.Tensor]

STORY_FILES = ("stories260K.bin", "tok512.bin")
_TOKENS = 800
_ROWS, _COLUMNS = 0, 1
_CUTS = {
    "tok_embeddings": _COLUMNS, "output": _ROWS, "wq": _ROWS, "wk": _ROWS, "wv": _ROWS, "wo": _COLUMNS,
    "w1": _ROWS, "w2": _COLUMNS, "w3": _ROWS,
}  # fmt: skip
"""How Llama 2's shards cut each tensor; norms are whole in all of them."""


def write_random_model(folder: Path, shards: int) -> None:
    """Write a model of random weights, whose tokenizer is trained on this project's own licence."""
    dim, heads, key_heads, layers, ffn = 512, 16, 8, 4, 1536
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)

    keys = dim // heads * key_heads
    ones = torch.ones(dim, dtype=torch.bfloat16)
    tensors = {
        "tok_embeddings.weight": draw(_TOKENS, dim),
        "norm.weight": ones,
        "output.weight": draw(_TOKENS, dim),
    }
    for layer in range(layers):
        shapes = {
            "attention.wq": (dim, dim), "attention.wk": (keys, dim), "attention.wv": (keys, dim),
            "attention.wo": (dim, dim), "feed_forward.w1": (ffn, dim), "feed_forward.w2": (dim, ffn),
            "feed_forward.w3": (ffn, dim),
        }  # fmt: skip
        tensors |= {f"layers.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        tensors |= {f"layers.{layer}.{name}_norm.weight": ones for name in ("attention", "ffn")}
    params = {
        "dim": dim, "multiple_of": ffn, "ffn_dim_multiplier": 1.0, "n_heads": heads, "n_kv_heads": key_heads,
        "n_layers": layers, "norm_eps": 1e-05, "vocab_size": -1,
    }  # fmt: skip
    _write_checkpoint(folder, tensors, params, shards)
    _train_tokenizer(folder / "tokenizer.model")


def _train_tokenizer(path: Path) -> None:
    """Train a sentencepiece tokenizer with Meta's settings."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(Path(__file__).parent.parent / "LICENSE"), model_prefix=str(path.with_suffix("")),
        vocab_size=_TOKENS, model_type="bpe", byte_fallback=True, split_digits=True,
        allow_whitespace_only_pieces=True, add_dummy_prefix=True, remove_extra_whitespaces=False,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()


def write_story_model(folder: Path, exported: Path, shards: int) -> None:
    """Write Andrej Karpathy's stories260K (MIT), of which ``exported`` holds the files that llama2.c reads.

    ``stories260K.bin`` is seven 32-bit integers (dim, feed-forward size, layers, heads, key heads, tokens,
    context), then float32: embedding, each kind of tensor for all layers, last norm. The output is the embedding.
    """
    model, tokenizer = (exported / name for name in STORY_FILES)
    content = model.read_bytes()
    dim, ffn, layers, heads, key_heads, tokens, _context = struct.unpack_from("<7i", content)
    values = torch.from_numpy(np.frombuffer(content, np.float32, offset=28).copy())
    keys = dim // heads * key_heads
    kinds = {
        "attention_norm": (dim,), "attention.wq": (dim, dim), "attention.wk": (keys, dim),
        "attention.wv": (keys, dim), "attention.wo": (dim, dim), "ffn_norm": (dim,),
        "feed_forward.w1": (ffn, dim), "feed_forward.w2": (dim, ffn), "feed_forward.w3": (ffn, dim),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (tokens, dim)}
    for kind, shape in kinds.items():
        shapes |= {f"layers.{layer}.{kind}.weight": shape for layer in range(layers)}
    shapes["norm.weight"] = (dim,)
    tensors: Tensors = {}
    at = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tensors[name] = values[at : at + size].view(shape)
        at += size
    tensors["output.weight"] = tensors["tok_embeddings.weight"]
    params = {
        "dim": dim, "multiple_of": 4, "n_heads": heads, "n_kv_heads": key_heads, "n_layers": layers,
        "norm_eps": 1e-05, "vocab_size": -1,
    }  # fmt: skip
    _write_checkpoint(folder, tensors, params, shards)
    (folder / "tokenizer.model").write_bytes(_make_tokenizer(tokenizer.read_bytes()))


def _make_tokenizer(exported: bytes) -> bytes:
    """Give sentencepiece's own file of llama2.c's: the longest piece's size, then score, size and text of each."""
    protocol: Any = import_module("sentencepiece.sentencepiece_model_pb2")
    kinds = protocol.ModelProto.SentencePiece
    special = {0: ("<unk>", kinds.UNKNOWN), 1: ("<s>", kinds.CONTROL), 2: ("</s>", kinds.CONTROL)}
    made = protocol.ModelProto()
    at = 4
    while at < len(exported):
        score, size = struct.unpack_from("<fi", exported, at)
        number = len(made.pieces)
        text = exported[at + 8 : at + 8 + size].decode().replace(" ", "\u2581")
        kind = kinds.BYTE if number < 3 + 256 else kinds.NORMAL
        text, kind = special.get(number, (text, kind))
        made.pieces.add(piece=text, score=score, type=kind)
        at += 8 + size
    made.trainer_spec.model_type = protocol.TrainerSpec.BPE
    made.trainer_spec.vocab_size = len(made.pieces)
    made.trainer_spec.byte_fallback = True
    made.normalizer_spec.name = "identity"
    made.normalizer_spec.add_dummy_prefix = True
    made.normalizer_spec.remove_extra_whitespaces = False
    made.normalizer_spec.escape_whitespaces = True
    return bytes(made.SerializeToString())


def _write_checkpoint(folder: Path, tensors: Tensors, params: Mapping[str, object], shards: int) -> None:
    """Write consolidated.00.pth to the last, cut as Meta cuts them, and params.json."""
    folder.mkdir(parents=True)
    parts = {}
    for name, tensor in tensors.items():
        axis = _CUTS.get(name.split(".")[-2])
        parts[name] = [tensor] * shards if axis is None else list(tensor.chunk(shards, axis))
    for shard in range(shards):
        state = {name: part[shard].clone() for name, part in parts.items()}
        torch.save(state, folder / f"consolidated.{shard:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params) + "\n")


def main() -> None:
    """Write the model of random weights into a new folder."""
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/small_models.py FOLDER")
    folder = Path(sys.argv[1])
    if folder.exists():
        sys.exit(f"{folder}: is there already; give a new folder")
    write_random_model(folder, shards=1)


if __name__ == "__main__":
    main()
