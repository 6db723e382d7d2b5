"""Values of JSON that somebody may have changed: taken only where they are what a conversion writes."""

import re
from collections.abc import Mapping
from typing import TypeVar

WORD = re.compile(r"[A-Za-z0-9.+_-]{1,64}")
"""What names of families, types and versions are written in."""


class WrongValueError(ValueError):
    """A value is not what a conversion writes there."""


_T = TypeVar("_T")


def take(row: Mapping[str, object], key: str, kind: type[_T], where: str) -> _T:
    """Give a value of exactly this type: True is no number."""
    value = row.get(key)
    if type(value) is not kind:
        raise WrongValueError(f"{key} of {where} is {show(value)}, expected {_KINDS[kind]}")
    # mypy does not take the comparison above for what it is.
    assert isinstance(value, kind)  # noqa: S101
    return value


_KINDS: Mapping[type, str] = {
    str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object",
}  # fmt: skip


def show(value: object) -> str:
    """Show a value in a message, briefly and as ASCII."""
    if isinstance(value, (dict, list)):
        return _KINDS[type(value)]
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check(holds: bool, otherwise: str) -> None:
    """Raise WrongValueError, which says this, unless something holds."""
    if not holds:
        raise WrongValueError(otherwise)


def check_digest(digest: str, pattern: re.Pattern[str], where: str) -> None:
    """Raise WrongValueError where a text is no digest of this form."""
    check(pattern.fullmatch(digest) is not None, f"{show(digest)} of {show(where)} is no digest")
