"""The description of a shard is what the C pickler makes of it."""

import io
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.meta.pickle_writer import TensorEntry, make_data_pickle, number_storages
from distconv.layout.dtypes import BFLOAT16, DTYPES, FLOAT16, FLOAT32, STORABLE, DType
from tests.formats.shards import fresh

Described = dict[str, tuple[DType, tuple[int, ...]]]

# The keys of storages are strings of their own, which a name of one sign need not be.
names = st.text(min_size=2, max_size=40)
# Together no more than torch counts.
shapes = st.lists(st.integers(0, 1 << 12), max_size=5).map(tuple) | st.tuples(st.integers(0, 1 << 60))
described = st.dictionaries(names, st.tuples(st.sampled_from(STORABLE), shapes), max_size=60)


def entries_of(found: Described) -> list[TensorEntry]:
    return [TensorEntry(name, dtype, shape) for name, (dtype, shape) in found.items()]


class Storage:
    """Stands for a storage in the pickle of a stand-in for a tensor."""

    def __init__(self, identity: tuple[object, ...]) -> None:
        self.identity = identity


class Tensor:
    """Is pickled as torch pickles a tensor, whatever its size: it has no data."""

    def __init__(self, key: str, entry: TensorEntry) -> None:
        kind = getattr(torch, STORAGES[entry.dtype.name])
        self.storage = Storage(("storage", kind, key, "cpu", entry.elements))
        # Of torch itself, without data.
        self.strides = torch.empty(entry.shape, device="meta").stride()
        self.shape = entry.shape

    def __reduce__(self) -> tuple[object, ...]:
        arguments = (self.storage, 0, self.shape, self.strides, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class Pickler(pickle.Pickler):
    """Names storages as torch.save does."""

    def persistent_id(self, value: object) -> tuple[object, ...] | None:
        return value.identity if isinstance(value, Storage) else None


STORAGES = {
    "bfloat16": "BFloat16Storage",
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
}


@given(described)
def test_tensors_of_any_size_are_pickled_as_the_c_pickler_does(found: Described) -> None:
    entries = entries_of(found)
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(
        {fresh(entry.name): Tensor(f"{number}", entry) for number, entry in enumerate(entries)}
    )
    assert make_data_pickle(entries) == stream.getvalue()


def test_storages_are_numbered_in_the_order_of_first_use() -> None:
    entries = [
        TensorEntry("output.weight", BFLOAT16, (6, 4)),
        TensorEntry("norm.weight", FLOAT32, (4,)),
        TensorEntry("tok_embeddings.weight", BFLOAT16, (6, 4), "output.weight"),
        TensorEntry("again", BFLOAT16, (24,), "tok_embeddings.weight"),
        TensorEntry("last", FLOAT16, ()),
    ]
    assert number_storages(entries) == (0, 1, 0, 0, 2)


OWNER = TensorEntry("owner", BFLOAT16, (2, 3))


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        (TensorEntry("owner", BFLOAT16, (2, 3)), "'owner': there twice"),
        (TensorEntry("w", DTYPES["int8"], (2,)), "'w': dtype int8"),
        (TensorEntry("w", BFLOAT16, (2, 3), "nobody"), "in the storage of 'nobody'"),
        (TensorEntry("w", BFLOAT16, (2, 3), "w"), "in the storage of 'w'"),
        (TensorEntry("w", FLOAT16, (2, 3), "owner"), "6 elements of float16 in the storage of 'owner'"),
        (TensorEntry("w", BFLOAT16, (2, 2), "owner"), "4 elements of bfloat16 in the storage of 'owner'"),
    ],
)
def test_an_entry_that_cannot_be_saved_is_named(entry: TensorEntry, finding: str) -> None:
    with pytest.raises(InputError, match=finding):
        make_data_pickle([OWNER, entry])


def test_all_findings_are_named_at_once() -> None:
    with pytest.raises(InputError) as raised:
        number_storages([OWNER, OWNER, TensorEntry("w", DTYPES["int8"], ())])
    assert len(str(raised.value).splitlines()) == 2
