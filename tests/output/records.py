"""Journals and receipts of a conversion of one chunk, written without converting anything."""

import json
from pathlib import Path

from distconv.output.receipt import RecordedChunk, make_receipt
from distconv.storage.local import LocalStorage
from distconv.version import VERSION

Json = dict[str, object]
STORAGE = LocalStorage()
JOURNAL, RECEIPT = ".distconv.journal", "distconv.json"
DIGEST, MD5, SHA256 = "0" * 32, "1f" * 16, "2" * 64
SOURCE: Json = {"params.json": {"sha256": SHA256}}
IDENTITY: Json = {
    "distconv": VERSION, "family": "llama-2", "instruct": False, "dtype": "bfloat16", "max_shard_size": 5,
    "tied": True, "kv_replication": 2, "source": SOURCE, "plan_sha256": SHA256,
}  # fmt: skip
ROW: Json = {
    "name": "model.safetensors",
    "xxh3_128": DIGEST,
    "md5": MD5,
    "version": "7",
    "tensors": {"a": DIGEST},
}


def write_journal(folder: Path, **changes: object) -> None:
    """Write a journal of a conversion that has finished one chunk."""
    content = {"conversion": IDENTITY, "chunks": [ROW]} | changes
    (folder / JOURNAL).write_text(json.dumps(content))


def write_receipt(folder: Path, files: dict[str, str], identity: Json = IDENTITY) -> None:
    """Write the receipt of a conversion of one chunk."""
    chunk = RecordedChunk("model.safetensors", 1, DIGEST, {"a": DIGEST})
    files = {"config.json": SHA256} | files
    (folder / RECEIPT).write_bytes(make_receipt(identity, [chunk.to_row()], files, {}))
