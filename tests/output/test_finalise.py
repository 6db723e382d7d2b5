"""Which files make a model folder, and in which order they come and go."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import distconv
from distconv.formats.meta.legal import is_legal
from distconv.output.acquisition import owned
from distconv.output.finalise import (
    clear_folder,
    clear_marks,
    write_files,
)
from distconv.output.targets import TRANSFORMERS, is_partial
from distconv.storage.fencing import LocalRemoval, make_attempt
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalWriter
from tests.checkpoints import Spec

Write = Callable[[Spec], Path]
MARKS = ["model.safetensors.index.json", "config.json"]
CHUNKS = ["model.safetensors", "model-00001-of-00002.safetensors", "model-100000-of-100000.safetensors"]
OTHER_TOOLS = [
    "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.json",
]  # fmt: skip
STRANGERS = [
    "README.md", "model.safetensors.bak", "my-model.safetensors", "model-1-of-2.safetensors", "config.json.old",
    "model-00001-of-00002-safetensors", "tokenizer.models", "consolidated.00.pth", "LICENSE.pdf", "MY_LICENSE", "",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class NotingStorage(LocalStorage):
    """Local files of which the order of changes is remembered."""

    calls: list[str]

    def begin(self, path: str, size_bytes: int) -> LocalWriter:
        """Begin to write a file."""
        self.calls.append(f"write {os.path.basename(path)}")
        return LocalStorage.begin(self, path, size_bytes)

    def begin_removal(self, path: str) -> LocalRemoval:
        """Begin to remove a file."""
        if os.path.lexists(path):
            self.calls.append(f"remove {os.path.basename(path)}")
        return LocalStorage.begin_removal(self, path)

    def flush_folder(self, path: str) -> None:
        """Make the folder's names durable."""
        self.calls.append("flush")
        LocalStorage.flush_folder(self, path)


def test_a_model_is_removed_once_it_is_safe_that_it_has_no_mark(tmp_path: Path) -> None:
    kept = [name for name in STRANGERS if name] + ["LICENSE", "distconv.json.old"]
    removed = [*CHUNKS, *OTHER_TOOLS, "tokenizer.json", "distconv.json", ".distconv.journal", "USE_POLICY.md"]
    for name in (*MARKS, *removed, *kept):
        (tmp_path / name).touch()
    (tmp_path / "tokenizer.model").mkdir()
    storage = NotingStorage([])
    with owned(LocalStorage(), str(tmp_path), print) as owner:
        clear_folder(storage, owner, ["USE_POLICY.md"])
        assert {path.name for path in tmp_path.iterdir()} == {
            *kept, "tokenizer.model", Path(owner.path).name,
        }  # fmt: skip
    marks, others = storage.calls[:3], storage.calls[3:]
    assert marks == [*(f"remove {name}" for name in MARKS), "flush"]
    assert sorted(others[:-1]) == sorted(f"remove {name}" for name in removed)
    assert others[-1] == "flush"


def test_a_folder_that_loses_its_marks_loses_them_for_good_and_nothing_else(tmp_path: Path) -> None:
    for name in (*MARKS, *CHUNKS, "distconv.json"):
        (tmp_path / name).touch()
    storage = NotingStorage([])
    with owned(LocalStorage(), str(tmp_path), print) as owner:
        clear_marks(storage, owner)
        clear_marks(storage, owner)
    assert storage.calls == [*(f"remove {name}" for name in MARKS), "flush", "flush"]
    assert {path.name for path in tmp_path.iterdir()} == {*CHUNKS, "distconv.json"}


def test_files_are_written_and_then_their_names_made_safe(tmp_path: Path) -> None:
    files = {"tokenizer.json": b"{}", "LICENSE": b"may be used", "config.json": b"", "a": b"a"}
    (tmp_path / "LICENSE").write_bytes(b"an older one")
    storage = NotingStorage([])
    with owned(LocalStorage(), str(tmp_path), print) as owner:
        write_files(storage, owner, files)
    assert sorted(storage.calls[:-1]) == sorted(f"write {name}" for name in files)
    assert storage.calls[-1] == "flush"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("limit", [100_000, 10**9])
def test_all_that_a_conversion_writes_is_known_by_its_name(
    checkpoint: Write, tmp_path: Path, limit: int
) -> None:
    source = checkpoint(Spec("llama-2", heads=8, kv_heads=4, shards=2))
    distconv.convert(source, tmp_path / "out", max_shard_size=limit)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    beside = set(json.loads((tmp_path / "out/distconv.json").read_text())["files"])
    assert {name for name in names if TRANSFORMERS.is_sidecar(name)} == beside
    assert {name for name in names if not TRANSFORMERS.is_model_file(name)} == {
        name for name in names if is_legal(name)
    }
    assert all(is_partial(os.path.basename(make_attempt(str(tmp_path / name)))) for name in names)
    assert not any(map(is_partial, names))


def test_what_is_not_written_by_a_conversion_is_nobodys_business() -> None:
    for name in STRANGERS:
        assert not any(
            known(name) for known in (TRANSFORMERS.is_sidecar, is_legal, TRANSFORMERS.is_model_file)
        ), name
    for name in ("README.md", "my-model.safetensors", "model-1-of-2.safetensors", "MY_LICENSE"):
        assert not is_partial(os.path.basename(make_attempt(name)))
    for name in OTHER_TOOLS:
        assert TRANSFORMERS.is_model_file(name)
        assert not TRANSFORMERS.is_sidecar(name)
    attempt = os.path.basename(make_attempt("config.json"))
    assert is_partial(attempt)
    for other in (attempt[1:], attempt + "s", "x" + attempt, attempt.replace("-", "_"), attempt + "\n"):
        assert not is_partial(other)
