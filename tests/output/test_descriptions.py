"""What is said of a folder in which a conversion is not finished, by its journal alone."""

import json
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.output.descriptions import describe_unfinished, telling_unfinished
from distconv.storage.local import LocalStorage

FIRST, SECOND = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2))
SHARDS = ["consolidated.00.pth", "consolidated.01.pth"]
IT_IS, TO = "into it is not finished", "`to='transformers'`, "
ATTEMPT = f".{FIRST}.host-1-abcdef01.partial"


def write(folder: Path, conversion: object, *recorded: str, parts: int = 0) -> None:
    """Write a journal in which files are recorded, and so many parts of the first one."""
    part = {"tensors": ["0" * 32], "crc32s": []}
    unfinished = {FIRST: {"attempt": ATTEMPT, "parts": {str(number): part for number in range(parts)}}}
    content = {
        "conversion": conversion,
        "chunks": [{"name": name, "tensors": {}} for name in recorded],
        "unfinished": unfinished if parts else {},
    }
    (folder / ".distconv.journal").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("conversion", "recorded", "there", "words"),
    [
        ({"family": "llama-2"}, [FIRST, SECOND], [SECOND], f" of Llama 2 {IT_IS} ({TO}1 of 3 chunks so far"),
        ({"family": "qwen3"}, ["model.safetensors"], [], f" of qwen3 {IT_IS} ({TO}0 of 1 chunk so far"),
        ({"family": "two words"}, [], [], f" {IT_IS} ({TO}0 chunks so far"),
        ({"family": 2, "to": "nowhere"}, ["LICENSE"], ["LICENSE"], f" {IT_IS} (`to='nowhere'`, 0 chunks so far"),
        ({"instruct": True, "dtype": "x"}, [], [], f" {IT_IS} ({TO}`instruct=True`, 0 chunks so far"),
        ({"to": "meta", "shards": 2}, ["consolidated.00.pth"], ["consolidated.00.pth"],
         f" {IT_IS} (`to='meta'`, `shards=2`, 1 of 2 shards so far"),
        ("damaged", [], [], f" {IT_IS} (0 chunks so far"),
        ({}, ["model.safetensors"], ["model.safetensors"],
         f" {IT_IS} ({TO}its chunk is written, what stands beside it is not"),
        ({"to": "meta", "shards": 2}, SHARDS, SHARDS,
         f" {IT_IS} (`to='meta'`, `shards=2`, all 2 shards are written, what stands beside them is not"),
    ],
)  # fmt: skip
def test_how_far_a_conversion_is_is_told_by_its_journal_and_what_is_there(
    tmp_path: Path, conversion: object, recorded: list[str], there: list[str], words: str
) -> None:
    write(tmp_path, conversion, *recorded)
    for name in there:
        (tmp_path / name).touch()
    assert describe_unfinished(LocalStorage(), str(tmp_path)) == (
        f"{tmp_path}: a conversion{words}); run the same conversion again, and it goes on: "
        f"`distconv convert INPUT {tmp_path}`, with the options that it had"
    )


@pytest.mark.parametrize(("name", "more"), [(ATTEMPT, ", and 2 parts of what is begun"), ("other", "")])
def test_parts_count_where_the_file_is_there_as_it_was_begun(tmp_path: Path, name: str, more: str) -> None:
    write(tmp_path, {}, parts=2)
    (tmp_path / name).touch()
    words = describe_unfinished(LocalStorage(), str(tmp_path))
    assert words is not None
    assert f"0 of 3 chunks so far{more})" in words


def test_a_folder_without_a_journal_and_what_is_no_folder_are_nothing_unfinished(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "none"):
        assert describe_unfinished(LocalStorage(), str(path)) is None
        with pytest.raises(InputError, match=r"^as it was$"), telling_unfinished(LocalStorage(), str(path)):
            raise InputError("as it was")


def test_what_does_not_find_what_it_reads_in_an_unfinished_folder_says_so(tmp_path: Path) -> None:
    write(tmp_path, {})
    with (
        pytest.raises(InputError, match="is not finished"),
        telling_unfinished(LocalStorage(), str(tmp_path)),
    ):
        raise InputError("no config.json")
