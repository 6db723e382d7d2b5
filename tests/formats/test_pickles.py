"""Plain values of a pickle are those that Python's pickle writes, in every protocol that has no lines of text."""

import pickle
import pickletools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats import state as states
from distconv.formats.marks import NAMES, OPAQUE, StorageMark, TensorMark, describe
from distconv.formats.meta.pickles import STATE_DICT, EndsEarlyError, load_pickle
from distconv.formats.state import flatten_state
from distconv.layout.dtypes import DTYPES
from tests.programs import FLOATS, REBUILD, text

keys = st.text(max_size=12).filter(str.isprintable) | st.integers(0, (1 << 32) - 1)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 800), 1 << 800)
    | st.sampled_from([0, 255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, -1, -(1 << 31), -(1 << 31) - 1])
    | st.floats(allow_nan=False)
    | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
    ),
    max_leaves=30,
)
protocols = st.integers(1, 5)


@given(plain, protocols)
def test_a_plain_value_is_read_as_pickle_wrote_it(value: object, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    found, end = load_pickle(content)
    assert (found, repr(found), end) == (value, repr(value), len(content))


@pytest.mark.parametrize("protocol", range(1, 6))
def test_flags_and_numbers_of_any_size_are_told_apart(protocol: int) -> None:
    value = [True, False, 0, 1, 10, -1, 1 << 31, 1 << 40, -1 << 70, 1.5]
    assert repr(load_pickle(pickle.dumps(value, protocol))[0]) == repr(value)


@given(plain, plain, protocols, st.binary(max_size=9))
def test_pickles_that_stand_in_a_row_are_read_one_by_one(
    first: object, second: object, protocol: int, before: bytes
) -> None:
    content = before + pickle.dumps(first, protocol) + pickle.dumps(second, protocol)
    found, end = load_pickle(content, len(before))
    assert (found, end) == (first, len(before + pickle.dumps(first, protocol)))
    assert load_pickle(content, end) == (second, len(content))


@given(plain, protocols, st.data())
def test_a_pickle_that_is_cut_off_is_known_to_go_on(
    value: object, protocol: int, data: st.DataObject
) -> None:
    content = pickle.dumps(value, protocol)
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(EndsEarlyError, match=f"cut off at byte {len(cut):,}"):
        load_pickle(cut)


@pytest.mark.parametrize("protocol", range(1, 6))
def test_what_is_there_twice_is_one_however_many_things_there_are(protocol: int) -> None:
    names = [f"name {number}" for number in range(300)]
    found, _end = load_pickle(pickle.dumps([names, names, *names], protocol))
    assert isinstance(found, list)
    assert found[0] is found[1]
    assert found == [names, names, *names]


@given(st.binary(max_size=400), protocols.filter(lambda protocol: protocol > 2))
def test_bytes_are_nothing_of_a_state_dicts_and_end_where_they_end(content: bytes, protocol: int) -> None:
    assert load_pickle(pickle.dumps([content, 1], protocol))[0] == [OPAQUE, 1]


def test_a_shape_is_a_tuple() -> None:
    assert load_pickle(pickle.dumps({"shape": torch.Size((2, 3))}, 2))[0] == {"shape": (2, 3)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x06N.", "a pickle of protocol 6, expected at most 5"),
        (b"\x80\x02ctorch\nSize\n]\x85R.", "a list is not a shape"),
        (b"\x80\x02ctorch\nSize\n)R.", "a call with 0 arguments, expected 1 to 1"),
        (b"\x80\x02ctorch\nSize\nNR.", "the pickle calls something without arguments; refused as unsafe"),
        (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "an OrderedDict that is made of its entries, which torch does not write"),
        (b"\x80\x02X\x02\x00\x00\x00os)R.", "the pickle calls 'os'; refused as unsafe"),
        (b"\x80\x02NK\x01a.", "the pickle appends to None; refused as unsafe"),
        (b"\x80\x02K\x05(K\x01e.", "the pickle appends to 5; refused as unsafe"),
        (b"\x80\x02]NNs.", "the pickle sets an item of a list; refused as unsafe"),
        (b"\x80\x02](NNu.", "the pickle sets an item of a list; refused as unsafe"),
        (b"\x80\x02N)R.", "the pickle calls None; refused as unsafe"),
        (b"\x80\x02X\x02\x00\x00\x00os)\x81.", "the pickle makes an object of 'os'; refused as unsafe"),
        (b"\x80\x02]Nb.", "the pickle sets the state of a list; refused as unsafe"),
        (b"\x80\x02NQ.", "an unknown kind of storage"),
        (b"\x80\x04K\x01\x8c\x01a\x93.", "the pickle names something by what is no text; refused as unsafe"),
        (b"\x80\x04\x8c\x01aK\x01\x93.", "the pickle names something by what is no text; refused as unsafe"),
        (b"\x80\x02B\x01\x00\x10\x00", "its description holds 1,048,577 bytes in one piece; refused as unsafe"),
        (b"\x80\x02}(K\x01u.", "its description makes no sense at byte 7 (a key without a value); not a readable torch checkpoint: the file is truncated or damaged: download it again"),
        (b"\x80\x02h\x05N.", "its description makes no sense at byte 4 (nothing was kept as 5); not a readable torch checkpoint: the file is truncated or damaged: download it again"),
        (b"\x80\x02\xffN.", "its description makes no sense at byte 3 (no opcode 0xff); not a readable torch checkpoint: the file is truncated or damaged: download it again"),
        (b"\x80\x02c" + b"x" * 300 + b"\nname\n.", "its description makes no sense at byte 259 (a line without an end); not a readable torch checkpoint: the file is truncated or damaged: download it again"),
        (b"\x80\x02N\x85\x86N.", "its description makes no sense at byte 5 (pop from an empty stack); not a readable torch checkpoint: the file is truncated or damaged: download it again"),
    ],
)  # fmt: skip
def test_what_no_state_dict_needs_is_refused_and_named(content: bytes, words: str) -> None:
    with pytest.raises(InputError) as raised:
        load_pickle(content)
    assert str(raised.value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"), ((), "a tuple"), ({}, "a dict"), (0.5, "a float"), (OPAQUE, "something that is no tensor"),
        (StorageMark("0", None, 1), "a storage"), (NAMES["torch", "bfloat16"], "a data type"),
        (NAMES["torch", "Size"], "a function"), ("é", r"'\xe9'"), ("x" * 41, f"'{'x' * 40}'"), (True, "a bool"),
        ((1 << 64) - 1, "18446744073709551615"), (1 - (1 << 64), "-18446744073709551615"),
        (1 << 64, "a number beyond 64 bits"), (-1 << 64, "a number beyond 64 bits"),
    ],
)  # fmt: skip
def test_a_value_is_shown_in_few_words_whatever_it_is(value: object, words: str) -> None:
    assert describe(value) == words


def tensor(
    kind: bytes = FLOATS, key: bytes = text("0"), location: bytes = text("cpu"), elements: bytes = b"K\x0c",
    offset: bytes = b"K\0", shape: bytes = b"K\x03K\x04\x86", strides: bytes = b"K\x04K\x01\x86",
    storage: bytes | None = None,
) -> bytes:  # fmt: skip
    """Give the program of a tensor, some of whose parts are others."""
    if storage is None:
        storage = b"(" + text("storage") + kind + key + location + elements + b"tQ"
    return b"\x80\x02" + REBUILD + b"(" + storage + offset + shape + strides + b"\x89}tR."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None), ({"key": text("x" * 1024)}, None), ({"elements": b"\x8a\x08" + b"\xff" * 7 + b"\x7f"}, None),
        ({"shape": b"(" + b"K\1" * 16 + b"t", "strides": b"(" + b"K\1" * 16 + b"t"}, None),
        ({"key": b"K\0"}, "an unknown kind of storage"), ({"location": b"N"}, "an unknown kind of storage"),
        ({"kind": text("FloatStorage")}, "an unknown kind of storage"),
        ({"key": text("x" * 1025)}, "a storage whose name has 1,025 characters"),
        ({"elements": text("x")}, "'x' is not a count"), ({"elements": b"J\xff\xff\xff\xff"}, "-1 is not a count"),
        ({"elements": b"\x8a\x09" + bytes(7) + b"\x80\0"}, "9223372036854775808 is not a count"),
        ({"offset": b"\x88"}, "a bool is not a count"), ({"shape": b"N"}, "None is not a shape"),
        ({"shape": b"](K\1e"}, "a list is not a shape"), ({"strides": b"N\x85"}, "None is not a count"),
        ({"shape": b"(" + b"K\1" * 17 + b"t"}, "a tensor of 17 dimensions, expected at most 16"),
        ({"strides": b"K\4\x85"}, "a tensor with shape (3, 4) and strides (4,)"),
        ({"storage": b"N"}, "a tensor without a storage"),
        ({"kind": b"ctorch.storage\nUntypedStorage\n"}, "a tensor without a dtype"),
    ],
)  # fmt: skip
def test_a_tensor_is_made_of_parts_that_are_of_their_kinds(
    changes: dict[str, bytes], words: str | None
) -> None:
    if words is None:
        assert isinstance(load_pickle(tensor(**changes))[0], TensorMark)
        return
    with pytest.raises(InputError) as raised:
        load_pickle(tensor(**changes))
    assert str(raised.value) == words


def test_all_of_a_tensor_is_read() -> None:
    storage = StorageMark("0", DTYPES["float32"], 12)
    assert load_pickle(tensor(offset=b"K\x05"))[0] == TensorMark(
        storage, DTYPES["float32"], 5, (3, 4), (4, 1)
    )
    assert (storage.size_bytes(), StorageMark("0", None, 12).size_bytes()) == (48, 12)


def test_entries_have_plain_names_or_small_numbers_and_others_are_let_go() -> None:
    kept: dict[object, object] = {"x" * 1024: 1, 0: 2, (1 << 32) - 1: 3}
    others = {"x" * 1025: 1, 1 << 32: 2, -1: 3, "a\nb": 4, True: 5, None: 6, 1.5: 7}
    assert load_pickle(pickle.dumps(kept | others, 2))[0] == kept
    named = tensor().removeprefix(b"\x80\x02").removesuffix(b".")
    with pytest.raises(InputError) as raised:
        load_pickle(b"\x80\x02}N" + named + b"s.")
    assert str(raised.value) == "a tensor is named None, which is no plain name; refused as unsafe"
    with pytest.raises(InputError, match=r"^a tensor is named 'a\\nb', which"):
        load_pickle(b"\x80\x02}" + text("a\nb") + named + b"s.")
    assert load_pickle(b"\x80\x02cargparse\nNamespace\nNa.")[0] is OPAQUE
    assert len(str(load_pickle(pickle.dumps({"x": "y" * (1 << 20)}, 2))[0])) > 1 << 20


def test_long_names_are_shown_in_part() -> None:
    with pytest.raises(InputError, match=f"^the pickle names {'m' * 80}\\.{'n' * 80}, which a state dict"):
        load_pickle(b"\x80\x02c" + b"m" * 99 + b"\n" + b"n" * 99 + b"\n.")


def nest(depth: int, key: str = "a") -> dict[str, object]:
    """Put a tensor into so many dicts."""
    state: object = TensorMark(StorageMark("0", DTYPES["float32"], 1), DTYPES["float32"], 0, (), ())
    for _ in range(depth):
        state = {key: state}
    return state  # type: ignore[return-value]


def test_containers_are_gone_through_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "containers of more than 1,048,576 entries, or nested 64 deep; refused as unsafe"
    assert list(flatten_state(nest(64))) == [".".join("a" * 64)]
    with pytest.raises(InputError, match=f"^{refused}$"):
        flatten_state(nest(65))
    # "ab", then "cd" behind "ab.", are seven characters.
    for most in (7, 6):
        monkeypatch.setattr(states, "_MOST_CHARACTERS", most)
        if most == 7:
            assert list(flatten_state(nest(2, "ab"))) == ["ab.ab"]
        else:
            with pytest.raises(InputError, match=f"^{refused}$"):
                flatten_state(nest(2, "ab"))
    for most, names in ((2, "ab"), (1, "ab")):
        monkeypatch.setattr(states, "LIMIT_TENSORS", most)
        state = {name: nest(0) for name in names}
        if most == 2:
            assert list(flatten_state(state)) == ["a", "b"]
        else:
            with pytest.raises(InputError, match=r"^more than 1 tensors in one file; refused as unsafe$"):
                flatten_state(state)


def test_lists_and_tuples_count_their_entries() -> None:
    one = nest(0)
    assert list(flatten_state({"a": [one, (one, 5, one)], 7: one})) == ["a.0", "a.1.0", "a.1.2", "7"]
    with pytest.raises(InputError, match=r"^two tensors are called a\.b$"):
        flatten_state({"a.b": one, "a": {"b": one}})


def test_a_description_of_too_many_steps_is_refused() -> None:
    few = replace(STATE_DICT, most_steps=4)
    assert load_pickle(b"N0N.", language=few) == (None, 4)
    with pytest.raises(InputError) as raised:
        load_pickle(b"NN0N.", language=few)
    assert str(raised.value) == "its description has more than 4 steps; refused as unsafe"


def test_keys_are_told_where_there_are_no_tensors() -> None:
    for state, words in (
        ({}, "none"), ({1: 1}, "none"), ({"a" * 41: 1, "b": {}}, f"{'a' * 40}, b"),
        (dict.fromkeys("abcdefghi"), "a, b, c, d, e, f, g, h"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"^no tensors in it; its keys are {words}$"):
            flatten_state(state)


def test_opcodes_that_run_or_copy_something_are_refused_by_their_names() -> None:
    for opcode in pickletools.opcodes:
        if opcode.name in {"INST", "OBJ", "DUP", "EXT1", "BUILD_SET", "NEWOBJ_EX", "LONG4", "BINUNICODE8"}:
            with pytest.raises(InputError, match=f"uses {opcode.name}, which no state dict needs"):
                load_pickle(b"\x80\x04" + opcode.code.encode("latin-1") + bytes(9) + b".")
