"""JSON from a stranger is what the standard library reads of it, but for what other programs cannot read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.plain_json import is_document, parse_json, parse_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_what_the_standard_library_wrote_is_read_as_it_reads_it(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert json.dumps(parse_json(text.encode())) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8-sig", "UTF-8 with a byte order mark"),
        ("utf-16", "UTF-16"),
        ("utf-16-be", "UTF-16-BE"),
        ("utf-32-le", "UTF-32-LE"),
    ],
)
def test_another_encoding_is_named_though_the_standard_library_reads_it(encoding: str, words: str) -> None:
    content = '{"dim": 4096}'.encode(encoding)
    assert json.loads(content) == {"dim": 4096}
    with pytest.raises(
        ValueError, match=r"^" + words + r", which other programs do not read; save it as UTF-8 w"
    ):
        parse_json(content)


def test_half_a_character_is_named_and_a_whole_one_is_taken() -> None:
    assert parse_json(rb'{"a": "\ud83d\ude00"}') == {"a": "\N{GRINNING FACE}"}
    assert parse_json(b'{"a": "\\\\ud83d"}') == {"a": "\\ud83d"}
    for content in (rb'{"a": "\ud83d"}', rb'{"\ude00": 1}', rb'["\uDE00\uD83D"]'):
        json.loads(content)
        with pytest.raises(ValueError, match=r"^half a character in it, '\\ud[8e][30][d0]'$"):
            parse_json(content)


def test_a_key_that_is_there_twice_has_the_same_value() -> None:
    assert parse_json(b'{"a": 1000, "a": 1000, "b": [1.5], "b": [1.5]}') == {"a": 1000, "b": [1.5]}
    name = "a" * 39 + "bc"
    for one, other in (
        ("1000", "1001"),
        ("1", "true"),
        ("1", "1.0"),
        ("0", "false"),
        ('"1"', "1"),
        ("[1]", "[2]"),
    ):
        with pytest.raises(ValueError, match=rf"^'{name[:40]}' is there twice, with different values$"):
            parse_json(f'{{"{name}": {one}, "{name}": {other}}}'.encode())


def test_a_whole_number_of_forty_characters_is_exact_and_a_longer_one_is_near() -> None:
    exact = "9" * 40
    assert parse_json(exact.encode()) == int(exact)
    longer = parse_json(f"{exact}9".encode())
    assert type(longer) is float
    assert longer == float(f"{exact}9")
    assert parse_json(b"1" + b"0" * 5_000) == float("inf")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b' \n{"dim": 1', r"x\.json: not JSON \(.*delimiter.*\)$"),
        (
            b"<html>\n{",
            r"x\.json: not JSON \(.*\); it is an HTML or XML page, as an expired download link gives$",
        ),
        (b"[" * 100_000, r"x\.json: not JSON \(nested too deeply\); it is JSON text$"),
        (b"[1]", r"x\.json: list, expected a JSON object$"),
        (b"null", r"x\.json: NoneType, expected a JSON object$"),
    ],
)
def test_what_is_no_object_is_named(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_object("x.json", content)


def test_a_document_says_its_format_near_its_beginning() -> None:
    document = b'\n {"format": "distconv receipt", "rest": '
    assert is_document(document, "distconv receipt")
    assert not is_document(document, "distconv manifest")
    assert not is_document(b"[" + document, "distconv receipt")
    assert not is_document(b'{"dim": 1}', "distconv receipt")
