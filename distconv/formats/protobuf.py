"""Fields of a protobuf message, read without its schema (https://protobuf.dev/programming-guides/encoding)."""

from collections.abc import Iterator


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give (field number, value): varints as numbers, all else as its bytes. ValueError where it is no whole message."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _read_varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _read_varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if not number or position + size > end:
            raise ValueError(f"field {number} of {size} bytes at {position}")
        yield number, message[position : position + size]
        position += size


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    # Nearly all numbers are of one byte.
    if position < len(message) and message[position] < 0x80:
        return message[position], position + 1
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"no whole number at {position}")
