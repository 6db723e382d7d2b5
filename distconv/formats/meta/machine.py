"""A pickle's machine: its stack, its marks, its memo, and the bytes that it reads."""

from collections.abc import Callable, Sequence

from distconv.errors import InputError

_LIMIT_OPCODES = 1_000_000
"""A tensor takes about 40."""
_LIMIT_TEXT_BYTES = 1 << 20
_LIMIT_LINE_BYTES = 256
_STOP = ord(".")


class Machine:
    """A pickle's stack, marks and memo; ``position`` is that of the next byte to read."""

    __slots__ = ("content", "marks", "memo", "position", "stack")

    def __init__(self, content: bytes, start: int) -> None:
        self.content = content
        self.position = start
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self, handlers: Sequence[Callable[["Machine"], None]]) -> object:
        """Carry out opcodes, each by its handler, until STOP."""
        content = self.content
        for _ in range(_LIMIT_OPCODES):
            code = content[self.position]
            self.position += 1
            if code == _STOP:
                return self.stack.pop()
            handlers[code](self)
        raise InputError(f"its description has more than {_LIMIT_OPCODES:,} steps; refused as unsafe")

    def take_number(self, size_bytes: int) -> int:
        """Read a number that says how many or which, little-endian."""
        start = self.position
        self.position = end = start + size_bytes
        # What is missing of a number at the end is missed when the next opcode is read.
        return int.from_bytes(self.content[start:end], "little")

    def take_bytes(self, size_bytes: int) -> bytes:
        """Read text or bytes of a length that the pickle claims."""
        if size_bytes > _LIMIT_TEXT_BYTES:
            raise InputError(f"its description holds {size_bytes:,} bytes in one piece; refused as unsafe")
        start = self.position
        self.position = end = start + size_bytes
        return self.content[start:end]

    def take_line(self) -> str:
        """Read up to the end of a line."""
        start = self.position
        end = self.content.find(b"\n", start, start + _LIMIT_LINE_BYTES)
        if end < 0:
            self.position = start + _LIMIT_LINE_BYTES
            raise ValueError("a line without an end")
        self.position = end + 1
        return self.content[start:end].decode()

    def take_marked(self) -> list[object]:
        """Take from the stack what lies above the last mark."""
        first = self.marks.pop()
        marked = self.stack[first:]
        del self.stack[first:]
        return marked
