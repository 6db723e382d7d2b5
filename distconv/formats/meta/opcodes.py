"""What each opcode that torch writes for a state dict does to a pickle's machine; all others are refused."""

import struct
from collections.abc import Callable
from functools import partial

from distconv.errors import InputError, escape
from distconv.formats.marks import (
    LIMIT_NAME_CHARACTERS,
    OPAQUE,
    Class,
    Function,
    Opaque,
    Record,
    TensorMark,
    describe,
    make_storage,
)
from distconv.formats.meta.machine import Machine
from distconv.formats.meta.rows import take_rows

_LAST_PROTOCOL = 5
_DOUBLE = struct.Struct(">d")


def _refuse(machine: Machine) -> None:
    import pickletools

    code = machine.content[machine.position - 1]
    known = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    if code not in known:
        raise ValueError(f"no opcode {code:#04x}")
    raise InputError(f"the pickle uses {known[code]}, which no state dict needs; refused as unsafe")


def _protocol(machine: Machine) -> None:
    protocol = machine.take_number(1)
    if protocol > _LAST_PROTOCOL:
        raise InputError(f"a pickle of protocol {protocol}, expected at most {_LAST_PROTOCOL}")


def _frame(machine: Machine) -> None:
    machine.position += 8


def _mark(machine: Machine) -> None:
    machine.marks.append(len(machine.stack))


def _pop(machine: Machine) -> None:
    machine.stack.pop()


def _pop_mark(machine: Machine) -> None:
    machine.take_marked()


def _push(value: object, machine: Machine) -> None:
    machine.stack.append(value)


def _push_text(size_bytes: int, machine: Machine) -> None:
    machine.stack.append(machine.take_bytes(machine.take_number(size_bytes)).decode())


def _push_bytes(size_bytes: int, machine: Machine) -> None:
    machine.take_bytes(machine.take_number(size_bytes))
    machine.stack.append(OPAQUE)


def _signed(machine: Machine) -> None:
    start = machine.position
    machine.position = end = start + 4
    machine.stack.append(int.from_bytes(machine.content[start:end], "little", signed=True))


def _long(machine: Machine) -> None:
    content = machine.take_bytes(machine.take_number(1))
    machine.stack.append(int.from_bytes(content, "little", signed=True))


def _integer_line(machine: Machine) -> None:
    line = machine.take_line()
    # Protocol 1 has no other way to say True and False.
    machine.stack.append({"00": False, "01": True}[line] if line in {"00", "01"} else int(line.rstrip("L")))


def _double(machine: Machine) -> None:
    machine.position += 8
    machine.stack.append(_DOUBLE.unpack_from(machine.content, machine.position - 8)[0])


def _tuple(machine: Machine) -> None:
    machine.stack.append(tuple(machine.take_marked()))


def _tuple_of(size: int, machine: Machine) -> None:
    stack = machine.stack
    if len(stack) < size:
        raise IndexError("pop from an empty stack")
    stack[-size:] = [tuple(stack[-size:])]


def _empty_list(machine: Machine) -> None:
    machine.stack.append([])


def _empty_dict(machine: Machine) -> None:
    machine.stack.append({})


def _append(machine: Machine) -> None:
    value = machine.stack.pop()
    _extend(machine.stack[-1], [value])


def _appends(machine: Machine) -> None:
    values = machine.take_marked()
    _extend(machine.stack[-1], values)


def _extend(target: object, values: list[object]) -> None:
    if type(target) is list:
        target += values
    elif type(target) is not Opaque:
        raise InputError(f"the pickle appends to {describe(target)}; refused as unsafe")


def _set_item(machine: Machine) -> None:
    value = machine.stack.pop()
    key = machine.stack.pop()
    _set(machine.stack[-1], key, value)


def _set_items(machine: Machine) -> None:
    entries = machine.take_marked()
    target = machine.stack[-1]
    if len(entries) % 2:
        raise IndexError("a key without a value")
    for number in range(0, len(entries), 2):
        _set(target, entries[number], entries[number + 1])


def _set(target: object, key: object, value: object) -> None:
    if type(target) is dict:
        # Other keys name no tensor; hashing one may take for ever, and showing one may do harm. Optimizers count.
        plain = type(key) is str and len(key) <= LIMIT_NAME_CHARACTERS and key.isprintable()
        if plain or type(key) is Record or (type(key) is int and 0 <= key < 1 << 32):
            target[key] = value
        elif isinstance(value, TensorMark) or (type(key) is str and type(value) is Record):
            raise InputError(f"a tensor is named {describe(key)}, which is no plain name; refused as unsafe")
    elif type(target) is not Opaque:
        raise InputError(f"the pickle sets an item of {describe(target)}; refused as unsafe")


def _put(size_bytes: int, machine: Machine) -> None:
    machine.keep(machine.take_number(size_bytes), machine.stack[-1])


def _global(machine: Machine) -> None:
    module = machine.take_line()
    machine.stack.append(_find_name(machine, module, machine.take_line()))


def _stack_global(machine: Machine) -> None:
    name = machine.stack.pop()
    machine.stack.append(_find_name(machine, machine.stack.pop(), name))


def _find_name(machine: Machine, module: object, name: object) -> object:
    if type(module) is not str or type(name) is not str:
        raise InputError("the pickle names something by what is no text; refused as unsafe")
    try:
        return machine.language.names[module, name]
    except KeyError:
        shown = escape(f"{module[:80]}.{name[:80]}")
        raise InputError(f"the pickle names {shown}, which {machine.language.refusal}") from None


def _reduce(machine: Machine) -> None:
    """Call a function; what an opaque thing would give is opaque."""
    arguments = machine.stack.pop()
    function = machine.stack.pop()
    if type(arguments) is not tuple:
        raise InputError("the pickle calls something without arguments; refused as unsafe")
    if type(function) is Function:
        machine.stack.append(function.make(arguments))
    elif type(function) is Opaque:
        machine.stack.append(OPAQUE)
    else:
        raise InputError(f"the pickle calls {describe(function)}; refused as unsafe")


def _new_object(machine: Machine) -> None:
    arguments = machine.stack.pop()
    kind = machine.stack[-1]
    if type(kind) is Class:
        machine.stack[-1] = Record(kind, arguments)
    elif type(kind) is not Opaque:
        raise InputError(f"the pickle makes an object of {describe(kind)}; refused as unsafe")


def _build(machine: Machine) -> None:
    """Let go of a state: those of state dicts (``_metadata``) say nothing about tensors."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) is Record:
        target.state = state
        if target.kind in machine.language.rows:
            take_rows(machine, machine.language.rows[target.kind])
    elif type(target) not in {dict, Opaque}:
        raise InputError(f"the pickle sets the state of {describe(target)}; refused as unsafe")


def _persistent(machine: Machine) -> None:
    machine.stack.append(make_storage(machine.stack.pop()))


# Those that ``Machine.run`` carries out itself are left out.
_KNOWN: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": _protocol, b"\x95": _frame,
    b"(": _mark, b"0": _pop, b"1": _pop_mark,
    b"N": partial(_push, None), b"\x88": partial(_push, True), b"\x89": partial(_push, False),
    b"I": _integer_line, b"L": _integer_line, b"J": _signed, b"\x8a": _long,
    b"G": _double,
    b"X": partial(_push_text, 4), b"\x8c": partial(_push_text, 1),
    b"T": partial(_push_text, 4), b"U": partial(_push_text, 1),
    b"B": partial(_push_bytes, 4), b"C": partial(_push_bytes, 1),
    b")": partial(_push, ()), b"t": _tuple,
    b"\x85": partial(_tuple_of, 1), b"\x86": partial(_tuple_of, 2), b"\x87": partial(_tuple_of, 3),
    b"]": _empty_list, b"a": _append, b"e": _appends,
    b"}": _empty_dict, b"s": _set_item, b"u": _set_items,
    b"q": partial(_put, 1), b"r": partial(_put, 4),
    b"c": _global, b"\x93": _stack_global,
    b"R": _reduce, b"\x81": _new_object, b"b": _build, b"Q": _persistent,
}  # fmt: skip
HANDLERS = [_KNOWN.get(bytes([code]), _refuse) for code in range(256)]
