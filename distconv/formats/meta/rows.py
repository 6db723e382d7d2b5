"""Objects of a few classes in a row, as pickle writes most of them: taken at once, not opcode by opcode.

The ranks of a large model leave millions of objects in thirty opcodes each, which differ by a few numbers and a name.
No opcode begins as another one does, so that a pattern of whole opcodes matches in one way only: see ``pickletools``.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice, repeat
from operator import itemgetter

from distconv.formats.marks import Class, Function, Record
from distconv.formats.meta.machine import NOTHING, Machine, Phrase

_RECALL = rb"(?:h.|j....)"
_NUMBER = rb"(?:K.|M..|J....|\x8a\x05.....|\x8a\x06......)"
_TEXT = rb"\x8c.[ -~]{1,255}\x94"
_EXTENTS = rb"(?:%b\x85|%b{2}\x86|%b{3}\x87|\(%b{4,8}t)\x94" % ((_NUMBER,) * 4)
_SIZE = _RECALL + _EXTENTS + rb"\x85\x94R\x94"
_VALUE = rb"(" + b"|".join((_SIZE, _RECALL, _NUMBER, _TEXT)) + rb")"
_FIRST_RECALL, _NUMBERS = (re.compile(pattern, re.DOTALL) for pattern in (_RECALL, _NUMBER))
_RECALLS, _RECALL_SIZES = b"hj", {2, 5}
_MOST_PHRASES = 1 << 16
_MOST_LEARNED = 16
_MORE, _MOST_AT_ONCE = 8, 512
"""Of rows, so that who lets them fail has few looked at in vain."""
_STEPS, _FIELD_STEPS = 8, 2
"""Opcodes of an object, and of each attribute at least, which count as if they had been carried out."""
_VALUE_OF, _KEPT_OF = itemgetter(0), itemgetter(1)
_LONG, _SIGNED, _SHORT_TEXT = 0x8A, b"J\x8a", 0x8C


def take_rows(machine: Machine, row: tuple[Class, ...]) -> None:
    """Carry out what makes objects of these classes, one row after the other; each one's state is a tuple of its fields.

    Where anything else stands nothing is done: that is carried out opcode by opcode, and found wrong there.
    """
    pattern = machine.patterns.get(row)
    if pattern is None:
        # Each costs as much as many rows, and who writes objects in rows needs few.
        pattern = _learn(machine, row) if machine.learned < _MOST_LEARNED else None
        if pattern is None:
            return
        machine.patterns[row] = pattern
        machine.learned += 1
    steps = sum(_STEPS + _FIELD_STEPS * len(kind.fields) for kind in row)
    most = 1
    while found := _find_rows(machine, pattern, most):
        try:
            made, kept = _make_objects(machine, row, found)
        except (IndexError, ValueError):
            if len(found) == 1:
                return
            most = 1  # one recalls what another one keeps, or is wrong
            continue
        machine.stack += made
        machine.memo += kept
        machine.position = found[-1].end()
        machine.save_steps(steps * len(found))
        most = min(most * _MORE, _MOST_AT_ONCE)


def _find_rows(machine: Machine, pattern: re.Pattern[bytes], most: int) -> list[re.Match[bytes]]:
    found = []
    content, position = machine.content, machine.position
    for _ in range(most):
        match = pattern.match(content, position)
        if match is None:
            break
        position = match.end()
        found.append(match)
    return found


def _make_objects(
    machine: Machine, row: tuple[Class, ...], found: list[re.Match[bytes]]
) -> tuple[Iterator[Record], Iterator[object]]:
    """Make rows of the opcodes of their values; gives them, and what the memo has of them.

    Of millions of values each is looked up, and nothing else is done by itself: the interpreter goes through columns.
    """
    phrases = machine.phrases
    columns = iter(
        [
            [phrases.get(content) or _take_value(machine, content) for content in column]
            for column in zip(*map(re.Match.groups, found), strict=True)
        ]
    )
    made: list[list[Record]] = []
    kept: list[Iterable[tuple[object, ...]]] = []
    for kind in row:
        own = list(islice(columns, len(kind.fields)))
        states = zip(*(map(_VALUE_OF, column) for column in own), strict=True)
        records = [Record(kind, (), state) for state in states]
        made.append(records)
        # The dict, which is not made, is recalled by no pickle of Python's.
        kept += (zip(records, repeat(NOTHING)), *(map(_KEPT_OF, column) for column in own))
    flat = chain.from_iterable
    return flat(zip(*made, strict=True)), flat(flat(zip(*kept, strict=True)))


@cache
def _compile(row: tuple[int, ...]) -> re.Pattern[bytes]:
    """Give the pattern of objects with so many attributes each: made, kept, and built of a dict that is filled."""
    attribute = rb"(" + _RECALL + rb")" + _VALUE
    made = (rb"(" + _RECALL + rb")\)\x81\x94\}\x94\(" + attribute * fields + rb"ub" for fields in row)
    return re.compile(b"".join(made), re.DOTALL)


def _learn(machine: Machine, row: tuple[Class, ...]) -> re.Pattern[bytes] | None:
    """Give the pattern of a row, with the numbers by which this pickle recalls classes and names; None where none stands here."""
    match = _compile(tuple(len(kind.fields) for kind in row)).match(machine.content, machine.position)
    if match is None:
        return None
    # Classes and names as they have to be, and None where there are values.
    wanted = [one for kind in row for one in (kind, *(each for name in kind.fields for each in (name, None)))]
    parts: list[bytes] = []
    end = match.start()
    for group, known in enumerate(wanted, 1):
        if known is None:
            parts += (re.escape(machine.content[end : match.start(group)]), _VALUE)
            end = match.end(group)
        elif machine.recall(_read_number(match[group])) != known:
            return None
    return re.compile(b"".join((*parts, re.escape(machine.content[end : match.end()]))), re.DOTALL)


def _take_value(machine: Machine, content: bytes) -> Phrase:
    """Give a value that a pattern found, and keep the first ones: most come again."""
    code = content[0]
    phrase: Phrase
    if code == _SHORT_TEXT:
        phrase = _read_text(content)
    elif code not in _RECALLS:
        phrase = _read_number(content), ()
    elif len(content) in _RECALL_SIZES:
        phrase = machine.recall(_read_number(content)), ()
    else:
        phrase = _read_size(machine, content)
    if len(machine.phrases) < _MOST_PHRASES:
        machine.phrases[content] = phrase
    return phrase


def _read_number(content: bytes) -> int:
    code = content[0]
    return int.from_bytes(content[1 + (code == _LONG) :], "little", signed=code in _SIGNED)


def _read_text(content: bytes) -> Phrase:
    if len(content) != content[1] + 3:
        raise ValueError("a text of another length")
    text = content[2:-1].decode()
    return text, (text,)


def _read_size(machine: Machine, content: bytes) -> Phrase:
    """Call a function with a tuple of numbers."""
    recalled = _FIRST_RECALL.match(content)
    assert recalled is not None  # noqa: S101  a pattern found it
    function = machine.recall(_read_number(recalled[0]))
    if not isinstance(function, Function):
        raise ValueError("a call of no function")  # noqa: TRY004  it is the pickle's value that is wrong
    extents = tuple(map(_read_number, _NUMBERS.findall(content, recalled.end())))
    arguments = (extents,)
    value = function.make(arguments)
    return value, (extents, arguments, value)
