"""INPUT is known by what its files hold, how large they are and when they were written; what changed is named."""

import hashlib
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.views import TensorView
from distconv.layout.dtypes import DTYPES
from distconv.layout.regions import Region
from distconv.output.identity import InputFiles, Source
from distconv.storage.pinning import describe_change
from tests.output.records import STORAGE


def view(path: Path, name: str = "a", crc32: int = 0) -> TensorView:
    """Give a tensor that is all of a file."""
    region = Region(str(path), 0, path.stat().st_size, crc32, zipped=False)
    return TensorView(name, region, DTYPES["uint8"], 0, (2,), (1,))


def refused(source: Source, identity: dict[str, object]) -> str:
    """Give what is said of an INPUT that is not the one that it was."""
    with pytest.raises(InputError) as raised:
        source.prove(identity)
    return str(raised.value)


def test_input_is_described_by_all_that_is_known_of_it_and_what_changes_is_named(tmp_path: Path) -> None:
    weights = [tmp_path / "in/0/w", tmp_path / "in/w"]
    small = tmp_path / "params.json"
    for path, content in ((weights[0], b"12"), (weights[1], b"34"), (small, b"{}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    views = [view(path) for path in weights]
    files = InputFiles(str(tmp_path / "in"), tuple(map(str, weights)), (str(small),), lambda _storage: views)
    with Source(STORAGE, files) as source:
        assert source.sizes == {str(path): 2 for path in weights}
        assert source.digests == {hashlib.sha256(b"{}").hexdigest()}
        found = source.describe(views)
        assert list(found) == ["params.json", "0/w", "w"]
        assert found["params.json"] == {"sha256": hashlib.sha256(b"{}").hexdigest()}
        assert found["w"] == {
            "size_bytes": 2, "version": STORAGE.find(str(weights[1])).version,  # type: ignore[union-attr]
            "headers_sha256": hashlib.sha256(repr(("a", "uint8", (2,), (1,), (0, 2, 0))).encode()).hexdigest(),
        }  # fmt: skip
        source.check()
        source.prove({"source": found})
        source.prove({"source": None})
        for changed in (
            view(weights[1], "b"), view(weights[1], crc32=1), view(weights[1])._replace(shape=(1, 2)),
            view(weights[1])._replace(strides=(2,)), view(weights[1])._replace(dtype=DTYPES["int8"]),
        ):  # fmt: skip
            views[1] = changed
            assert refused(source, {"source": found}) == describe_change(str(weights[1]))
        views[1] = view(weights[1])
        del views[0]
        assert refused(source, {"source": found}) == describe_change(str(weights[0]))
        views.insert(0, view(weights[0]))
        assert refused(source, {"source": found | {"more": {}}}) == describe_change(str(tmp_path / "in/more"))
        small.write_bytes(b"[]")
        assert refused(source, {"source": found}) == describe_change(str(small))
        weights[0].write_bytes(b"56")
        # Both have changed, and they are looked at at once.
        changes = {describe_change(str(path)) for path in (small, weights[0])}
        assert refused(source, {"source": found}) in changes
        weights[0].unlink()
        with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{weights[0]}'"):
            source.check()
