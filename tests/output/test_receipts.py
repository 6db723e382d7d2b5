"""A receipt is taken as it was made, or refused by one sentence that says where it is not as a conversion writes it."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distconv.errors import OutputError
from distconv.output.receipt import (
    Conversion,
    ModelReceipt,
    RecordedChunk,
    RecordedSource,
    digest_receipt,
    make_receipt,
    read_receipt,
)
from distconv.output.targets import META, TRANSFORMERS
from distconv.sidecars.config import to_json
from distconv.storage.local import LocalStorage

Json = dict[str, object]
XXH3, MD5, SHA256 = "0123456789abcdef" * 2, "fedcba9876543210" * 2, "0123456789abcdef" * 4
SOURCE: Json = {
    "params.json": {"sha256": SHA256},
    "consolidated.00.pth": {"size_bytes": 7, "version": "1", "headers_sha256": SHA256},
}
IDENTITY: Json = {
    "distconv": "0.1.0", "family": "llama-2", "instruct": True, "dtype": "bfloat16", "max_shard_size": 5,
    "tied": False, "source": SOURCE,
}  # fmt: skip
CHUNKS = [
    RecordedChunk("model-00001-of-00002.safetensors", 10, XXH3, {"a": XXH3}),
    RecordedChunk("model-00002-of-00002.safetensors", 11, XXH3, {}),
]
FILES = {"config.json": SHA256, "model.safetensors.index.json": SHA256, "LICENSE": SHA256}
SHARDS = [
    RecordedChunk("consolidated.00.pth", 10, None, {"a": XXH3}, MD5),
    RecordedChunk("consolidated.01.pth", 11, XXH3, {"b": XXH3}),
]
META_IDENTITY = {key: value for key, value in IDENTITY.items() if key != "max_shard_size"} | {
    "to": "meta", "shards": 2,
}  # fmt: skip
META_FILES = {"params.json": SHA256, "checklist.chk": SHA256}


def write(folder: Path, identity: Json, chunks: list[RecordedChunk], files: dict[str, str]) -> str:
    """Write a receipt, and give its path."""
    content = make_receipt(identity, [chunk.to_row() for chunk in chunks], files, {"tokenizers": "1"})
    (folder / "distconv.json").write_bytes(content)
    return str(folder / "distconv.json")


def read(path: str) -> ModelReceipt:
    return read_receipt(LocalStorage(), path)


SOURCES = (RecordedSource("consolidated.00.pth", SHA256, 7), RecordedSource("params.json", SHA256, None))


def test_a_receipt_of_chunks_is_read_as_it_was_made(tmp_path: Path) -> None:
    path = write(tmp_path, IDENTITY, CHUNKS, FILES)
    conversion = Conversion(TRANSFORMERS, None, "0.1.0", "llama-2", True, "bfloat16", 5, SOURCES)
    content = Path(path).read_bytes()
    assert read(path) == ModelReceipt(conversion, IDENTITY, tuple(CHUNKS), FILES, content)
    assert json.loads(content)["libraries"] == {"tokenizers": "1"}
    assert json.loads(content)["chunks"][1] == {
        "name": CHUNKS[1].name, "size_bytes": 11, "xxh3_128": XXH3, "tensors": {},
    }  # fmt: skip


def test_a_receipt_of_shards_is_read_as_it_was_made(tmp_path: Path) -> None:
    path = write(tmp_path, META_IDENTITY, SHARDS, META_FILES)
    conversion = Conversion(META, 2, "0.1.0", "llama-2", True, "bfloat16", None, SOURCES)
    assert read(path) == ModelReceipt(
        conversion, META_IDENTITY, tuple(SHARDS), META_FILES, Path(path).read_bytes()
    )
    assert json.loads(Path(path).read_text())["chunks"][0] == {
        "name": SHARDS[0].name, "size_bytes": 10, "md5": MD5, "tensors": {"a": XXH3},
    }  # fmt: skip
    path = write(tmp_path, META_IDENTITY | {"max_shard_size": 9}, SHARDS, META_FILES)
    assert read(path).conversion.max_shard_size == 9


def test_a_receipts_digest_is_that_of_all_else_in_it() -> None:
    content: Json = {"b": 1, "a": [2]}
    digest = hashlib.sha256(b'{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n').hexdigest()
    assert digest_receipt(content) == digest_receipt(content | {"sha256": "x"}) == digest


DAMAGED = "damaged or changed, its own digest differs"
CONTENTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _content: b"", "not JSON (Expecting value: line 1 column 1 (char 0))"),
    "deep": (lambda _content: b"[" * 100_000, "not JSON (maximum recursion depth exceeded"),
    "a list": (lambda _content: b"[]", DAMAGED),
    "no digest": (lambda _content: b"{}", DAMAGED),
    "another word": (lambda content: content.replace(b"llama-2", b"llama-3"), DAMAGED),
    "another form": (lambda content: content + b" ", DAMAGED),
    "too long": (lambda content: content + b" " * (8 << 20), "bytes, expected at most 8,388,608"),
}


@pytest.mark.parametrize(("change", "words"), CONTENTS.values(), ids=CONTENTS)
def test_a_receipt_that_was_changed_says_nothing(
    tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    path = write(tmp_path, IDENTITY, CHUNKS, FILES)
    Path(path).write_bytes(change(Path(path).read_bytes()))
    with pytest.raises(OutputError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert words in str(raised.value)
    if words == DAMAGED:
        assert str(raised.value) == f"{path}: {words}"


def at(*way: str | int) -> Callable[[Json, object], None]:
    """Change the value to which this way leads in a receipt."""

    def change(receipt: Json, value: object) -> None:
        *before, last = way
        place: object = receipt
        for key in before:
            place = place[key]  # type: ignore[index]
        place[last] = value  # type: ignore[index]

    return change


FIRST = "model-00001-of-00002.safetensors"
WRONG: list[tuple[Callable[[Json, object], None], object, str]] = [
    (at("conversion"), [], "conversion of the receipt is a list, expected an object"),
    (at("chunks"), {}, "chunks of the receipt is an object, expected a list"),
    (at("files"), None, "files of the receipt is None, expected an object"),
    (at("files"), {}, "its files are not those of 2 chunks"),
    (at("files", "params.json"), SHA256, "it names 'params.json', which no conversion writes"),
    (at("files", "../x"), SHA256, "it names '../x', which no conversion writes"),
    (at("files", "LICENSE"), 1, "LICENSE of the files is 1, expected text"),
    (at("files", "LICENSE"), XXH3, f"'{XXH3}' of 'LICENSE' is no digest"),
    (at("chunks", 0), None, f"chunk 1 is not {FIRST}"),
    (at("chunks", 0, "name"), CHUNKS[1].name, f"chunk 1 is not {FIRST}"),
    (at("chunks", 0, "tensors"), [], f"tensors of {FIRST} is a list, expected an object"),
    (at("chunks", 0, "tensors", "a"), 1, f"a of {FIRST} is 1, expected text"),
    (at("chunks", 0, "tensors", "a"), SHA256, f"'{SHA256}' of '{FIRST}' is no digest"),
    (at("chunks", 0, "xxh3_128"), None, f"xxh3_128 of {FIRST} is None, expected text"),
    (at("chunks", 0, "xxh3_128"), "x", f"'x' of '{FIRST}' is no digest"),
    (at("chunks", 0, "md5"), 1, f"md5 of {FIRST} is 1, expected text"),
    (at("chunks", 0, "md5"), "x", f"'x' of '{FIRST}' is no digest"),
    (at("chunks", 0, "size_bytes"), True, f"size_bytes of {FIRST} is True, expected a whole number"),
    (at("conversion", "to"), None, "to of the conversion is None, expected text"),
    (at("conversion", "to"), "x", "to of the conversion is 'x', expected one of transformers, meta"),
    (at("conversion", "source"), 1, "source of the conversion is 1, expected an object"),
    (at("conversion", "source", "x"), 1, "x of the source is 1, expected an object"),
    (at("conversion", "source", "x"), {}, "headers_sha256 of x is None, expected text"),
    (at("conversion", "source", "x"), {"sha256": None}, "sha256 of x is None, expected text"),
    (at("conversion", "source", "x"), {"sha256": "x"}, "'x' of 'x' is no digest"),
    (at("conversion", "source", "x"), {"headers_sha256": SHA256}, "size_bytes of x is None, expected a whole number"),
    (at("conversion", "distconv"), 1, "distconv of the conversion is 1, expected text"),
    (at("conversion", "family"), "a b", "family of the conversion is 'a b'"),
    (at("conversion", "dtype"), "x" * 65, f"dtype of the conversion is '{'x' * 65}'"),
    (at("conversion", "instruct"), 0, "instruct of the conversion is 0, expected true or false"),
    (at("conversion", "max_shard_size"), None, "max_shard_size of the conversion is None, expected a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "value", "words"), WRONG)
def test_a_receipt_that_no_conversion_writes_is_refused_with_what_is_wrong(
    tmp_path: Path, change: Callable[[Json, object], None], value: object, words: str
) -> None:
    path = write(tmp_path, IDENTITY, CHUNKS, FILES)
    content = copy.deepcopy(json.loads(Path(path).read_text()))
    change(content, value)
    Path(path).write_bytes(to_json(content | {"sha256": digest_receipt(content)}))
    with pytest.raises(OutputError) as raised:
        read(path)
    assert str(raised.value) == f"{path}: not a receipt of a finished conversion: {words}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shards": 1}, "shards of the conversion is 1, it has 2 shards"),
        ({"shards": "2"}, "shards of the conversion is '2', expected a whole number"),
        ({"max_shard_size": "9"}, "max_shard_size of the conversion is '9', expected a whole number"),
    ],
)
def test_a_receipt_of_shards_says_how_many_they_are(tmp_path: Path, changes: Json, words: str) -> None:
    path = write(tmp_path, META_IDENTITY | changes, SHARDS, META_FILES)
    with pytest.raises(OutputError) as raised:
        read(path)
    assert str(raised.value) == f"{path}: not a receipt of a finished conversion: {words}"
