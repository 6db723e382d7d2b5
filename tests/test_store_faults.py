"""What goes wrong between a conversion and a store, or within the store: the same bytes, or an error that says so."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("botocore", reason="needs the extra s3")

import distconv
from distconv.storage.http import retry
from tests import extent
from tests.checkpoints import Spec
from tests.faults import digest_folder
from tests.object_store import ObjectStore, start
from tests.store_faults import convert_among_faults
from tests.stored import AnyPath, StoredPath, use_store
from tests.test_stores import SPEC, share

Write = Callable[[Spec], Path]
ROUNDS = max(2, extent.share(8))
"""One alone may be told as failed."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Give a store, where what fails is tried again soon."""
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.005)
    monkeypatch.setattr(retry, "_LONGEST_SECONDS", 0.05)
    with start("models", random_etags=True) as store:
        use_store(monkeypatch, store, tmp_path)
        yield store


@pytest.mark.parametrize(
    ("to", "ends"),
    [
        ("meta", "within a store"),
        pytest.param("transformers", "to a store", marks=pytest.mark.slow),
        pytest.param("transformers", "from a store", marks=pytest.mark.slow),
        pytest.param("transformers", "within a store", marks=pytest.mark.slow),
        pytest.param("meta", "to a store", marks=pytest.mark.slow),
        pytest.param("meta", "from a store", marks=pytest.mark.slow),
    ],
)
def test_a_conversion_among_faults_is_whole_and_right_or_told_as_failed(
    checkpoint: Write, tmp_path: Path, store: ObjectStore, to: str, ends: str
) -> None:
    place = StoredPath(store, "models", "place")
    source: AnyPath = checkpoint(SPEC) if ends == "to a store" else share(checkpoint(SPEC), place / "in")
    outputs: AnyPath = tmp_path / "out" if ends == "from a store" else place / "out"
    options: dict[str, object] = {"max_shard_size": 200_000, "to": to}
    distconv.convert(source, tmp_path / "expected", **options)  # type: ignore[arg-type]
    expected = digest_folder(tmp_path / "expected")
    found = convert_among_faults(source, outputs, store, expected, ROUNDS, os.getpid(), **options)
    assert found["whole"]
