"""Gathers and casts: the same bytes on every device, however a tensor is cut."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.dtypes import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    DType,
    contiguous_strides,
    extent_elements,
)
from distconv.layout.regions import Region
from distconv.moving.devices import Device, Scales
from distconv.moving.pieces import Piece
from tests.moving.stand_ins import devices

NOWHERE = Region("shard", 0, 0, 0, zipped=False)
EXPONENT_BITS = {"float16": 5, "bfloat16": 8, "float32": 8, "float64": 11}
QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000}
WRITTEN = (FLOAT16, BFLOAT16, FLOAT32)
PAIRS = [
    (stored, dtype)
    for stored in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)
    for dtype in WRITTEN
    if stored != dtype
]
on_pairs = pytest.mark.parametrize(
    ("stored", "dtype"), PAIRS, ids=[f"{stored} to {dtype}" for stored, dtype in PAIRS]
)


def interesting_bits(stored: DType, dtype: DType) -> np.ndarray:
    """Every pattern of a 16-bit type; of others the special ones, those at the edges of a cast, random ones."""
    unit = stored.size_bytes
    if unit == 2:
        return np.arange(1 << 16, dtype=np.uint16)
    generator = np.random.default_rng(number_of(stored, dtype))
    unsigned, width = np.dtype(f"u{unit}"), unit * 8
    mantissa = width - 1 - EXPONENT_BITS[stored.name]
    infinity = ((1 << EXPONENT_BITS[stored.name]) - 1) << mantissa
    payloads = [1, 0x1234, (1 << (mantissa - 1)) - 1, 1 << (mantissa - 1), (1 << mantissa) - 1]
    special = [0, 1, 2, (1 << mantissa) - 1, 1 << mantissa, infinity - 1, infinity]
    special += [infinity | payload for payload in payloads]
    special += [1 << shift for shift in range(width - 1)] + [
        infinity | 1 << shift for shift in range(mantissa)
    ]
    signed = np.array([*special, *(bits | 1 << (width - 1) for bits in special)], dtype=unsigned)
    # What lies half way between neighbours of the target's type, a bit less, and a bit more.
    edges = [halves(generator, stored, dtype, nudge) for nudge in (-1, 0, 1)]
    random = generator.integers(0, np.iinfo(unsigned).max, size=1 << 15, dtype=unsigned, endpoint=True)
    near_one = (random & unsigned.type((1 << mantissa) - 1)) | unsigned.type(
        ((1 << (EXPONENT_BITS[stored.name] - 1)) - 1) << mantissa
    )
    return np.concatenate([signed, *edges, random, near_one])


def number_of(stored: DType, dtype: DType) -> int:
    """A seed of each pair's own."""
    return PAIRS.index((stored, dtype))


def halves(generator: np.random.Generator, stored: DType, dtype: DType, nudge: int) -> np.ndarray:
    """Patterns of the stored type that lie between two neighbours of the other one, give or take a bit."""
    reachable = np.arange(1 << 16, dtype=np.uint16)
    if dtype.size_bytes == 4:
        reachable = generator.integers(0, 0xFFFFFFFF, size=1 << 16, dtype=np.uint32)
    pair = [reachable.view(f"i{dtype.size_bytes}"), (reachable + 1).view(f"i{dtype.size_bytes}")]
    low, high = (torch.from_numpy(bits).view(getattr(torch, dtype.name)).double() for bits in pair)
    found = (low / 2 + high / 2).to(getattr(torch, stored.name)).numpy().view(f"u{stored.size_bytes}")
    return found + found.dtype.type(nudge % (1 << (8 * stored.size_bytes)))


def is_nan(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """Tell NaNs by their bits alone."""
    width = dtype.size_bytes * 8
    magnitude = bits & bits.dtype.type((1 << (width - 1)) - 1)
    infinity = ((1 << EXPONENT_BITS[dtype.name]) - 1) << (width - 1 - EXPONENT_BITS[dtype.name])
    return magnitude > bits.dtype.type(infinity)


def expect_cast(bits: np.ndarray, stored: DType, dtype: DType) -> tuple[np.ndarray, int]:
    """Cast with plain torch, one quiet NaN for all; count finite values that became infinite."""
    values = torch.from_numpy(bits.copy()).view(getattr(torch, stored.name))
    cast = values.to(getattr(torch, dtype.name))
    became_infinite = int((values.isfinite() & cast.isinf()).sum())
    found = cast.view({2: torch.int16, 4: torch.int32}[dtype.size_bytes]).numpy().view(f"u{dtype.size_bytes}")
    found = found.copy()
    found[is_nan(bits, stored)] = QUIET_NAN[dtype.name]
    return found, became_infinite


def straight(elements: int, target_offset: int = 0) -> Piece:
    """A piece that is copied as it is."""
    return Piece(NOWHERE, 0, elements, (elements,), (1,), target_offset, (1,))


def content_of(bits: np.ndarray) -> memoryview:
    """The bytes as they are read."""
    return memoryview(bytearray(bits.tobytes()))


def run_on(
    device: Device,
    sources: Sequence[tuple[Piece, memoryview]],
    stored: DType,
    dtype: DType,
    elements: int | None = None,
) -> tuple[memoryview, int]:
    """Put pieces together on a device; as many elements as come in, where nothing else is said."""
    whole = b"".join(bytes(content) for _piece, content in sources)
    memory = device.begin(len(whole), 0)
    memory[:] = whole
    pieces = [piece for piece, _content in sources]
    return device.submit(memory, pieces, elements or len(whole) // stored.size_bytes, stored, dtype)()


def cast_on(device: Device, bits: np.ndarray, stored: DType, dtype: DType) -> tuple[np.ndarray, int]:
    """Cast dense elements on a device."""
    sources = [(straight(len(bits)), content_of(bits))]
    found, became_infinite = run_on(device, sources, stored, dtype)
    return np.frombuffer(bytes(found), dtype=f"u{dtype.size_bytes}"), became_infinite


def check_cast(device: Device, stored: DType, dtype: DType) -> None:
    """Compare a device's cast of all interesting patterns with plain torch."""
    bits = interesting_bits(stored, dtype)
    expected, expected_infinite = expect_cast(bits, stored, dtype)
    found, became_infinite = cast_on(device, bits, stored, dtype)
    np.testing.assert_array_equal(found, expected)
    assert became_infinite == expected_infinite


@on_pairs
def test_a_cast_is_that_of_plain_torch_with_one_quiet_nan(stored: DType, dtype: DType) -> None:
    for device in devices():
        check_cast(device, stored, dtype)


def test_widening_16_bits_keeps_every_value() -> None:
    """Checked with NumPy's half type and with shifts, that is without torch."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    for stored, expected in (
        (FLOAT16, bits.view(np.float16).astype(np.float32).view(np.uint32)),
        (BFLOAT16, bits.astype(np.uint32) << 16),
    ):
        for device in devices():
            found, became_infinite = cast_on(device, bits, stored, FLOAT32)
            nan = is_nan(bits, stored)
            np.testing.assert_array_equal(found[~nan], expected[~nan])
            assert set(found[nan].tolist()) == {0x7FC00000}
            assert became_infinite == 0


def test_narrowing_float32_rounds_to_the_nearest_and_ties_to_even() -> None:
    """Checked with NumPy's half type and with integers, that is without torch."""
    for dtype in (FLOAT16, BFLOAT16):
        bits = interesting_bits(FLOAT32, dtype)
        bits = bits[~is_nan(bits, FLOAT32)]
        if dtype == FLOAT16:
            with np.errstate(over="ignore"):
                expected = bits.view(np.float32).astype(np.float16).view(np.uint16)
        else:
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            expected = ((bits.astype(np.uint64) + 0x7FFF + odd) >> np.uint64(16)).astype(np.uint16)
        for device in devices():
            np.testing.assert_array_equal(cast_on(device, bits, FLOAT32, dtype)[0], expected)


@pytest.mark.parametrize(
    ("dtype", "value", "became_infinite"),
    [
        (FLOAT16, 65519.996, 0),
        (FLOAT16, 65520.0, 1),
        (FLOAT16, -1e5, 1),
        (BFLOAT16, 3.3895e38, 0),
        (BFLOAT16, 3.4e38, 1),
        (FLOAT16, float("inf"), 0),
        (FLOAT16, float("nan"), 0),
    ],
)
def test_only_finite_values_that_became_infinite_are_counted(
    dtype: DType, value: float, became_infinite: int
) -> None:
    bits = np.array([value, 1.0], dtype=np.float32).view(np.uint32)
    for device in devices():
        assert cast_on(device, bits, FLOAT32, dtype)[1] == became_infinite


@on_pairs
def test_a_cast_does_not_depend_on_where_it_is_cut(stored: DType, dtype: DType) -> None:
    bits = interesting_bits(stored, dtype)
    expected, expected_infinite = expect_cast(bits, stored, dtype)
    cuts = [0, 1, 2, 5, 12, 29, 62, 127, 1000, 4097, 10_001, 33_333, len(bits)]
    for device in devices():
        found = [cast_on(device, bits[start:end], stored, dtype) for start, end in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate([cast for cast, _infinite in found]), expected)
        assert sum(infinite for _cast, infinite in found) == expected_infinite


@on_pairs
@given(seed=st.integers(0, 1 << 30), elements=st.integers(1, 70), data=st.data())
def test_a_cast_does_not_depend_on_neighbours_or_pieces(
    stored: DType, dtype: DType, seed: int, elements: int, data: st.DataObject
) -> None:
    bits = np.random.default_rng(seed).choice(interesting_once(stored, dtype), elements)
    edge = data.draw(st.integers(0, elements))
    expected, expected_infinite = expect_cast(bits, stored, dtype)
    sources = [
        (straight(end - start, start), content_of(bits[start:end]))
        for start, end in ((0, edge), (edge, elements))
        if end > start
    ]
    for device in devices():
        found, became_infinite = run_on(device, sources, stored, dtype)
        assert bytes(found) == expected.tobytes()
        assert became_infinite == expected_infinite


FLOAT8 = DTYPES["float8_e4m3fn"]


@pytest.mark.parametrize("dtype", WRITTEN, ids=str)
@given(
    seed=st.integers(0, 1 << 30), rows=st.integers(1, 9), columns=st.integers(1, 70), by_rows=st.booleans()
)
def test_elements_are_scaled_in_float32_and_cast_as_by_plain_torch(
    dtype: DType, seed: int, rows: int, columns: int, by_rows: bool
) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 256, (rows, columns), np.uint8)
    exponents = generator.integers(1, 0x7F800000, rows if by_rows else columns, np.uint32)
    scale = exponents.view(np.float32)
    wide = torch.from_numpy(bits).view(torch.float8_e4m3fn).to(torch.float32)
    factors = torch.from_numpy(scale.copy())
    cast = (wide * (factors[:, None] if by_rows else factors)).to(getattr(torch, dtype.name))
    expected = torch.where(cast.isnan(), torch.tensor(float("nan"), dtype=cast.dtype), cast)
    piece = Piece(NOWHERE, 0, len(scale), (rows, columns), (1, 0) if by_rows else (0, 1), 0, (columns, 1))
    scales = Scales(content_of(scale), (piece,), FLOAT32)
    for device in devices():
        memory = device.begin(bits.size, 0)
        memory[:] = bits.tobytes()
        found, became_infinite = device.submit(
            memory, [straight(bits.size)], bits.size, FLOAT8, dtype, scales
        )()
        assert bytes(found) == expected.view(torch.uint8).numpy().tobytes()
        assert became_infinite == int(expected.isinf().sum())


_MADE: dict[tuple[DType, DType], np.ndarray] = {}


def interesting_once(stored: DType, dtype: DType) -> np.ndarray:
    """The patterns, made once a pair."""
    if (stored, dtype) not in _MADE:
        _MADE[stored, dtype] = interesting_bits(stored, dtype)
    return _MADE[stored, dtype]


def boxes() -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Extents, source and target strides of boxes of every kind, each of 7 columns of a row of 13."""
    return {
        "rows": ((6, 13), (13, 1), (13, 1)),
        "padded rows": ((6, 13), (17, 1), (13, 1)),
        "columns": ((6, 7), (7, 1), (13, 1)),
        "transposed": ((6, 13), (1, 6), (13, 1)),
        "heads": ((3, 2, 4, 13), (8 * 13, 13, 2 * 13, 1), (8 * 13, 4 * 13, 13, 1)),
        "transposed heads": ((3, 2, 4, 13), (8, 1, 2, 24), (8 * 13, 4 * 13, 13, 1)),
        "one element": ((1,), (1,), (1,)),
    }


def check_gather(device: Device, kind: str, stored: DType, target_offset: int) -> None:
    """Compare a gather with plain indexing; the elements have every kind of bits."""
    extents, source_strides, target_strides = boxes()[kind]
    span = extent_elements(extents, source_strides)
    size = target_offset + extent_elements(extents, target_strides)
    unit = np.dtype(f"u{stored.size_bytes}")
    generator = np.random.default_rng(math.prod(extents))
    source = generator.integers(0, np.iinfo(unit).max, size=span, dtype=unit, endpoint=True)
    below = generator.integers(0, np.iinfo(unit).max, size=size, dtype=unit, endpoint=True)
    expected = below.copy()
    for place in np.ndindex(extents):
        at = target_offset + sum(i * stride for i, stride in zip(place, target_strides, strict=True))
        expected[at] = source[sum(i * stride for i, stride in zip(place, source_strides, strict=True))]
    piece = Piece(NOWHERE, 0, span, extents, source_strides, target_offset, target_strides)
    # The first piece fills the block, the second lands upon it.
    sources = [(straight(size), content_of(below)), (piece, content_of(source))]
    assert bytes(run_on(device, sources, stored, stored, below.size)[0]) == expected.tobytes()


@pytest.mark.parametrize("stored", [BFLOAT16, FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("kind", boxes())
@pytest.mark.parametrize("target_offset", [0, 1, 5])
def test_a_gather_moves_all_bits_to_their_places(kind: str, stored: DType, target_offset: int) -> None:
    for device in devices():
        check_gather(device, kind, stored, target_offset)


@pytest.mark.parametrize("stored", [FLOAT16, BFLOAT16], ids=str)
def test_a_gather_changes_no_pattern_of_16_bits(stored: DType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    strides = contiguous_strides(bits.shape)
    piece = Piece(NOWHERE, 0, bits.size, bits.shape, strides[::-1], 0, strides)
    for device in devices():
        found = run_on(device, [(piece, content_of(bits))], stored, stored)[0]
        assert bytes(found) == bits.T.tobytes()


def test_a_device_is_used_for_blocks_of_any_size_one_after_another() -> None:
    for device in devices():
        for elements in (5, 1000, 3, 999, 1):
            bits = np.arange(elements, dtype=np.uint32)
            found = run_on(device, [(straight(elements), content_of(bits))], FLOAT32, FLOAT32)[0]
            assert bytes(found) == bits.tobytes()
            assert cast_on(device, bits, FLOAT32, FLOAT16)[0].size == elements
