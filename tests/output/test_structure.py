"""What names and headers of anybody's files of weights tell of files that are missing, and of tensors that are there twice."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import FLOAT32
from distconv.output.structure import check_forms, check_recorded
from distconv.output.targets import TRANSFORMERS
from distconv.storage.local import LocalStorage


def look(folder: Path, names: list[str], headers: Headers) -> list[str]:
    """Tell what is wrong with files that are listed by no index."""
    found = check_forms(LocalStorage(), str(folder), TRANSFORMERS, names, headers, recorded=False)
    return [finding.words.replace(f"{folder}: ", "") for finding in found]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["m-1-of-2.s", "m-2-of-2.s"], []),
        (["model.safetensors"], []),
        (["m-2-of-3.s", "m-3-of-3.s"], ["2 files m-….s of 3; 1 are missing, number 1 first"]),
        (["m-1-of-3.s"], ["1 file m-….s of 3; 2 are missing, number 2 first"]),
        (["m-00001-of-00003.s", "m-00002-of-00003.s"], ["2 files m-….s of 3; 1 are missing, number 3 first"]),
        (["m-0-of-2.s", "m-1-of-2.s"], []),  # numbered from 0
        (["m-000001-of-000001.s"], []),
        (["m-1-of-200000.s"], ["1 file m-….s of 200,000; 199,999 are missing, number 2 first"]),
        (["m-1-of-2000000.s"], []),  # no number of files
        (
            ["m-1-of-1.s", "b-1-of-2.t", "b-2-of-2.t"],
            ["the index names files of 2 sets: b-…-of-2.t and m-…-of-1.s; expected those of one"],
        ),
    ],
)
def test_files_are_missing_by_what_the_others_are_called(
    tmp_path: Path, names: list[str], words: list[str]
) -> None:
    assert look(tmp_path, names, {}) == words


def test_all_that_a_receipt_records_is_looked_at_whatever_is_wrong_before(tmp_path: Path) -> None:
    for name, size in (("b", 3), ("c", 2), ("x", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "z").mkdir()
    chunks = [SimpleNamespace(name=name, size_bytes=2, tensors={name: ""}) for name in "abc"]
    digest = hashlib.sha256(bytes(1)).hexdigest()
    receipt = SimpleNamespace(
        chunks=chunks, files={"v": digest, "w": digest, "x": digest, "c": digest, "z": digest}
    )
    shared = Written("c", 0, FLOAT32, (), shares="c")
    own = Written("c", 0, FLOAT32, ())
    headers = {"b": {}, "c": {"c": own, "other": shared}}
    found = check_recorded(LocalStorage(), str(tmp_path), receipt, headers)  # type: ignore[arg-type]
    assert [(finding.words.replace(f"{tmp_path}/", ""), finding.chunk) for finding in found] == [
        ("b: 3 bytes, distconv.json records 2", "b"),
        ("b: does not hold the tensors that distconv.json records", "b"),
        ("v: missing", None),
        ("w: missing", None),
        ("c: differs from its SHA-256 in distconv.json", None),
        ("z: a folder, pipe or device, expected a regular file", None),
    ]


def test_tensors_in_two_files_are_named_with_both(tmp_path: Path) -> None:
    def hold(file: str, *names: str) -> dict[str, Written]:
        return {name: Written(file, 0, FLOAT32, (1,)) for name in names}

    headers = {"a": hold("a", "x", "y" * 90, "z"), "b": hold("b", "x", "y" * 90, "w"), "c": hold("c", "z")}
    assert look(tmp_path, ["a", "b", "c"], headers)[:2] == [
        f"x, {'y' * 80}: both in a and in b",
        "z: both in a and in c",
    ]
