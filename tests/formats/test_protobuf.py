"""Fields of a message are those that Google's own library finds, and what is no message is refused."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.protobuf import read_fields

_TYPES = {"a_text": 9, "whole": 3, "unsigned": 4, "near": 2, "nearer": 1, "inner": 12, "late": 5}
_NUMBERS = {"a_text": 1, "whole": 2, "unsigned": 3, "near": 4, "nearer": 5, "inner": 15, "late": 16_384}


def make_class() -> type[Any]:
    """Make a message of each kind of field, by the numbers of FieldDescriptorProto.Type."""
    file = descriptor_pb2.FileDescriptorProto(name="sample.proto", package="sample")
    kind = file.message_type.add(name="Sample")
    for name, type_ in _TYPES.items():
        kind.field.add(name=name, number=_NUMBERS[name], type=type_, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sample.Sample"))


Sample = make_class()


@given(
    text=st.text(max_size=300),
    whole=st.integers(-(2**63), 2**63 - 1),
    unsigned=st.integers(0, 2**64 - 1),
    near=st.floats(width=32),
    nearer=st.floats(),
    inner=st.binary(max_size=300),
    late=st.integers(0, 2**31 - 1),
)
def test_what_googles_library_wrote_is_read(**given_values: Any) -> None:
    given_values["a_text"] = given_values.pop("text")
    message = Sample(**given_values).SerializeToString()
    found = dict(read_fields(message))
    again = Sample.FromString(message)
    assert found.get(1, b"") == again.a_text.encode()
    assert found.get(2, 0) == again.whole % 2**64
    assert (found.get(3, 0), found.get(16_384, 0)) == (again.unsigned, again.late)
    assert found.get(15, b"") == again.inner
    for number, name, size in ((4, "near", 4), (5, "nearer", 8)):
        alone = Sample(**{name: getattr(again, name)}).SerializeToString()
        assert found.get(number, b"") == alone[1:]
        assert len(found.get(number, bytes(size))) == size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "bytes_"),
    [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (2**35, 6), (2**63, 10), (2**64 - 1, 10)],
)
def test_numbers_of_any_length_are_read(number: int, bytes_: int) -> None:
    message = b"\x18" + Sample(unsigned=number).SerializeToString()[1:] if number else b"\x18\0"
    assert len(message) == 1 + bytes_
    assert list(read_fields(message + b"\x10\x07")) == [(3, number), (2, 7)]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\x0a\x05four", r"^field 1 of 5 bytes at 2$"),
        (b"\x25\0\0\0", r"^field 4 of 4 bytes at 1$"),
        (b"\x29\0\0\0\0\0\0\0", r"^field 5 of 8 bytes at 1$"),
        (b"\x02\x01a", r"^field 0 of 1 bytes at 2$"),
        (b"\x0b", r"^wire type 3$"),
        (b"\x0f", r"^wire type 7$"),
        (b"\x10", r"^no whole number at 1$"),
        (b"\x10\x80", r"^no whole number at 2$"),
        (b"\x10" + b"\x80" * 11, r"^no whole number at 11$"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes, said: str) -> None:
    with pytest.raises(DecodeError):
        Sample.FromString(message)
    with pytest.raises(ValueError, match=said):
        list(read_fields(message))
