"""Scaled tensors block by block: plain torch's products, however they are cut, wherever they are read from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.families.cuts import COLUMNS, ROWS
from distconv.families.operations import SAME, TRANSPOSED, Operation, Split
from distconv.formats.views import TensorView
from distconv.layout.dtypes import BFLOAT16, DTYPES, FLOAT32, DType, contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.moving.contents import Contents
from distconv.moving.sources import Sources
from distconv.storage.base import LOCAL_ACCESS, Access
from tests.moving.stand_ins import devices
from tests.moving.test_ahead import Far

FLOAT8 = DTYPES["float8_e4m3fn"]
FAR = Access(gap_bytes=64, request_bytes=4096, ahead_bytes=1 << 16)


def store(files: dict[str, bytes], name: str, array: np.ndarray, dtype: DType) -> TensorView:
    """Lay an array down as a file of its own, behind some other bytes."""
    files[name] = b"before" + array.tobytes()
    region = Region(name, 6, array.nbytes, 0, zipped=False)
    return TensorView(name, region, dtype, 0, array.shape, contiguous_strides(array.shape))


def draw_shard(
    files: dict[str, bytes], rank: int, shape: tuple[int, int], experts: int | None
) -> tuple[TensorView, torch.Tensor]:
    """Make a shard of random float8 values, scaled by rows or by the columns of each expert; and the products."""
    generator = np.random.default_rng(1000 * rank + shape[0])
    values = generator.integers(0, 0x7F, shape, np.uint8)
    values |= generator.integers(0, 2, shape, np.uint8) << 7
    rows, columns = shape
    numbers = generator.random(rows if experts is None else (experts, columns), np.float32) + np.float32(0.01)
    scale = store(files, f"scales {rank}", numbers, FLOAT32)
    if experts is None:
        scale = scale._replace(shape=shape, strides=(1, 0))
        factors = np.broadcast_to(numbers[:, None], shape)
    else:
        scale = scale._replace(shape=(experts, rows // experts, columns), strides=(columns, 0, 1))
        factors = np.repeat(numbers, rows // experts, 0)
    view = store(files, f"shard {rank}", values, FLOAT8)._replace(scale=scale)
    wide = torch.from_numpy(values).view(torch.float8_e4m3fn).to(torch.float32)
    return view, wide * torch.from_numpy(factors.copy())


@given(
    shards=st.integers(1, 4),
    rows=st.integers(1, 12),
    columns=st.integers(1, 40),
    experts=st.sampled_from([None, 1, 3]),
    way=st.sampled_from(["rows", "columns", "transposed"]),
    access=st.sampled_from([LOCAL_ACCESS, FAR]),
    block_bytes=st.sampled_from([1, 64, 300, 4096]),
)
def test_every_block_is_its_values_times_their_scales(
    shards: int, rows: int, columns: int, experts: int | None, way: str, access: Access, block_bytes: int
) -> None:
    files: dict[str, bytes] = {}
    shape = (rows * (experts or 1), columns)
    drawn = [draw_shard(files, rank, shape, experts) for rank in range(shards)]
    cut = COLUMNS if experts or way == "columns" else ROWS
    whole = cut.join([view for view, _products in drawn])
    operation: Operation = TRANSPOSED if way == "transposed" else SAME
    if experts:
        operation = Split(0, (experts, rows))
    tensor, products = operation.apply(whole, 2), torch.cat([found for _view, found in drawn], cut.axis)
    products = products.T if operation is TRANSPOSED else products
    target = OutputTensor("x", "x", tensor.shape, FLOAT8, BFLOAT16, tensor.copies, scale=tensor.scale)
    expected = products.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    for device in devices():
        far = Far(files, access)
        with Sources(far) as sources:  # type: ignore[arg-type]  # it is only read from
            contents = Contents([target], [0], sources, device, block_bytes)
            assert b"".join(bytes(content) for _block, content, _infinite in contents.of(0)) == expected


def test_scales_in_a_store_are_read_by_few_requests() -> None:
    files: dict[str, bytes] = {}
    drawn = [draw_shard(files, rank, (64 * 64, 256), 64)[0] for rank in range(4)]
    tensor = Split(0, (64, 64)).apply(COLUMNS.join(drawn), 2)
    target = OutputTensor("x", "x", tensor.shape, FLOAT8, BFLOAT16, tensor.copies, scale=tensor.scale)
    far = Far(files, FAR)
    with Sources(far) as sources:  # type: ignore[arg-type]  # it is only read from
        blocks = list(Contents([target], [0], sources, devices()[0], 1 << 14).of(0))
        assert len(blocks) > 500
        assert sources.bytes_read == target.elements
    assert sum(path.startswith("scales") for path, _first, _size in far.asked) == 4


def test_a_scale_of_another_shape_or_without_a_cast_is_no_plan() -> None:
    files: dict[str, bytes] = {}
    tensor = draw_shard(files, 0, (4, 6), None)[0].whole()
    target = OutputTensor("x", "x", tensor.shape, FLOAT8, BFLOAT16, tensor.copies, scale=tensor.scale)
    for wrong in ({"shape": (3, 6), "copies": (target.copies[0].take(0, 0, 3),)}, {"dtype": FLOAT8}):
        with pytest.raises(ValueError, match=r"x: a scale of shape \(4, 6\)"):
            replace(target, **wrong)
    assert tensor.scale is not None
    short = replace(tensor.scale, copies=(tensor.scale.copies[0].take(0, 0, 3),))
    with pytest.raises(InputError, match=r"does not give x of shape \(4, 6\) its scale"):
        replace(target, scale=short)
