"""A shard that torch.save would write: the same bytes, and zipfile, unzip and torch take it."""

import io
import random
import shutil
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.meta.archive_layout import lay_out_archive
from distconv.formats.meta.pickle_writer import TensorEntry
from distconv.layout.dtypes import BFLOAT16, FLOAT16, FLOAT32
from tests.formats.shards import DTYPES, STEM, State, fresh, same_bytes, write_shard


def random_tensor(chooser: random.Random, dtypes: Iterable[torch.dtype]) -> torch.Tensor:
    shape = [chooser.choice((0, 1, 2, 3, 7)) for _axis in range(chooser.randrange(5))]
    return torch.randn(shape).to(chooser.choice(tuple(dtypes)))


def random_state(seed: int, count: int, dtypes: Iterable[torch.dtype]) -> State:
    """Make so many tensors, one in eight of them in the storage of an earlier one."""
    chooser = random.Random(seed)
    torch.manual_seed(seed)
    state: State = {}
    for number in range(count):
        name = f"layers.{number}." + "".join(chooser.choices("weight_é字🦙.", k=chooser.randrange(9)))
        shared = (
            list(state.values())[chooser.randrange(number)] if number and chooser.random() < 0.125 else None
        )
        state[name] = random_tensor(chooser, dtypes) if shared is None else shared.detach()
    return state


@same_bytes
@pytest.mark.product
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, 29, 30, 999, 1000, 1001, 2000, 2300])
@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16,), (torch.float16,), (torch.float32,), tuple(DTYPES)],
    ids=["bfloat16", "float16", "float32", "all"],
)
def test_a_shard_has_the_bytes_that_torch_saves(
    tmp_path: Path, count: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    state = random_state(count, count, dtypes)
    (tmp_path / "torch").mkdir()
    torch.save(state, tmp_path / "torch" / f"{STEM}.pth")
    write_shard(tmp_path / f"{STEM}.pth", state)
    assert (tmp_path / f"{STEM}.pth").read_bytes() == (tmp_path / "torch" / f"{STEM}.pth").read_bytes()


# A string of one sign is one object wherever it is made, so that torch's pickler would recall a key by it.
names = st.text(min_size=2, max_size=300).map(fresh)
shapes = st.lists(st.integers(0, 5), max_size=6).map(tuple)
tensors = st.tuples(shapes, st.sampled_from(tuple(DTYPES)))


@same_bytes
@given(st.dictionaries(names, tensors, max_size=40), st.text(alphabet="abc.0123_-", min_size=1, max_size=90))
def test_names_of_any_kind_have_the_bytes_that_torch_saves(
    tmp_path_factory: pytest.TempPathFactory,
    described: dict[str, tuple[tuple[int, ...], torch.dtype]],
    stem: str,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    state = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in described.items()}
    theirs, ours = folder / f"{stem}x.pth", folder / f"{stem}x.ours" / f"{stem}x.pth"
    ours.parent.mkdir()
    torch.save(state, theirs)
    write_shard(ours, state)
    assert ours.read_bytes() == theirs.read_bytes()
    shutil.rmtree(folder)


@same_bytes
def test_long_names_and_names_that_are_no_text_have_the_bytes_that_torch_saves(tmp_path: Path) -> None:
    state = {
        fresh(name): torch.ones(3) for name in ("x" * 70_000, "half a pair \ud800", "cpu", "storage", "")
    }
    (tmp_path / "torch").mkdir()
    torch.save(state, tmp_path / "torch" / f"{STEM}.pth")
    write_shard(tmp_path / f"{STEM}.pth", state)
    assert (tmp_path / f"{STEM}.pth").read_bytes() == (tmp_path / "torch" / f"{STEM}.pth").read_bytes()


@same_bytes
@pytest.mark.parametrize("dtypes", [1, 2], ids=["among them 255", "among them 256"])
def test_a_storage_is_recalled_by_its_number_in_the_pickle_however_large(tmp_path: Path, dtypes: int) -> None:
    kinds = tuple(DTYPES)[:dtypes]
    owners = {fresh(f"w{number}"): torch.ones(2, dtype=kinds[number % dtypes]) for number in range(40)}
    state = owners | {fresh(f"again{name}"): tensor.detach() for name, tensor in owners.items()}
    (tmp_path / "torch").mkdir()
    torch.save(state, tmp_path / "torch" / f"{STEM}.pth")
    write_shard(tmp_path / f"{STEM}.pth", state)
    assert (tmp_path / f"{STEM}.pth").read_bytes() == (tmp_path / "torch" / f"{STEM}.pth").read_bytes()


@pytest.mark.slow
def test_more_records_than_16_bits_count_are_found_be_they_empty() -> None:
    layout = lay_out_archive(STEM, [TensorEntry(f"w{number}", BFLOAT16, (0,)) for number in range(1 << 16)])
    content = bytearray(layout.size_bytes)
    for offset_bytes, run in (*layout.literals, *layout.seal([0] * (1 << 16))):
        content[offset_bytes : offset_bytes + len(run)] = run
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == [f"{STEM}/{record.name}" for record in layout.records]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """Give a shard of mixed dtypes and what it holds."""
    path = tmp_path_factory.mktemp("shard") / f"{STEM}.pth"
    state = random_state(7, 300, tuple(DTYPES))
    write_shard(path, state)
    return path, state


def test_torch_loads_equal_tensors_by_mapping_the_file(shard: tuple[Path, State]) -> None:
    path, state = shard
    loaded = torch.load(path, mmap=True, weights_only=True)
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


def test_names_that_share_a_storage_share_it_when_loaded(tmp_path: Path) -> None:
    embedding = torch.randn(5, 4)
    write_shard(
        tmp_path / f"{STEM}.pth", {"output.weight": embedding, "tok_embeddings.weight": embedding.detach()}
    )
    loaded = torch.load(tmp_path / f"{STEM}.pth", weights_only=True)
    assert loaded["output.weight"].data_ptr() == loaded["tok_embeddings.weight"].data_ptr()


def test_zipfile_finds_every_checksum_right(shard: tuple[Path, State]) -> None:
    with zipfile.ZipFile(shard[0]) as archive:
        assert archive.testzip() is None


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_finds_every_checksum_right(shard: tuple[Path, State]) -> None:
    tested = subprocess.run(["unzip", "-t", shard[0]], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("given_count", [0, 1, 3])
def test_as_many_checksums_are_needed_as_there_are_storages(given_count: int) -> None:
    entries = [
        TensorEntry("w1", BFLOAT16, (2,)),
        TensorEntry("w2", FLOAT32, (2,)),
        TensorEntry("w3", FLOAT32, (2,), "w2"),
    ]
    with pytest.raises(ValueError, match=f"{given_count} CRC32s for 2 storages"):
        lay_out_archive(STEM, entries).seal([0] * given_count)


def test_layouts_do_not_depend_on_the_shape_of_a_storage_but_on_its_size() -> None:
    flat, square = (lay_out_archive(STEM, [TensorEntry("w", FLOAT16, shape)]) for shape in ((4, 1), (2, 2)))
    assert flat.storages == square.storages
