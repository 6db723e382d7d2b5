"""JSON from a stranger, read in bounded time: huge numbers and doubled keys included."""

import json
import re
from collections.abc import Iterable

from distconv.errors import InputError
from distconv.formats.content import describe_content

LIMIT_BYTES = 8 << 20
"""Of JSON that describes a model (405B's takes less than 0.5 MB); what is parsed takes up to 25 times as much."""
_LONGEST_NUMBER = 40
"""Characters of a whole number that are taken exactly; none that matters has as many."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def decode_json(content: bytes) -> str:
    """Give the text of JSON, which is UTF-8 without a mark: other programs read nothing else; ValueError otherwise.

    The standard library takes bytes of other encodings, and lets surrogates pass, with which no text can be written.
    """
    encoding = json.detect_encoding(content)
    if encoding != "utf-8":
        words = "UTF-8 with a byte order mark" if encoding == "utf-8-sig" else encoding.upper()
        message = f"{words}, which other programs do not read; save it as UTF-8 without a byte order mark"
        raise ValueError(message)
    return content.decode()


def parse_json(content: bytes) -> object:
    """Parse JSON as the standard library does, but for what it refuses or lets pass.

    A whole number beyond 40 characters becomes the nearest float (infinity, where it is out
    of reach), NaN and Infinity become floats: whoever needs the value refuses it. Raises
    ValueError for anything that is not JSON, for half a character (a surrogate that has no
    other one), and for a key that is there twice with different values.
    """
    text = decode_json(content)
    try:
        found: object = json.loads(text, parse_int=_parse_int, object_pairs_hook=_make_object)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        message = "nested too deeply"
        raise ValueError(message) from None
    except UnicodeEncodeError as error:
        message = f"half a character in it, {error.object[error.start]!a}"
        raise ValueError(message) from None
    return found


def parse_object(path: str, content: bytes) -> dict[str, object]:
    """Parse a file that must hold one JSON object; InputError says what it holds instead."""
    try:
        parsed = parse_json(content)
    except ValueError as error:
        reason = "" if content.lstrip()[:1] == b"{" else f"; it is {describe_content(content)}"
        raise InputError(f"{path}: not JSON ({error}){reason}") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: {type(parsed).__name__}, expected a JSON object")
    return parsed


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_NUMBER else float(text)


def _make_object(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        twin = found.setdefault(key, value)
        if twin is not value and (type(twin) is not type(value) or twin != value):
            message = f"{key[:40]!r} is there twice, with different values"
            raise ValueError(message)
    return found


def is_document(head: bytes, form: str) -> bool:
    """Whether a file that begins so is a JSON object that says near its beginning of which ``format`` it is."""
    return head.lstrip().startswith(b"{") and f'"format": "{form}"'.encode() in head
