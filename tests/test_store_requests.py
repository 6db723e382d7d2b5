"""How many requests conversions send: what is billed, and what a store bounds."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("botocore", reason="needs the extra s3")

from tests.benchmarks.checkpoint import llama_70b
from tests.checkpoints import Spec, write_sparse
from tests.object_store import ObjectStore, start

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """Give a store that keeps nothing of weights."""
    with start("models", discard=True, random_etags=True, verify_signatures=False) as found:
        yield found


def convert(store: ObjectStore, source: Path, folder: Path) -> dict[str, object]:
    """Convert from the store into it, in a process of its own; gives the report."""
    store.share(source, "models", f"{folder.name}/in/")
    store.clear_requests()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "AWS_ENDPOINT_URL": store.url, "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "distconv",
        "convert",
        f"s3://models/{folder.name}/in",
        f"s3://models/{folder.name}/out",
        "--json",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    report: dict[str, object] = json.loads(ended.stdout)
    return report


@pytest.mark.slow
def test_a_layer_of_70b_takes_no_more_reads_than_8_mib_each_whatever_is_read(
    store: ObjectStore, sentencepiece_file: Path, tmp_path: Path
) -> None:
    source = write_sparse(tmp_path / "in", llama_70b(1))
    (source / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    size = sum(path.stat().st_size for path in source.iterdir())
    convert(store, source, tmp_path)
    # Who owns OUTPUT is asked for as time goes by.
    read = [record for record in store.requests("GetObject") if ".distconv.owner." not in record.key]
    assert len(read) <= 1.01 * size / (8 << 20)


def test_of_each_shard_the_beginning_and_the_end_are_read_once_beside_its_data(
    store: ObjectStore, checkpoint: Write, tmp_path: Path
) -> None:
    source = checkpoint(SPEC)
    convert(store, source, tmp_path)
    read = [record for record in store.requests("GetObject") if record.key.endswith(".pth")]
    # 64 KiB around each; the shards are hardly larger, so that what is data as well is told by when it came.
    beginnings = Counter((record.key, record.range) for record in read)
    assert set(beginnings.values()) == {1}
    assert sum(record.bytes_out for record in read) <= 2 * sum(
        path.stat().st_size for path in source.glob("*.pth")
    )
