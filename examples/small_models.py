"""Two small Llama 2 checkpoints in Meta's layout: one of random weights, and one that was trained to tell stories.

    python examples/small_models.py FOLDER

writes the first one, in one shard, to try distconv with; with --gigabytes N a larger one of its kind, in eight.
"""

import argparse
import json
import math
import shlex
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import sentencepiece
    import torch
except ModuleNotFoundError as error:
    sys.exit(
        f"no {error.name} here; install distconv as README.md says under Start, or call this by the Python of the "
        "virtual environment that has it"
    )

Tensors = dict[str, torch.Tensor]

STORY_FILES = ("stories260K.bin", "tok512.bin")
_TOKENS = 800
_POOL = 1 << 22
"""More values than any tensor has: each is a stretch of these, which takes no time however large the model is."""
_ROWS, _COLUMNS = 0, 1
_CUTS = {
    "tok_embeddings": _COLUMNS, "output": _ROWS, "wq": _ROWS, "wk": _ROWS, "wv": _ROWS, "wo": _COLUMNS,
    "w1": _ROWS, "w2": _COLUMNS, "w3": _ROWS,
}  # fmt: skip
"""How Llama 2's shards cut each tensor; norms are whole in all of them."""


def write_random_model(folder: Path, shards: int, least_bytes: int = 0) -> None:
    """Write a Llama 2 of random weights, whose tokenizer is trained on this project's own licence.

    It has four layers, or as many as ``least_bytes`` take; one shard of it is in memory at a time.
    """
    dim, heads, key_heads, ffn = 512, 16, 8, 1536
    keys = dim // heads * key_heads
    kinds: dict[str, tuple[int, ...]] = {
        "attention.wq": (dim, dim), "attention.wk": (keys, dim), "attention.wv": (keys, dim), "attention.wo": (dim, dim),
        "feed_forward.w1": (ffn, dim), "feed_forward.w2": (dim, ffn), "feed_forward.w3": (ffn, dim),
        "attention_norm": (dim,), "ffn_norm": (dim,),
    }  # fmt: skip
    layer_bytes = 2 * sum(math.prod(shape) for shape in kinds.values())
    layers = max(4, -(-least_bytes // layer_bytes))
    shapes = {"tok_embeddings.weight": (_TOKENS, dim), "norm.weight": (dim,), "output.weight": (_TOKENS, dim)}
    for layer in range(layers):
        shapes |= {f"layers.{layer}.{kind}.weight": shape for kind, shape in kinds.items()}
    params = {
        "dim": dim, "multiple_of": ffn, "ffn_dim_multiplier": 1.0, "n_heads": heads, "n_kv_heads": key_heads,
        "n_layers": layers, "norm_eps": 1e-05, "vocab_size": -1,
    }  # fmt: skip
    _write_checkpoint(folder, _draw(shapes, shards), params)
    _train_tokenizer(folder / "tokenizer.model")


def _draw(shapes: Mapping[str, tuple[int, ...]], shards: int) -> Iterator[Tensors]:
    """Give one shard after the other, each tensor of it a random stretch of the same random values; norms are ones."""
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(_POOL, generator=generator) * 0.05).to(torch.bfloat16)
    for _shard in range(shards):
        state = {}
        for name, shape in shapes.items():
            axis = _find_cut(name)
            if axis is None:
                state[name] = torch.ones(shape, dtype=torch.bfloat16)
                continue
            part = [size // shards if at == axis else size for at, size in enumerate(shape)]
            size = math.prod(part)
            start = int(torch.randint(_POOL - size, (1,), generator=generator))
            state[name] = pool[start : start + size].view(part)
        yield state


def _find_cut(name: str) -> int | None:
    return _CUTS.get(name.split(".")[-2])


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
    _write_checkpoint(folder, _cut(tensors, shards), params)
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


def _cut(tensors: Tensors, shards: int) -> Iterator[Tensors]:
    """Give one shard after the other, cut as Meta cuts them."""
    for shard in range(shards):
        yield {
            name: tensor if (axis := _find_cut(name)) is None else tensor.chunk(shards, axis)[shard]
            for name, tensor in tensors.items()
        }


def _write_checkpoint(folder: Path, shards: Iterable[Tensors], params: Mapping[str, object]) -> None:
    """Write consolidated.00.pth to the last, and params.json."""
    folder.mkdir(parents=True)
    for number, state in enumerate(shards):
        # A view would be saved with all that it is a view of.
        own = {name: tensor.clone() for name, tensor in state.items()}
        torch.save(own, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params) + "\n")


def main() -> None:
    """Write the model of random weights into a new folder."""
    parser = argparse.ArgumentParser(
        description="Write a small Llama 2 of random weights in Meta's layout, to try distconv with."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder, whatever its name")
    parser.add_argument(
        "--gigabytes",
        metavar="N",
        type=int,
        default=0,
        help="a larger one, of so many GB in 8 shards, whose conversion takes long enough to be interrupted",
    )
    given = parser.parse_args()
    folder, gigabytes = given.folder, given.gigabytes
    if gigabytes < 0:
        parser.error(f"--gigabytes {gigabytes}: expected 1 or more")
    if folder.exists():
        sys.exit(f"{folder}: is there already; give a new folder")
    write_random_model(folder, 8 if gigabytes else 1, gigabytes * 10**9)
    made = f"a random Llama 2 of {gigabytes} GB in 8 shards" if gigabytes else "a small random Llama 2"
    print(f"{folder}: {made}; next: distconv inspect {shlex.quote(str(folder))}")


if __name__ == "__main__":
    main()
