"""Checksums of whole records tell, without data, that two tensors differ; nothing else does."""

import zlib

import pytest

from distconv.formats.views import TensorView, checksum_of, is_disproved
from distconv.layout.dtypes import FLOAT32
from distconv.layout.regions import Region

ONE, OTHER = (bytes([number]) * 48 for number in (1, 2))


def make_view(
    data: bytes, offset: int = 0, shape: tuple[int, ...] = (3, 4), *, known: bool = True
) -> TensorView:
    region = Region("a.pth", 64, len(data), zlib.crc32(data) if known else 0, zipped=True)
    return TensorView("a", region, FLOAT32, offset, shape, (shape[-1], 1))


def test_a_tensor_has_the_checksum_of_a_record_that_it_fills() -> None:
    assert checksum_of(make_view(ONE)) == zlib.crc32(ONE)
    assert checksum_of(make_view(ONE, known=False)) == 0
    assert checksum_of(make_view(ONE, shape=(2, 4))) == 0
    assert checksum_of(make_view(ONE, offset=4, shape=(2, 4))) == 0
    assert checksum_of(make_view(ONE, offset=4)) == 0


@pytest.mark.parametrize(
    ("left", "right", "disproved"),
    [
        (make_view(ONE), make_view(OTHER), True),
        (make_view(ONE), make_view(ONE), False),
        (make_view(ONE), make_view(OTHER, known=False), False),
        (make_view(ONE, known=False), make_view(OTHER), False),
        (make_view(ONE, known=False), make_view(OTHER, known=False), False),
        (make_view(ONE), make_view(OTHER, shape=(4, 3)), False),
        (make_view(ONE), make_view(ONE, shape=(4, 3)), False),
    ],
)
def test_two_tensors_are_disproved_by_checksums_of_the_same_order(
    left: TensorView, right: TensorView, disproved: bool
) -> None:
    assert is_disproved(left, right) is disproved
