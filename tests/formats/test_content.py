"""What a file is, told from its first bytes, is what its own writer made of it."""

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from distconv.formats.content import HEAD_BYTES, describe_content


def write_tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("consolidated.00.pth"))


def write_zip(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("params.json", "{}")


WRITERS: dict[str, Callable[[io.BytesIO], object]] = {
    "an empty file": lambda file: None,
    "a file of zeros, as a broken download leaves": lambda file: file.write(bytes(9)),
    "a gzip archive; unpack it first": lambda file: file.write(gzip.compress(b"{}")),
    "a tar archive; unpack it first": write_tar,
    "a zip archive": write_zip,
    "a pickle": lambda file: pickle.dump({"a": 1}, file),
    "a safetensors file": lambda file: file.write(safetensors.torch.save({"a": torch.zeros(2)})),
    "JSON text": lambda file: file.write(b' \n{"dim": 1}'),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_writer_made_is_named(kind: str) -> None:
    file = io.BytesIO()
    WRITERS[kind](file)
    assert describe_content(file.getvalue()[:HEAD_BYTES]) == kind


def test_a_zip_archive_of_nothing_and_one_of_torch_are_archives() -> None:
    file, empty = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(2)}, file)
    zipfile.ZipFile(empty, "w").close()
    assert describe_content(file.getvalue()[:HEAD_BYTES]) == "a zip archive"
    assert describe_content(empty.getvalue()) == "a zip archive"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b" <!DOCTYPE HTML><title>403", "an HTML or XML page, as an expired download link gives"),
        (b"<?xml version='1.0'?><Error>", "an HTML or XML page, as an expired download link gives"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a git-LFS pointer; run `git lfs pull` to get the file",
        ),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"[1, 2]", "JSON text"),
        (b"7\n\tseven words", "text"),
        ("Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n".encode(), "text"),
    ],
)
def test_the_beginning_of_a_file_tells(head: bytes, kind: str) -> None:
    assert describe_content(head) == kind


def test_text_whose_last_character_is_cut_is_text() -> None:
    whole = "word \N{GRINNING FACE}".encode()
    assert [describe_content(whole[: len(whole) - cut]) for cut in range(4)] == ["text"] * 4
    assert (
        describe_content(b"word \xff\xff\xff\xff") == "unknown content (first bytes 77 6f 72 64 20 ff ff ff)"
    )


@pytest.mark.parametrize("head", [b"\xff\xfe\xfd", b"word\x01", b"\x7fELF\2\1\1\0\0", b"word\0"])
def test_what_is_no_text_is_shown_by_its_bytes(head: bytes) -> None:
    assert describe_content(head) == f"unknown content (first bytes {head[:8].hex(' ')})"
