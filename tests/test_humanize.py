"""Sizes as people write and read them."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distconv.errors import UsageError
from distconv.humanize import parse_size, write_size


@given(st.one_of(st.integers(1, 10**15), st.integers(1, 10**6).map(lambda number: number * 10**9)))
def test_a_written_size_is_read_as_itself(size_bytes: int) -> None:
    assert parse_size(write_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [("5GB", 5_000_000_000), ("1.5 kb", 1500), ("2GiB", 1 << 31), ("1000", 1000), ("7B", 7), (7, 7)],
)
def test_a_size_has_the_unit_that_is_written(written: int | str, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@given(
    number=st.decimals(0, 10**15 - 1, places=15).map(lambda number: f"{number:f}".rstrip("0").rstrip(".")),
    unit=st.sampled_from(["kB", "MB", "GB", "KiB", "MiB", "GiB", "B"]),
)
@example("1.005", "GB")
@example("4.35", "kB")
def test_a_decimal_size_loses_no_byte(number: str, unit: str) -> None:
    power = {"k": 1, "m": 2, "g": 3, "b": 0}[unit[0].lower()]
    with localcontext(prec=60):
        expected = int(Decimal(number) * Decimal(1024 if "i" in unit else 1000) ** power)
    if expected:
        assert parse_size(number + unit) == expected
    else:
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(number + unit)


@pytest.mark.parametrize("written", ["1", "5", "999", "1.5", " 20 "])
def test_a_small_number_in_text_needs_its_unit(written: str) -> None:
    with pytest.raises(UsageError, match=rf"has no unit; write {written.strip()}GB, or {written.strip()}B"):
        parse_size(written)


@pytest.mark.parametrize("written", ["5", "five"])
def test_what_is_refused_as_a_size_is_told_one_rule_by_which_the_rest_is_taken(written: str) -> None:
    with pytest.raises(UsageError, match=r"; a number without a unit is one of bytes, from 1000 on$"):
        parse_size(written)
    assert parse_size("1000") == 1000


@pytest.mark.parametrize("given", [True, False, 0, -5, "True", None, 1.5])
def test_what_is_no_size_is_not_taken_for_one(given: object) -> None:
    with pytest.raises(UsageError, match=r"is not a size|has no unit"):
        parse_size(given)  # type: ignore[arg-type]


def test_sizes_are_written_in_the_largest_unit_that_is_exact() -> None:
    sizes = (5_000_000_000, 1_500_000_000, 20_000, 1024)
    assert list(map(write_size, sizes)) == ["5GB", "1500MB", "20kB", "1024B"]
