"""Pickles that no pickler writes: hostile values in every place that a value can have.

Values are programs that leave one thing on the stack, places are programs around one. Their
product is tried; ``size`` says how often a value's step is repeated.
"""

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator

import torch

MAGIC = 0x1950A86A20F9469CFC6C
FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
NAMES = (
    b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nbfloat16\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"cargparse\nNamespace\n", b"cnumpy\ndtype\n", b"ccollections\ndefaultdict\n",
    FLOATS, REBUILD,
)  # fmt: skip


def text(value: str | bytes) -> bytes:
    """Push text."""
    content = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(content)) + content


STORAGE = b"(" + text("storage") + FLOATS + text("0") + text("cpu") + b"K\x0ctQ"
TENSOR = REBUILD + b"(" + STORAGE + b"K\0K\x03K\x04\x86K\x04K\x01\x86\x89}tR"

VALUES: dict[str, Callable[[int], bytes]] = {
    "a tuple doubled": lambda size: b")q\xff0" + b"h\xffh\xff\x86q\xff0" * size + b"h\xff",
    "a list doubled": lambda size: b"K\0q\xff0" + b"](h\xffh\xffeq\xff0" * size + b"h\xff",
    "a dict doubled": lambda size: b"}q\xff0" + (b"}(" + text("a") + b"h\xff" + text("b") + b"h\xffuq\xff0") * size + b"h\xff",
    "tuples in tuples": lambda size: b")" + b"\x85" * size,
    "tuples of marks": lambda size: b"(" * size + b"t" * size,
    "lists in lists": lambda size: b"]" * (size + 1) + b"a" * size,
    "dicts in dicts": lambda size: (b"}" + text("a")) * size + b"N" + b"s" * size,
    "lists in tuples": lambda size: b"]" * size + b"\x85a" * (size - 1),
    "a list in itself": lambda _size: b"]q\xffh\xffa",
    "a dict in itself": lambda _size: b"}q\xff" + text("model") + b"h\xffs",
    "a tuple in itself": lambda _size: b"]q\xffh\xff\x85a\x85",
    "a long tuple": lambda size: b"(" + b"K\0" * size + b"t",
    "a long list": lambda size: b"](" + b"K\0" * size + b"e",
    "a dict of numbers that collide": lambda size: b"}(" + b"".join(b"\x8a\x10" + (number * (2**61 - 1)).to_bytes(16, "little") + b"N" for number in range(size)) + b"u",
    "a dict of one name": lambda size: b"}(" + (text("a") + b"K\0") * size + b"u",
    "a dict of many names": lambda size: b"}(" + b"".join(text(str(number)) + b"K\0" for number in range(size)) + b"u",
    "a dict of tensors": lambda size: b"}" + TENSOR + b"q\xff0(" + b"".join(text(str(number)) + b"h\xff" for number in range(size)) + b"u",
    "a huge number": lambda _size: b"\x8a\xff" + b"\x7f" * 255,
    "a line of digits": lambda size: b"L" + b"9" * size + b"L\n",
    "a number of four bytes' length": lambda size: b"\x8b" + struct.pack("<I", size) + b"\x7f" * size,
    "a claimed length": lambda _size: b"X\xff\xff\xff\xff",
    "a claimed length of bytes": lambda _size: b"B\xff\xff\xff\x7f",
    "long text": lambda size: text("é" * size),
    "text of escapes": lambda _size: text("\x1b[2J\r\n\x9b\u202e"),
    "half a surrogate": lambda _size: text(b"\xed\xa0\x80"),
    "a fraction": lambda _size: b"G\x7f\xf8\0\0\0\0\0\0",
    "a far memo": lambda _size: b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff",
    "many memos": lambda size: b"N" + b"\x94" * size,
    "os.system": lambda _size: b"cos\nsystem\n",
    "a name without an end": lambda size: b"c" + b"o" * size,
    "a storage": lambda _size: STORAGE,
    "a tensor": lambda _size: TENSOR,
    "nothing": lambda _size: b"N",
    **{f"the name {name[1:-1]!r}": (lambda _size, name=name: name) for name in NAMES},
}  # fmt: skip


def arguments(place: int) -> Callable[[bytes], bytes]:
    """Put a value in place of one argument of a tensor's."""
    plain = [STORAGE, b"K\0", b"K\x03K\x04\x86", b"K\x04K\x01\x86", b"\x89", b"}"]

    def put(value: bytes) -> bytes:
        return named(REBUILD + b"(" + b"".join([*plain[:place], value, *plain[place + 1 :]]) + b"tR")

    return put


def identity(place: int) -> Callable[[bytes], bytes]:
    """Put a value in place of one part of what stands for a storage."""
    plain = [text("storage"), FLOATS, text("0"), text("cpu"), b"K\x0c"]

    def put(value: bytes) -> bytes:
        return named(b"(" + b"".join([*plain[:place], value, *plain[place + 1 :]]) + b"tQ")

    return put


def named(value: bytes) -> bytes:
    """Put a value beside a good tensor."""
    return b"}(" + text("a") + TENSOR + text("b") + value + b"u"


def often(step: bytes) -> Callable[[bytes], bytes]:
    """Keep a value and take the same step with it many times."""
    return lambda value: value + b"q\xfe0" + named(b"](" + step * 20_000 + b"e")


PLACES: dict[str, Callable[[bytes], bytes]] = {
    "all": lambda value: value,
    "model": lambda value: b"}" + text("model") + value + b"s",
    "beside": named,
    "a key": lambda value: b"}(" + text("a") + TENSOR + value + b"Nu",
    "a tensor's name": lambda value: b"}" + value + TENSOR + b"s",
    "the only key": lambda value: b"}" + value + b"Ns",
    "what is called": lambda value: named(value + b")R"),
    "arguments": lambda value: named(REBUILD + value + b"R"),
    "arguments of a size": lambda value: named(b"ctorch\nSize\n" + value + b"\x85R"),
    "arguments of a dict": lambda value: named(b"ccollections\nOrderedDict\n" + value + b"\x85R"),
    "arguments of settings": lambda value: named(b"cargparse\nNamespace\n" + value + b"R"),
    "what is made new": lambda value: named(value + b")\x81"),
    "arguments of what is new": lambda value: named(b"cargparse\nNamespace\n" + value + b"\x81"),
    "what is built": lambda value: named(value + b"}" + text("dtype") + b"Nsb"),
    "what is built of slots": lambda value: named(value + b"N}" + text("dtype") + b"Ns\x86b"),
    "a state": lambda value: named(b"ccollections\nOrderedDict\n)R" + value + b"b"),
    "an identity": lambda value: named(value + b"Q"),
    "a module": lambda value: named(value + text("system") + b"\x93"),
    "a name": lambda value: named(text("torch") + value + b"\x93"),
    "appended to": lambda value: named(value + b"Na"),
    "set an item of": lambda value: named(value + text("a") + b"Ns"),
    "called often": often(b"h\xfe)R"),
    "arguments often": often(b"ctorch\nSize\nh\xfe\x85R"),
    "arguments of tensors often": often(REBUILD + b"h\xfeR"),
    "a shape often": often(REBUILD + b"(" + STORAGE + b"K\0h\xfeh\xfe\x89}tR"),
    "a key often": lambda value: value + b"q\xfe0}(" + b"h\xfeN" * 20_000 + b"u",
    **{f"argument {place}": arguments(place) for place in range(6)},
    **{f"identity {place}": identity(place) for place in range(5)},
}


def make_zip(program: bytes, good: bytes) -> bytes:
    """Put a program into a good zip file in place of its description."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return target.getvalue()


def make_legacy(programs: dict[int, bytes]) -> bytes:
    """Give a legacy file, some of whose five pickles are replaced."""
    state = b"}" + text("a") + TENSOR + b"s"
    plain = [
        b"\x8a\x0a" + MAGIC.to_bytes(10, "little"),
        b"M\xe9\x03",
        b"}" + text("little_endian") + b"\x88s",
        state,
        b"](" + text("0") + b"e",
    ]
    made = b"".join(b"\x80\x02" + programs.get(number, part) + b"." for number, part in enumerate(plain))
    return made + struct.pack("<q", 12) + bytes(48)


def make_good() -> bytes:
    """Give a good zip file."""
    target = io.BytesIO()
    torch.save({"a": torch.arange(12.0).view(3, 4)}, target)
    return target.getvalue()


def every_file(size: int) -> Iterator[tuple[str, bytes]]:
    """Give each value in each place of a zip file, and in each of a legacy file's pickles."""
    good = make_good()
    for value_name, make in VALUES.items():
        value = make(size)
        for place_name, put in PLACES.items():
            yield f"{value_name} as {place_name}", make_zip(b"\x80\x02" + put(value) + b".", good)
        for number in range(5):
            yield f"{value_name} as pickle {number}", make_legacy({number: value})
        yield f"{value_name} in the keys", make_legacy({4: b"](" + value + b"e"})


def draw_file(chance: random.Random) -> bytes:
    """Draw a program of some thousand steps, most of which have what they need on the stack."""
    value = chance.choice(list(VALUES.values()))(chance.randint(1, 1000))
    for _ in range(chance.randint(0, 4)):
        value = chance.choice(list(PLACES.values()))(value)
    steps = bytearray(value)
    for _ in range(chance.randint(0, 8)):
        at = chance.randrange(len(steps) + 1)
        steps[at:at] = chance.choice(
            [b"(", b"t", b"a", b"s", b"u", b"e", b"R", b"b", b"\x81", b"Q", b"0", b"1", b"q\x01", b"h\x01"]
        )
    program = b"\x80\x02" + bytes(steps) + b"."
    return make_zip(program, make_good()) if chance.random() < 0.5 else make_legacy({3: program[2:-1]})
