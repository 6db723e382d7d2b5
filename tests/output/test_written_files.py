"""What files of weights say of themselves when they are verified, against what torch and safetensors wrote."""

import re
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distconv.errors import OutputError
from distconv.formats.meta.written import list_shards, read_shard
from distconv.formats.safetensors import written as chunks
from distconv.storage.local import LocalStorage

STORAGE = LocalStorage()
INDEX = "model.safetensors.index.json"


def test_shards_are_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    for rank in (100, 9, 20, 0):
        (tmp_path / f"consolidated.{rank:02}.pth").touch()
    (tmp_path / "params.json").touch()
    (tmp_path / "consolidated.03.pth").mkdir()
    found = [int(name.split(".")[1]) for name in list_shards(STORAGE, str(tmp_path))]
    assert found == [0, 9, 20, 100]


def test_a_folder_without_shards_is_not_finished(tmp_path: Path) -> None:
    words = re.escape(f"{tmp_path}: no consolidated.00.pth; the conversion is not finished")
    with pytest.raises(OutputError, match=f"^{words}$"):
        list_shards(STORAGE, str(tmp_path))


def test_a_tensor_of_a_record_of_its_own_has_that_records_checksum_and_others_have_none(
    tmp_path: Path,
) -> None:
    column, square = torch.arange(3.0).view(3, 1), torch.arange(9.0).view(3, 3)
    tensors = {"column": column, "turned": square.t(), "rows": square[1:], "empty": torch.ones(0, 2)}
    torch.save(tensors, tmp_path / "consolidated.00.pth")
    found = read_shard(STORAGE, str(tmp_path / "consolidated.00.pth"))
    assert found["column"].crc32 == zlib.crc32(column.numpy().tobytes())
    assert found["turned"].strides == (1, 3)
    assert [name for name, one in found.items() if one.crc32 is None and name != "empty"] == [
        "turned",
        "rows",
    ]
    assert [name for name, one in found.items() if one.strides is None] == ["column", "rows", "empty"]
    content = (tmp_path / "consolidated.00.pth").read_bytes()
    for name in ("column", "rows"):
        begin = found[name].offset_bytes
        assert content[begin : found[name].end_bytes] == tensors[name].contiguous().numpy().tobytes()


def test_tensors_that_together_are_more_than_their_file_are_refused(tmp_path: Path) -> None:
    square = torch.ones(64, 64)
    path = tmp_path / "consolidated.00.pth"
    torch.save({"a": square[:, 1:], "b": square[:, :-1], "c": square[1:]}, path)
    size = path.stat().st_size
    with pytest.raises(OutputError) as refused:
        read_shard(STORAGE, str(path))
    assert str(refused.value) == (
        f"{path}: {3 * 63 * 64 * 4:,} bytes of tensors in a file of {size:,}: several share parts of records; save each as a "
        "copy of its own (`tensor.clone()`)"
    )


def test_a_header_in_another_form_than_ours_is_told_and_one_that_ends_the_file_is_none(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "model.safetensors")
    save_file({"a": torch.ones(2)}, path, {"format": "pt"})
    assert chunks.find_odd_form(STORAGE, path, chunks.read_header(STORAGE, path)) is None
    save_file({"empty": torch.ones(0)}, path, {"format": "pt"})
    assert chunks.find_odd_form(STORAGE, path, chunks.read_header(STORAGE, path)) is None
    save_file({"a": torch.ones(2)}, path, {"format": "pt", "more": "words"})
    words = f"{path}: its header is not in the one form that its tensors have"
    assert chunks.find_odd_form(STORAGE, path, chunks.read_header(STORAGE, path)) == words


def test_an_index_that_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / INDEX).mkdir()
    words = [f"{tmp_path / INDEX}: a folder, pipe or device, expected a regular file"]
    assert list(chunks.find_wrong_index(STORAGE, str(tmp_path), {})) == words
    assert list(chunks.find_index_differences(STORAGE, str(tmp_path), {})) == words
