"""How often a conversion looks at what it has looked at before."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from distconv.moving import shared
from distconv.storage.base import Entry
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from tests.checkpoints import Spec
from tests.faults import interrupted_at
from tests.test_to_meta_resumed import PART_BYTES, SOURCE
from tests.transformers_models import ModelSpec


def count_lookings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count from now on how often each folder is listed and each file is opened."""
    counted: Counter[str] = Counter()
    list_folder, read = LocalStorage.list_folder, LocalStorage.open

    def list_counted(self: LocalStorage, path: str) -> tuple[Entry, ...]:
        counted[path] += 1
        return list_folder(self, path)

    def open_counted(self: LocalStorage, path: str) -> LocalReader:
        counted[path] += 1
        return read(self, path)

    monkeypatch.setattr(LocalStorage, "list_folder", list_counted)
    monkeypatch.setattr(LocalStorage, "open", open_counted)
    return counted


@pytest.mark.parametrize("back", [False, True])
def test_a_conversion_looks_for_the_files_of_input_once_as_inspect_does(
    checkpoint: Callable[[Spec], Path],
    transformers_model: Callable[[ModelSpec], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    back: bool,
) -> None:
    folder = transformers_model(ModelSpec("llama-3", files="index")) if back else checkpoint(SOURCE)
    counted = count_lookings(monkeypatch)
    distconv.inspect(folder)
    inspected = counted[str(folder)]
    counted.clear()
    distconv.convert(folder, tmp_path / "out", to="meta")
    assert counted[str(folder)] == inspected


def test_the_journal_is_read_as_often_however_many_files_were_begun(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    source = checkpoint(SOURCE)
    lookings = []
    for shards in (1, 4):
        output = tmp_path / str(shards)
        with interrupted_at(shared, "_seal"):
            distconv.convert(source, output, to="meta", shards=shards, max_shard_size=PART_BYTES)
        with pytest.MonkeyPatch.context() as patch:
            counted = count_lookings(patch)
            distconv.convert(source, output, to="meta", shards=shards, max_shard_size=PART_BYTES)
        lookings.append(counted[str(output / ".distconv.journal")])
    assert lookings[0] == lookings[1]
