"""Names in OUTPUT: which are the model's, which would be loaded in its place, which may be removed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import distconv
from distconv.output.acquisition import owned
from distconv.output.finalise import clear_folder, clear_marks
from distconv.output.loading import find_legal, find_obstacles, find_replaced
from distconv.output.ownership import Ownership
from distconv.output.targets import META, TARGETS, TRANSFORMERS, Target, is_partial, tell_target
from distconv.storage.base import Storage
from distconv.storage.fencing import make_attempt
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec
from tests.meta_folders import write_meta_folder

Write = Callable[[Spec], Path]
SPEC = Spec("llama-3", heads=8, kv_heads=4, shards=2)
BOTH = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
MINE = ("diary.txt", "LICENSE", "original.pth.bak", "pytorch_model.pt")


def make_folder(target: Target, checkpoint: Write, output: Path) -> Path:
    """Make a finished folder of a target, with a licence of its own."""
    if target is META:
        return write_meta_folder(output, checkpoint(SPEC))
    distconv.convert(checkpoint(SPEC), output, max_shard_size=100_000)
    return output


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def clear(output: Path, target: Target) -> list[str]:
    """Clear a folder for a new model, and give what was removed, in this order."""
    storage, removed = LocalStorage(), []

    class Watched(Ownership):
        """Notes what it removes."""

        def remove(self, storage: Storage, name: str) -> None:
            removed.append(name)
            super().remove(storage, name)

    with owned(storage, str(output), lambda _words: None, is_partial) as owner:
        watched = Watched(**{name: getattr(owner, name) for name in owner.__dataclass_fields__})
        clear_folder(storage, watched, find_legal(storage, str(output)), target)
    return removed


@BOTH
@pytest.mark.parametrize("new", TARGETS.values(), ids=TARGETS)
def test_overwriting_removes_the_model_that_the_receipt_names_and_nobody_elses_files(
    checkpoint: Write, tmp_path: Path, target: Target, new: Target
) -> None:
    output = make_folder(target, checkpoint, tmp_path / "out")
    for name in MINE:
        (output / name).write_text("mine")
    removed = clear(output, new)
    assert names(output) == set(MINE)
    marks = [removed.index(mark) for mark in target.marks]
    weights = [removed.index(name) for name in removed if name.endswith((".pth", ".safetensors"))]
    assert max(marks) < min(weights)
    assert removed[-1] == "distconv.json"


def test_overwriting_a_transformers_model_leaves_somebodys_shards_beside_it(
    checkpoint: Write, tmp_path: Path
) -> None:
    output = make_folder(TRANSFORMERS, checkpoint, tmp_path / "out")
    shutil.copy(checkpoint(SPEC) / "consolidated.00.pth", output)
    shutil.copy(checkpoint(SPEC) / "params.json", output)
    clear(output, TRANSFORMERS)
    assert names(output) == {"consolidated.00.pth", "params.json"}


@BOTH
def test_a_folder_without_its_marks_is_not_finished(
    checkpoint: Write, tmp_path: Path, target: Target
) -> None:
    output = make_folder(target, checkpoint, tmp_path / "out")
    storage = LocalStorage()
    assert tell_target(storage, str(output)) is target
    before = names(output)
    with owned(storage, str(output), lambda _words: None, is_partial) as owner:
        clear_marks(storage, owner, (target,))
    assert before - names(output) == set(target.marks)
    assert any("is not finished" in words for words in distconv.verify(output).differences)


@pytest.mark.parametrize(
    "name", ["other.pth", "consolidated.02.pth", "model.safetensors", "config.json", "spiece.model"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_metas_code_would_load_besides_is_in_the_way(
    checkpoint: Write, tmp_path: Path, name: str, overwrite: bool
) -> None:
    output = make_folder(META, checkpoint, tmp_path / "out")
    (output / name).write_text("mine")
    found = list(
        find_obstacles(
            LocalStorage(), str(output), META.name_files(2), {"params.json": b"", "tokenizer.model": b""}, (),
            overwrite=overwrite, target=META,
        )
    )  # fmt: skip
    expected = [] if overwrite and META.is_model_file(name) else [name]
    assert [os.path.basename(words.partition(":")[0]) for words in found] == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"conversion": {"to": "meta"}}, {"transformers", "meta"}),
        ({"conversion": {}}, {"transformers"}),
        ({"conversion": {"to": ["meta"]}}, {"transformers"}),
        ({"conversion": {"to": "mistral"}}, {"transformers"}),
        ({"conversion": None}, {"transformers"}),
        ([], {"transformers"}),
    ],
)
def test_a_journal_tells_whose_files_lie_there_if_it_tells_anything(
    tmp_path: Path, content: object, expected: set[str]
) -> None:
    (tmp_path / ".distconv.journal").write_text(json.dumps(content))
    found = find_replaced(LocalStorage(), str(tmp_path), TRANSFORMERS)
    assert found[0] is TRANSFORMERS
    assert {target.name for target in found} == expected


@given(st.sampled_from(sorted(TARGETS)), st.integers(1, 120))
def test_every_name_that_a_conversion_writes_is_known_and_so_is_what_it_leaves_unfinished(
    name: str, count: int
) -> None:
    target = TARGETS[name]
    written = (*target.name_files(count), *target.list_marks(count), "distconv.json", ".distconv.journal")
    assert all(target.is_model_file(found) for found in written)
    assert all(target.is_sidecar(mark) for mark in target.marks)
    assert not any(target.is_sidecar(found) for found in target.name_files(count))
    assert set(target.list_marks(count)) <= set(target.marks)
    assert all(is_partial(make_attempt(found)) for found in written)
    assert not any(is_partial(f".{found}.partial") for found in written)
