"""Sizes, counts and durations, for people."""

import re
from collections.abc import Sequence
from typing import TypeGuard

from distconv.errors import UsageError

GIGABYTE, MEGABYTE = 1e9, 1e6
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_LEAST_WITHOUT_UNIT = 1000
_RULE = f"a number without a unit is one of bytes, from {_LEAST_WITHOUT_UNIT} on"
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-z]*)")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, which True is none of for people, though it is one of Python's."""
    return isinstance(value, int) and not isinstance(value, bool)


def parse_size(size: int | str) -> int:
    """Take a number of bytes, or ``5GB``, ``500MB``, ``2GiB``; GB is 10^9, as in Transformers. UsageError for others.

    In text, a number of less than 1000 needs its unit: who writes ``5`` means gigabytes.
    """
    if is_whole(size) and size > 0:
        return size
    match = _SIZE.fullmatch(str(size).strip().lower())
    count = 0 if match is None else _multiply(match[1], _UNITS.get(match[2], 0))
    if match is None or count < 1:
        raise UsageError(f"{size!r} is not a size; write 5GB, 500MB or 2GiB; {_RULE}")
    if not match[2] and count < _LEAST_WITHOUT_UNIT:
        raise UsageError(
            f"{size!r} has no unit; write {match[1]}GB, or {match[1]}B for so many bytes; {_RULE}"
        )
    return count


def _multiply(decimal: str, unit: int) -> int:
    """Multiply a decimal as it is written, of which a float would have another, and leave off a fraction of a byte."""
    whole, _, fraction = decimal.partition(".")
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * unit // scale


def write_size(size_bytes: int) -> str:
    """Give a size so that ``parse_size`` reads just that: ``5GB``, ``1500MB``, ``7B``."""
    unit = next((unit for unit in ("GB", "MB", "kB") if size_bytes % _UNITS[unit.lower()] == 0), "B")
    return f"{size_bytes // _UNITS[unit.lower()]}{unit}"


def format_size(size_bytes: float) -> str:
    """Give a size in decimal units, as Transformers counts: ``137.95 GB``, ``2.0 MB``, ``512 B``."""
    if size_bytes >= GIGABYTE:
        return f"{size_bytes / GIGABYTE:,.2f} GB"
    if size_bytes >= MEGABYTE:
        return f"{size_bytes / MEGABYTE:.1f} MB"
    return f"{size_bytes:.0f} B" if size_bytes < 1000 else f"{size_bytes / 1000:.1f} kB"


def format_count(count: int, unit: str) -> str:
    """Give a number with its noun: ``1 file``, ``2,000 files``."""
    return f"{count:,} {pluralise(count, unit)}"


def pluralise(count: int, unit: str) -> str:
    """Give a noun as its number wants it: ``file``, ``files``."""
    return unit if count == 1 else f"{unit}s"


def format_choice(counts: Sequence[int], unit: str) -> str:
    """Give numbers of which one may be chosen, in their order: ``1, 2 or 4 files``, ``1 file``."""
    *others, last = counts
    return (
        f"{', '.join(map(str, others))} or {format_count(last, unit)}" if others else format_count(last, unit)
    )


def shorten(findings: Sequence[str], most: int) -> list[str]:
    """Give the first of many findings that are alike, and how many there are more."""
    more = len(findings) - most
    return [*findings[:most], *([f"… and {more:,} more like these"] if more > 0 else [])]


def list_some(names: Sequence[str], most: int) -> str:
    """Give the first of many names, and how many there are more: ``a, b and 3 more``."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def list_first(names: Sequence[str], most: int) -> str:
    """Give the first of many names, where how many there are more says little: ``a, b, …``."""
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


def format_duration(seconds: float) -> str:
    """Give a duration as people say it: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"
