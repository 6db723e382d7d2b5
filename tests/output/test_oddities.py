"""Values and types that no trained model has, by what was seen of its tensors."""

import pytest

from distconv.formats.written import Written
from distconv.layout.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from distconv.moving.values import Tally
from distconv.output.contents import Seen
from distconv.output.oddities import find_odd_dtypes, find_odd_values

Tensors = dict[tuple[str, str], Seen]


def see(shapes: dict[str, tuple[int, ...]], tally: Tally) -> Tensors:
    """Give tensors of one file, all of which have such values."""
    return {
        ("f", name): Seen(Written("f", 0, BFLOAT16, shape), tally, None) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("shape", [(2, 2), (1, 3, 2), (2, 1, 5)])
def test_a_matrix_of_zeros_is_found(shape: tuple[int, ...]) -> None:
    findings, notes = find_odd_values(see({"head.weight": shape}, Tally(zero=True)))
    assert ([str(finding.words) for finding in findings], notes) == (
        ["head.weight in f: every value is zero"],
        [],
    )


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1), (1, 1), ()])
def test_a_vector_of_zeros_is_a_note(shape: tuple[int, ...]) -> None:
    found = find_odd_values(see({"b": shape, "a": shape}, Tally(zero=True)))
    assert found == ([], ["a, b: every value is zero"])


def test_a_layer_of_zeros_is_one_finding_and_a_single_tensor_of_one_is_none() -> None:
    zeros = see({"layers.1.w": (2, 2), "layers.1.b": (2,), "layers.11.b": (2,)}, Tally(zero=True))
    others = see({"layers.11.w": (2, 2), "layers.2.w": (2, 2)}, Tally())
    findings, notes = find_odd_values(zeros | others | see({"layers.3.w": (2, 2)}, Tally(zero=True)))
    assert [finding.words for finding in findings] == [
        "layers.1: all its 2 tensors are zero",
        "layers.3.w in f: every value is zero",
    ]
    assert notes == ["layers.11.b: every value is zero"]


@pytest.mark.parametrize(
    ("tally", "words"),
    [
        (Tally(nan=1), "1 NaN"),
        (Tally(infinite=1200), "1,200 infinite"),
        (Tally(nan=2, infinite=3), "2 NaN and 3 infinite"),
    ],
)
def test_what_is_no_number_is_counted(tally: Tally, words: str) -> None:
    (finding,), notes = find_odd_values(see({"w": (40, 50)}, tally))
    assert (finding.words, notes) == (f"w in f: {words} of 2,000 values", [])


def write(**dtypes: DType) -> dict[str, dict[str, Written]]:
    """Give headers of one file, with tensors of two elements; layer 1 is ``l1_...``."""
    return {"f": {name: Written("f", 0, dtype, (2,)) for name, dtype in dtypes.items()}}


def test_types_that_differ_between_layers_or_from_the_config_are_found_and_wider_ones_noted() -> None:
    alike = write(l1_w=BFLOAT16, l2_w=BFLOAT16, l3_w=BFLOAT16, l1_n=FLOAT32, l2_n=FLOAT32)
    wider = ["l*_n: stored as a wider type than bfloat16, which most weights have"]
    assert find_odd_dtypes(alike, "bfloat16", "config.json") == ([], wider)
    assert find_odd_dtypes(alike, None, "config.json") == ([], wider)
    assert find_odd_dtypes(alike, "float16", "config.json") == (
        ["config.json: says that its weights are float16, most of them are bfloat16"],
        wider,
    )
    stray = write(l1_w=BFLOAT16, l2_w=FLOAT32, l3_w=BFLOAT16)
    assert find_odd_dtypes(stray, None, "") == (["l2_w: stored as float32, in other layers as bfloat16"], [])
    even = write(l1_w=FLOAT32, l2_w=BFLOAT16, l1_x=BFLOAT16, l2_x=BFLOAT16)
    assert find_odd_dtypes(even, None, "") == (["l1_w: stored as float32, in other layers as bfloat16"], [])
    other = write(l1_w=BFLOAT16, l2_w=BFLOAT16, l1_n=FLOAT16)
    assert find_odd_dtypes(other, None, "") == (["l1_n: stored as float16, most weights as bfloat16"], [])
    assert find_odd_dtypes({}, "bfloat16", "config.json") == ([], [])
