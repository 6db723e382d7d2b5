"""Folders for Meta's code as a conversion leaves them: shards by torch.save, and a receipt of what is in them."""

import hashlib
from pathlib import Path

import torch
from xxhash import xxh3_128

from distconv.output.receipt import RecordedChunk, make_receipt
from distconv.sidecars.meta_checklist import make_checklist
from tests.checkpoints import Tensors
from tests.formats.shards import fresh

IDENTITY: dict[str, object] = {
    "distconv": "0.0",
    "to": "meta",
    "family": "llama-3",
    "instruct": False,
    "dtype": "bfloat16",
    "source": {"config.json": {"sha256": hashlib.sha256(b"{}").hexdigest()}},
}


def read_ranks(source: Path) -> list[Tensors]:
    """Load a checkpoint's ranks, without frequencies, each tensor in a storage of its own."""
    ranks = [torch.load(path) for path in sorted(source.glob("*.pth"))]
    return [{name: part.clone() for name, part in rank.items() if "rope" not in name} for rank in ranks]


def write_shards(folder: Path, ranks: list[Tensors]) -> None:
    """Save ranks as torch does; names are objects of their own, as in a model's state dict."""
    folder.mkdir(exist_ok=True)
    for number, rank in enumerate(ranks):
        state = {fresh(name): part for name, part in rank.items()}
        torch.save(state, folder / f"consolidated.{number:02d}.pth")


def write_records(folder: Path, ranks: list[Tensors]) -> None:
    """Write checklist and receipt of what stands in the folder now."""
    names = [path.name for path in folder.iterdir() if path.name not in {"checklist.chk", "distconv.json"}]
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "checklist.chk").write_bytes(make_checklist(digests))
    rows = []
    for number, rank in enumerate(ranks):
        path = folder / f"consolidated.{number:02d}.pth"
        # Of two names of one storage the first is recorded.
        own = {part.data_ptr(): name for name, part in reversed(rank.items())}.values()
        tensors = {name: xxh3_128(data_of(rank[name])).hexdigest() for name in own}
        rows.append(RecordedChunk(path.name, path.stat().st_size, None, tensors).to_row())
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (*names, "checklist.chk")
        if not name.endswith(".pth")
    }
    identity = IDENTITY | {"shards": len(ranks)}
    (folder / "distconv.json").write_bytes(make_receipt(identity, rows, files, {}))


def write_meta_folder(folder: Path, source: Path) -> Path:
    """Write a finished folder of the weights, params.json and tokenizer of a checkpoint."""
    ranks = read_ranks(source)
    write_shards(folder, ranks)
    for name in ("params.json", "tokenizer.model"):
        (folder / name).write_bytes((source / name).read_bytes())
    write_records(folder, ranks)
    return folder


def data_of(tensor: torch.Tensor) -> bytes:
    """Give a tensor's bytes, row by row."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
