"""Files of a model folder that are well formed and say nonsense: findings, never a traceback, nothing sent."""

import contextlib
import hashlib
import json
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

import distconv
from distconv.errors import DistconvError, OutputError
from distconv.verbs import push as pushing
from distconv.verbs.push import PushReport
from tests.checkpoints import Spec
from tests.extent import share

Write = Callable[[Spec], Path]
Json = object
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
SECONDS = 10
"""Of this process's own time: many times what any of these takes."""


VALUES: tuple[Json, ...] = (
    None, True, False, 0, -1, 1, 1.5, 10**30, float("nan"), float("inf"), "", "x", "*", "?", "[a-z]", "..", "../x",
    "/etc/passwd", ".git/config", "config.json", "model.safetensors", "README.md", "a\nb", "a\0b", "\x1b[31m", "\ud800",
    "0" * 32, "0" * 64, "F" * 64, "9" * 5_000, [], [None], [[]], ["config.json"], {}, {"": {}}, {"*": "0" * 64},
    {"name": "*"}, json.loads("[" * 300 + "]" * 300),
)  # fmt: skip
"""What no conversion writes, or not there."""
DEPTH = 10
"""Deeper than anything that a conversion writes."""


def copied(content: Json) -> Json:
    """Copy a value, however deep."""
    return json.loads(json.dumps(content))


def places(content: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Give the way to every value."""
    yield path
    if len(path) > DEPTH:
        return
    keys: list[str | int] = []
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = list(range(len(content)))
    for key in keys:
        yield from places(content[key], (*path, key))  # type: ignore[index]


@st.composite
def mutations(draw: st.DrawFn, content: Json) -> Json:
    """Change a JSON value in one to three places: another value, another key, one less, one twice."""
    changed: dict[str, Json] = {"root": copied(content)}
    for _ in range(draw(st.integers(1, 3))):
        *way, last = ("root", *draw(st.sampled_from(list(places(changed["root"])))))
        parent: dict[str | int, Json] = changed  # type: ignore[assignment]
        for key in way:
            parent = parent[key]  # type: ignore[assignment]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "repeat"]))
        if action == "replace" or last == "root":
            parent[last] = copied(draw(st.sampled_from(VALUES)))
        elif action == "remove":
            del parent[last]
        elif isinstance(parent, list):
            parent.append(copied(parent[last]))
        else:
            names = [value for value in VALUES if isinstance(value, str)]
            name = draw(st.sampled_from(names))
            parent[name] = parent.pop(last) if action == "rename" else copied(parent[last])
    return changed["root"]


def write_signed(path: Path, content: Json) -> None:
    """Write a receipt with the digest that is right for what it says."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "sha256"}
        with contextlib.suppress(RecursionError):
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
            return
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def model(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a model in two chunks, beside a file that is nobody's business."""
    output = tmp_path_factory.mktemp("malformed") / "out"
    distconv.convert(checkpoint(SPEC), output, max_shard_size=150_000)
    (output.parent / "x").write_text("secret")
    (output / "diary.txt").write_text("secret")
    assert distconv.verify(output).ok
    return output


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Record what would be sent, instead of sending it."""
    found: list[set[str]] = []

    def record(model: pushing._Model, _repo: str, examined: str, **_options: bool) -> PushReport:
        found.append({*model.chunks, *model.files})
        return PushReport("", 0, private=True, examined=examined, notes=())

    monkeypatch.setattr(pushing, "_upload", record)
    return found


def look(output: Path) -> list[str]:
    """Give the findings; any error but ours is one of the test."""
    begun = time.process_time()
    try:
        return list(distconv.verify(output).differences)
    except DistconvError as error:
        return str(error).splitlines()
    finally:
        assert time.process_time() - begun < SECONDS


def push(output: Path) -> None:
    """Push; any error but ours is one of the test."""
    with contextlib.suppress(DistconvError):
        distconv.push(output, "somebody/llama")


@pytest.mark.parametrize("seed", range(4))
def test_receipts_that_say_nonsense_are_findings_and_nothing_foreign_is_sent(
    model: Path, tmp_path: Path, sent: list[set[str]], seed: int
) -> None:
    output = shutil.copytree(model, tmp_path / "out")
    receipt = json.loads((output / "distconv.json").read_text())
    good = {*receipt["files"], *(row["name"] for row in receipt["chunks"]), "distconv.json"}

    @settings(max_examples=share(30), deadline=None, database=None)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        # A part of it at a time, so that names and digests are not the only ones to change.
        part = [("chunks",), ("files",), ("conversion",), ()][seed]
        changed = dict(receipt)
        if part:
            changed[part[0]] = data.draw(mutations(receipt[part[0]]))
        else:
            changed = data.draw(mutations(receipt))
        write_signed(output / "distconv.json", changed)
        before = len(sent)
        findings = look(output)
        push(output)
        # A receipt that names fewer files lets fewer be sent.
        assert all(names <= good for names in sent[before:])
        assert not (findings and sent[before:])

    run()


@pytest.mark.parametrize(
    "name", ["*", "?", "diary.txt", "../x", "/etc/passwd", ".git/config", "a\nb", "README.md"]
)
@pytest.mark.parametrize("place", ["files", "chunks"])
def test_a_receipt_names_only_what_a_conversion_writes(
    model: Path, tmp_path: Path, sent: list[set[str]], name: str, place: str
) -> None:
    output = shutil.copytree(model, tmp_path / "out")
    receipt = json.loads((output / "distconv.json").read_text())
    if place == "files":
        receipt["files"][name] = hashlib.sha256(b"secret").hexdigest()
    else:
        receipt["chunks"].append(receipt["chunks"][0] | {"name": name})
    write_signed(output / "distconv.json", receipt)
    assert any("not a receipt of a finished conversion" in finding for finding in look(output))
    with pytest.raises(OutputError, match="not uploaded"):
        distconv.push(output, "somebody/llama")
    assert not sent


def write_json(path: Path, content: Json) -> None:
    """Write a value, whatever it is."""
    with contextlib.suppress(RecursionError):
        path.write_text(json.dumps(content))


def write_header(path: Path, content: Json) -> None:
    """Put a header before a chunk's data."""
    whole = path.read_bytes()
    data = whole[8 + int.from_bytes(whole[:8], "little") :]
    with contextlib.suppress(RecursionError):
        text = json.dumps(content).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def load(content: bytes) -> dict[str, Json]:
    """Give what the format's own library finds in a file; nothing where it refuses."""
    with contextlib.suppress(SafetensorError):
        return {
            name: (found["shape"], found["dtype"], bytes(found["data"]))
            for name, found in deserialize(content)
        }
    return {}


@pytest.mark.parametrize("kind", ["index", "header", "config"])
@pytest.mark.parametrize("receipt", [True, False], ids=["with a receipt", "without"])
def test_indexes_headers_and_configs_that_say_nonsense_are_findings(
    model: Path, tmp_path: Path, sent: list[set[str]], kind: str, receipt: bool
) -> None:
    output = shutil.copytree(model, tmp_path / "out")
    if not receipt:
        (output / "distconv.json").unlink()
    chunk = output / "model-00001-of-00002.safetensors"
    whole = chunk.read_bytes()
    path = {"index": output / "model.safetensors.index.json", "config": output / "config.json"}.get(
        kind, chunk
    )
    content = json.loads(
        whole[8 : 8 + int.from_bytes(whole[:8], "little")] if path == chunk else path.read_bytes()
    )

    def is_told_alike() -> bool:
        # A receipt tells of the header, and what others wrote is what a loader finds there.
        return chunk.read_bytes() == whole if receipt else load(chunk.read_bytes()) == load(whole)

    @settings(max_examples=share(40), database=None)
    @given(mutations(content))
    def run(changed: Json) -> None:
        chunk.write_bytes(whole)
        (write_header if path == chunk else write_json)(path, changed)
        findings = look(output)
        assert findings or path != chunk or is_told_alike()
        push(output)
        assert not sent

    run()


EMPTY_LISTS = b"[" + b"[]," * (3 << 20) + b"[]]"
"""As much memory a byte as JSON can take."""


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "model.safetensors.index.json", "distconv.json", "a chunk"],
)
def test_json_that_no_model_needs_is_a_finding_and_not_parsed(
    model: Path, tmp_path: Path, sent: list[set[str]], name: str
) -> None:
    output = shutil.copytree(model, tmp_path / "out")
    if name == "a chunk":
        path = output / "model-00001-of-00002.safetensors"
        path.write_bytes(len(EMPTY_LISTS).to_bytes(8, "little") + EMPTY_LISTS)
    else:
        path = output / name
        path.write_bytes(EMPTY_LISTS)
    tracemalloc.start()
    findings = look(output)
    push(output)
    _now, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert any(path.name in finding and "expected at most" in finding for finding in findings)
    # Of parsed lists it would be 20 times as much.
    assert most_bytes < 5 * len(EMPTY_LISTS)
    assert not sent
