"""A manifest is taken as it was made, or refused by one sentence that says where it is not as one is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.layout.dtypes import BFLOAT16, FLOAT32
from distconv.moving.values import Tally
from distconv.output.manifest import Listed, Manifest, make_manifest, read_manifest
from distconv.storage.local import LocalStorage

XXH3 = "0123456789abcdef" * 2
TENSORS = (
    Listed("b", (2, 3), BFLOAT16, XXH3, Tally(nan=2, infinite=1)),
    Listed("a", (), FLOAT32, XXH3[::-1], Tally(zero=True)),
    Listed("c", (0, 1), FLOAT32, XXH3, Tally()),
)
Row = dict[str, Any]


def write(folder: Path, change: Callable[[Row], object] = lambda _row: None) -> str:
    """Write a manifest after a change of one tensor's row, with the digest that it then has; gives its path."""
    content = json.loads(make_manifest(TENSORS).to_bytes())
    change(content["tensors"]["b"])
    (folder / "m.json").write_text(json.dumps(content))
    return str(folder / "m.json")


def read(path: str) -> Manifest:
    return read_manifest(LocalStorage(), path)


def test_it_is_taken_as_it_was_made(tmp_path: Path) -> None:
    found = read(write(tmp_path))
    assert list(found.tensors.values()) == sorted(TENSORS, key=lambda listed: listed.name)
    assert (found.elements, found.size_bytes) == (7, 16)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dtype", 7, "dtype of b is 7, expected text"),
        ("dtype", "bfloat17", "dtype of b is unknown"),
        ("shape", "2", "shape of b is '2', expected a list"),
        ("shape", [2, -1], "shape of b has what is no whole number, or less than 0"),
        ("shape", [2, 3.0], "shape of b has what is no whole number, or less than 0"),
        ("xxh3_128", None, "xxh3_128 of b is None, expected text"),
        ("xxh3_128", XXH3[1:], f"'{XXH3[1:]}' of 'b' is no digest"),
        ("nan", True, "nan of b is True, expected a whole number"),
        ("infinite", "1", "infinite of b is '1', expected a whole number"),
        ("zero", 1, "zero of b is 1, expected true or false"),
    ],
)
def test_what_is_no_row_of_a_manifest_is_said(tmp_path: Path, key: str, value: object, words: str) -> None:
    path = write(tmp_path, lambda row: row.update({key: value}))
    with pytest.raises(InputError) as refused:
        read(path)
    assert str(refused.value) == f"{path}: damaged, or of another version of distconv: {words}"


@pytest.mark.parametrize("name", ["nan", "infinite"])
def test_a_count_that_was_changed_does_not_fit_the_digest(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, lambda row: row.update({name: 5}))
    with pytest.raises(InputError, match="its own digest differs"):
        read(path)
