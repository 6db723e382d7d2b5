"""Whole models go from one dialect into the other, and among ranks, as Meta's and Transformers' code have them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError, UsageError
from distconv.families.cuts import COLUMNS, ROWS
from distconv.families.llama import EMBEDDING, OUTPUT, RULES
from distconv.families.rules import Match
from distconv.families.translate import (
    Decisions,
    MetaTensor,
    cut_for_ranks,
    invert_rules,
    join_ranks,
    keep_rows,
    list_shard_counts,
    make_targets,
)
from distconv.formats.views import TensorView
from distconv.layout.dtypes import BFLOAT16, FLOAT16, FLOAT32, contiguous_strides
from distconv.layout.regions import Region
from distconv.layout.tensors import Tensor
from tests import reference
from tests.checkpoints import Spec, shapes
from tests.families.test_rules import sizes
from tests.layout.test_algebra import Contents, fill, numbered, store

SPECS = [
    Spec("llama-2", dim=8, layers=2, heads=2, kv_heads=1, multiple_of=4, vocab=12),
    Spec("llama-3", dim=16, layers=1, heads=4, kv_heads=2, multiple_of=8, vocab=24),
    Spec("llama-3", dim=24, layers=1, heads=6, kv_heads=3, multiple_of=6, vocab=18),
]


def make_model(spec: Spec) -> dict[str, np.ndarray]:
    """Give a model's whole tensors by Meta's names, each element a number of its own."""
    return {
        name: numbered(shape) + 10_000 * number for number, (name, shape, _axis) in enumerate(shapes(spec))
    }


def to_transformers(spec: Spec, model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename and permute the plain way."""
    found = {}
    for name, array in model.items():
        heads = {"wq": spec.heads, "wk": spec.stored_kv_heads}.get(name.split(".")[-2])
        turned = (
            torch.from_numpy(array) if heads is None else reference.permute(torch.from_numpy(array), heads)
        )
        found[reference.rename(name)] = turned.numpy()
    return found


def hold(contents: Contents, name: str, array: np.ndarray) -> Tensor:
    """Store an array as a tensor of this name."""
    return replace(store(contents, array), name=name)


def wholes(spec: Spec, contents: Contents) -> list[MetaTensor]:
    """Give a model's whole tensors, each with the cut of its kind."""
    axes = {name: axis for name, _shape, axis in shapes(spec)}
    cuts = {rule.source: rule.cut for rule in RULES}
    found = []
    for name, array in make_model(spec).items():
        cut = cuts[re.sub(r"\.\d+\.", ".{i}.", name)] or (COLUMNS if axes[name] else ROWS)
        found.append(MetaTensor(hold(contents, name, array), cut, f"their {name}"))
    return found


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_transformers_tensors_become_metas_by_name_place_and_cut(spec: Spec) -> None:
    contents: Contents = {}
    model = make_model(spec)
    tensors = {name: hold(contents, name, array) for name, array in to_transformers(spec, model).items()}
    embedding = COLUMNS if spec.by_columns else ROWS
    found = list(invert_rules(RULES, tensors, sizes(spec), embedding))
    assert {whole.tensor.name for whole in found} == set(model)
    for whole in found:
        np.testing.assert_array_equal(fill(whole.tensor, contents), model[whole.tensor.name])
        assert whole.source == reference.rename(whole.tensor.name)
    assert {whole.tensor.name: whole.cut.axis for whole in found} == {
        name: axis for name, _shape, axis in shapes(spec)
    }
    heads = {whole.tensor.name.split(".")[-2]: whole.cut.heads for whole in found if whole.cut.heads}
    assert heads == {"wq": "query", "wk": "key", "wv": "key"}


def test_a_tensor_that_transformers_does_not_store_is_left_out() -> None:
    contents: Contents = {}
    spec = SPECS[0]
    tensors = {
        name: hold(contents, name, array) for name, array in to_transformers(spec, make_model(spec)).items()
    }
    del tensors["lm_head.weight"], tensors["model.layers.0.mlp.up_proj.weight"]
    found = {whole.tensor.name for whole in invert_rules(RULES, tensors, sizes(spec), COLUMNS)}
    assert set(make_model(spec)) - found == {"output.weight", "layers.0.feed_forward.w3.weight"}


@pytest.mark.parametrize("dtype", [None, BFLOAT16])
@pytest.mark.parametrize(("spec", "ranks"), [(SPECS[0], 1), (SPECS[0], 2), (SPECS[1], 4), (SPECS[2], 3)])
def test_each_rank_has_the_parts_that_metas_code_loads(spec: Spec, ranks: int, dtype: object) -> None:
    contents: Contents = {}
    found = cut_for_ranks(wholes(spec, contents), ranks, spec.head_dim, dtype)  # type: ignore[arg-type]
    assert len(found) == ranks
    model = make_model(spec)
    for rank, tensors in enumerate(found):
        assert [tensor.name for tensor in tensors] == list(model)
        for tensor, (name, _shape, axis) in zip(tensors, shapes(spec), strict=True):
            whole = model[name]
            if name.endswith(("wk.weight", "wv.weight")) and spec.stored_kv_heads < ranks:
                heads = whole.reshape(spec.stored_kv_heads, spec.head_dim, spec.dim)
                whole = heads.repeat(ranks // spec.stored_kv_heads, 0).reshape(-1, spec.dim)
            expected = whole if axis is None else np.split(whole, ranks, axis)[rank]
            part = Tensor(tensor.name, tensor.stored, tensor.shape, tensor.copies)
            np.testing.assert_array_equal(fill(part, contents), expected)
            assert (tensor.source, tensor.stored) == (f"their {name}", FLOAT32)
            assert tensor.dtype == (dtype or FLOAT32)


def divides(spec: Spec, ranks: int) -> bool:
    """Whether Meta's code can divide a model: parts are equal and of whole heads, keys one a rank at least."""
    for name, shape, axis in shapes(spec):
        if axis is None:
            continue
        if name.endswith(("wk.weight", "wv.weight")):
            if spec.stored_kv_heads % ranks and ranks % spec.stored_kv_heads:
                return False
        elif (spec.heads if name.endswith("wq.weight") else shape[axis]) % ranks:
            return False
    return True


@given(
    st.sampled_from(["llama-2", "llama-3"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([2, 4, 6]),
    st.integers(1, 9),
    st.integers(4, 48),
)
def test_the_numbers_of_shards_are_those_into_which_all_that_is_cut_divides(
    family: str, kv_heads: int, groups: int, head_dim: int, multiple_of: int, vocab: int
) -> None:
    heads = kv_heads * groups
    spec = Spec(
        family, dim=heads * head_dim, layers=2, heads=heads, kv_heads=kv_heads, multiple_of=multiple_of, vocab=vocab
    )  # fmt: skip
    tensors = wholes(spec, {})
    expected = [ranks for ranks in range(1, 13) if divides(spec, ranks)]
    assert [ranks for ranks in list_shard_counts(tensors, head_dim) if ranks < 13] == expected
    for ranks in range(1, 13):
        if ranks in expected:
            assert len(cut_for_ranks(tensors, ranks, head_dim)) == ranks
        else:
            with pytest.raises(UsageError, match=f"{ranks} shards: "):
                cut_for_ranks(tensors, ranks, head_dim)


def test_no_number_above_that_of_names_with_two_digits_is_given_and_that_is() -> None:
    spec = Spec("llama-3", dim=400, layers=1, heads=200, kv_heads=1, multiple_of=200, vocab=200)
    divisors = (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100)
    assert list_shard_counts(wholes(spec, {}), spec.head_dim) == divisors


def test_what_cannot_be_divided_is_told_once_for_all_layers_with_its_number_and_unit() -> None:
    spec = Spec("llama-2", dim=8, layers=12, heads=2, kv_heads=2, multiple_of=5, vocab=1_001)
    with pytest.raises(UsageError) as raised:
        cut_for_ranks(wholes(spec, {}), 4, spec.head_dim)
    *lines, way_out = str(raised.value).split("\n")
    found = [re.match(r"4 shards: ([\w.]+) has ([\d,]+ [a-z ]+),", line) for line in lines]
    assert re.search(r"\b1\b", way_out)
    assert {match[1]: match[2] for match in found if match} == {
        "attention.wq.weight": "2 query heads",
        "feed_forward.w1.weight": "25 rows",
        "feed_forward.w3.weight": "25 rows",
        "feed_forward.w2.weight": "25 columns",
        "output.weight": "1,001 rows",
    }
    assert len(found) == 5
    with pytest.raises(UsageError, match=r"attention\.wk\.weight has 2 key heads"):
        cut_for_ranks(wholes(spec, {}), 3, spec.head_dim)


@pytest.mark.parametrize("name", [EMBEDDING, OUTPUT])
def test_of_a_padded_vocabulary_the_first_rows_are_kept(name: str) -> None:
    contents: Contents = {}
    array = numbered((6, 4))
    whole = MetaTensor(hold(contents, name, array), COLUMNS, "their own")
    found = keep_rows(whole, 5)
    np.testing.assert_array_equal(fill(found.tensor, contents), array[:5])
    assert (found.tensor.name, found.cut, found.source) == (name, COLUMNS, "their own")
    assert keep_rows(whole, 6) is whole


def test_rows_of_other_tensors_are_no_tokens() -> None:
    whole = MetaTensor(hold({}, "layers.0.attention.wo.weight", numbered((6, 4))), COLUMNS, "their own")
    assert keep_rows(whole, 5) is whole


def view(contents: Contents, name: str, array: np.ndarray) -> TensorView:
    """Store a part of a tensor."""
    tensor = hold(contents, name, array)
    return TensorView(name, tensor.copies[0].region, FLOAT32, 0, array.shape, contiguous_strides(array.shape))


def matches(spec: Spec, ranks: int, contents: Contents, copies: int = 1) -> list[Match]:
    """Give a model in the parts of ranks, each key head stored so often, as the matches of its rules."""
    rules = {rule.source: rule for rule in RULES}
    found = []
    for whole, (name, _shape, axis) in zip(wholes(spec, {}), shapes(spec), strict=True):
        array = make_model(spec)[name]
        if axis is None:
            parts = [array + rank for rank in range(ranks)]  # the first counts
        elif whole.cut.heads == "key":
            held = np.split(array, ranks // copies)
            parts = [
                held[rank // copies] if rank % copies == 0 else held[rank // copies] + 1
                for rank in range(ranks)
            ]
        else:
            parts = np.split(array, ranks, axis)
        rule = rules[re.sub(r"\.\d+\.", ".{i}.", name)]
        views = tuple(view(contents, name, part) for part in parts)
        found.append(Match(name, reference.rename(name), rule.operation, whole.cut, views))
    return found


@pytest.mark.parametrize(("spec", "ranks", "copies"), [(SPECS[0], 2, 2), (SPECS[1], 4, 2), (SPECS[2], 3, 1)])
def test_parts_of_ranks_are_joined_to_what_they_are_of(spec: Spec, ranks: int, copies: int) -> None:
    contents: Contents = {}
    model = make_model(spec)
    given_matches = matches(spec, ranks, contents, copies)
    found = list(join_ranks(given_matches, copies))
    assert [whole.source for whole in found] == [whole.tensor.name for whole in found] == list(model)
    assert [whole.cut for whole in found] == [match.cut for match in given_matches]
    for whole in found:
        np.testing.assert_array_equal(fill(whole.tensor, contents), model[whole.source])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("spec", "ranks", "copies"), [(SPECS[0], 2, 2), (SPECS[1], 4, 2), (SPECS[2], 3, 1)])
def test_targets_are_transformers_tensors_without_an_output_that_is_the_embedding(
    spec: Spec, ranks: int, copies: int, *, tied: bool
) -> None:
    contents: Contents = {}
    decisions = Decisions(tied, copies)
    given_matches = matches(spec, ranks, contents, copies)[::-1]
    found = make_targets(given_matches, spec.head_dim, decisions)
    expected = to_transformers(spec, make_model(spec))
    if tied:
        del expected["lm_head.weight"]
    assert [target.name for target in found] == list(expected)[::-1]
    for target in found:
        whole = Tensor(target.name, target.stored, target.shape, target.copies)
        np.testing.assert_array_equal(fill(whole, contents), expected[target.name])
        assert reference.rename(target.source) == target.name
        assert (target.stored, target.dtype) == (FLOAT32, FLOAT32)
    halves = make_targets(given_matches, spec.head_dim, decisions, FLOAT16)
    assert {(target.stored, target.dtype) for target in halves} == {(FLOAT32, FLOAT16)}


def test_all_targets_that_cannot_be_made_are_told_line_by_line() -> None:
    contents: Contents = {}
    given_matches = matches(SPECS[0], 1, contents)
    cut_short = [
        replace(
            match,
            views=tuple(part._replace(region=Region("cut", 0, 4, 0, zipped=False)) for part in match.views),
        )
        if "w1" in match.source
        else match
        for match in given_matches
    ]
    with pytest.raises(InputError) as raised:
        make_targets(cut_short, 4, Decisions(tied=False, kv_replication=1))
    lines = str(raised.value).split("\n")
    assert [line.split(":")[0] for line in lines] == [
        "layers.0.feed_forward.w1.weight", "layers.1.feed_forward.w1.weight",
    ]  # fmt: skip
