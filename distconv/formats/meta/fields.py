"""Fields of a JSON object, taken by type: what is unambiguous is read, all else is a finding."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from distconv.humanize import list_some

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_UNUSED_WORDS = frozenset({"", "none", "null", "false", "no", "0", "-1"})
_LARGEST_COUNT = 1 << 24
_LARGEST_NUMBER = 1e30
_LONGEST_TEXT = 64
_LONGEST_SHOWN = 40
_MOST_SHOWN = 8


def is_used(value: object) -> bool:
    """Whether a value says something: null, false, -1, 0 and what is empty say "not used".

    An object or a list is used where anything in it is.
    """
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            left += found.values()
        elif isinstance(found, list):
            left += found
        elif isinstance(found, str):
            if len(found) > _LONGEST_TEXT or found.strip().lower() not in _UNUSED_WORDS:
                return True
        elif found is not None and found not in {0, -1}:
            return True
    return False


class Fields:
    """Takes typed fields out of an object, and collects what is wrong and what was taken."""

    def __init__(self, path: str, found: Mapping[str, object], within: str = "") -> None:
        """Take from this object; ``within`` names it where it lies in another one."""
        self.path = path
        self.findings: list[str] = []
        self.taken: set[str] = set()
        self._found = found
        self._within = within
        self._opened: list[Fields] = []

    def get(self, key: str) -> object:
        """Give a value as it is; None where there is none."""
        return self._found.get(key)

    def has(self, key: str) -> bool:
        """Whether a field says something."""
        return is_used(self._found.get(key))

    def left(self) -> Iterator[str]:
        """Give the fields that say something and were not taken, those of opened objects by both names."""
        for key in self._found:
            if key not in self.taken and self.has(key):
                yield self._within + key
        for inner in self._opened:
            yield from inner.left()

    def open(self, key: str) -> "Fields":
        """Go into an object that lies in a field; its findings come to these."""
        self.taken.add(key)
        found = self._found.get(key)
        if not isinstance(found, dict):
            self.report(key, found, "an object")
            found = {}
        inner = Fields(self.path, found, f"{self._within}{key}.")
        inner.findings = self.findings
        self._opened.append(inner)
        return inner

    def require(self, key: str) -> bool:
        """Whether a field is there; that it is not is a finding."""
        there = self._found.get(key) is not None
        if not there:
            self.findings.append(f"{self.path}: no {self._within + key!r}")
        return there

    def take_count(self, key: str) -> int:
        """Take a whole number that must be there; 1 where it is wrong."""
        return (self._take_count(key, self._found[key]) if self.require(key) else None) or 1

    def take_optional_count(self, key: str) -> int | None:
        """Take a whole number; None where there is none, or it says "not used"."""
        self.taken.add(key)
        return self._take_count(key, self._found[key]) if self.has(key) else None

    def take_number(self, *keys: str, at_most: float = _LARGEST_NUMBER, always: bool = False) -> float | None:
        """Take a positive number, whichever of its names it has; two that differ are a finding.

        Of an ``always`` used one only null says that it is not given.
        """
        found: dict[float, str] = {}
        for key in keys:
            value = self._found.get(key)
            self.taken.add(key)
            number = _read_number(value)
            if value is None or not (always or is_used(value)):
                continue
            if number is None or not 0 < number <= at_most:
                most = "" if at_most == _LARGEST_NUMBER else f" of at most {at_most:g}"
                self.report(key, value, f"a positive number{most}")
            else:
                found.setdefault(number, key)
        if len(found) > 1:
            said = " and ".join(f"{self._within}{key} {number:g}" for number, key in found.items())
            self.findings.append(f"{self.path}: {said}, expected one of them or equal ones")
        return next(iter(found), None)

    def report(self, key: str, value: object, expected: str) -> None:
        """Add that a field's value is not what was expected to the findings."""
        self.findings.append(f"{self.path}: {self._within}{key} is {_show(value)}, expected {expected}")

    def take_flag(self, key: str) -> bool:
        """Take true or false, also as a word."""
        value = self._found.get(key)
        self.taken.add(key)
        if isinstance(value, str) and value.strip().lower() == "true":
            return True
        if value is not True and is_used(value):
            self.report(key, value, "true or false")
        return value is True

    def _take_count(self, key: str, value: object) -> int | None:
        self.taken.add(key)
        number = _read_number(value)
        if number is None or not number.is_integer() or not 0 < number <= _LARGEST_COUNT:
            self.report(key, value, f"a whole number from 1 to {_LARGEST_COUNT:,}")
            return None
        return int(number)


def describe_unknown(keys: Sequence[str]) -> Iterator[str]:
    """Say that fields which mean something are left out; nothing where there are none."""
    if keys:
        yield f"{list_some([repr(key[:40]) for key in keys], _MOST_SHOWN)}: not known to distconv, and left out"


def _read_number(value: object) -> float | None:
    """Read a number, or one that is written as text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        if len(value) > _LONGEST_TEXT or _NUMBER.fullmatch(text) is None:
            return None
        value = float(text)
    # A flag is no number, though Python takes it for one.
    if type(value) not in (int, float):
        return None
    number = float(str(value))
    return number if math.isfinite(number) else None


def _show(value: object) -> str:
    """Show a value as far as a person needs it, numbers beyond all as JSON has them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list) and any(isinstance(found, dict | list) for found in value):
        return "a list"
    shown = repr(value[:_LONGEST_TEXT] if isinstance(value, str | list) else value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 3]}..."
