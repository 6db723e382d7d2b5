"""Tables of models that see, their cuts and operations, against numpy; and which of them a checkpoint is of."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError, MismatchError
from distconv.families.architectures import LLAMA_4, MLLAMA
from distconv.families.choose import find_family
from distconv.families.cuts import Cut
from distconv.families.dimensions import Dimensions, Llama4Dimensions, MllamaDimensions, VisionEncoder
from distconv.families.fused import take_apart
from distconv.families.images import tell_image_family
from distconv.families.operations import TRANSPOSED, Split, TileTable
from distconv.families.rules import expand_rules
from distconv.families.translate import list_target_shapes
from distconv.formats.meta.catalog import Catalog, Shard
from distconv.formats.views import TensorView
from distconv.layout.dtypes import FLOAT32, contiguous_strides
from distconv.layout.regions import ZEROS
from tests.image_checkpoints import RATIOS, Llama4Spec, VisionSpec, cut_model, make_model
from tests.image_reference import convert, find_cross_layers
from tests.layout.test_algebra import Contents, fill, numbered, store

TEXT = Dimensions(64, 4, 8, 4, 8, 176, 2368)
ENCODER = VisionEncoder(32, 2, 0, 4, 128, 3, 14, 17, 1, 128)
LLAMA4_SIZES = Llama4Dimensions(TEXT, 4, 96, (1, 3), ENCODER, 128)
VISION_SIZES = MllamaDimensions(
    Dimensions(64, 6, 8, 4, 8, 176, 576), 2, 8, VisionEncoder(64, 8, 2, 16, 256, 3, 14, 17, 4, 192)
)


def test_ratios_are_those_of_metas_code_in_its_order() -> None:
    assert TileTable(4, 1).ratios == RATIOS


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_a_tile_table_is_laid_out_by_ratios_and_taken_back(tiles: int, positions: int, width: int) -> None:
    contents: Contents = {}
    table, whole = TileTable(tiles, positions), numbered((tiles, tiles, positions, width)) + 1
    contents[ZEROS] = np.zeros(tiles * positions * width, dtype=int)
    made = table.apply(store(contents, whole), 0)
    expected = np.zeros((len(table.ratios) + 1, tiles, positions * width), dtype=int)
    known = np.zeros((tiles, tiles, 1, 1), dtype=bool)
    for number, (rows, columns) in enumerate(table.ratios, 1):
        expected[number, : rows * columns] = whole[:rows, :columns].reshape(rows * columns, -1)
        known[:rows, :columns] = True
    np.testing.assert_array_equal(fill(made, contents), expected.reshape(len(expected), -1))
    np.testing.assert_array_equal(fill(table.invert(made, 0), contents), np.where(known, whole, 0))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_what_is_cut_inside_each_expert_is_joined_and_cut_for_any_number_of_ranks(
    experts: int, ranks: int, size: int, others: int
) -> None:
    contents: Contents = {}
    whole = numbered((experts, ranks * others * size, 3))
    cut = Cut(0, groups=experts)
    views = []
    for part in np.split(whole, ranks, axis=1):
        tensor = store(contents, part.reshape(-1, 3))
        region, shape = tensor.copies[0].region, tensor.shape
        views.append(TensorView("part", region, FLOAT32, 0, shape, contiguous_strides(shape)))
    joined = cut.join(views)
    np.testing.assert_array_equal(fill(joined, contents), whole.reshape(-1, 3))
    each = Split(0, (experts, whole.shape[1]))
    np.testing.assert_array_equal(fill(each.apply(joined, 0), contents), whole)
    np.testing.assert_array_equal(fill(each.invert(each.apply(joined, 0), 0), contents), whole.reshape(-1, 3))
    for rank, part in enumerate(np.split(whole, others, axis=1)):
        np.testing.assert_array_equal(fill(cut.part(joined, rank, others, 0), contents), part.reshape(-1, 3))


def test_rows_become_columns_and_back() -> None:
    contents: Contents = {}
    tensor, whole = store(contents, numbered((3, 5))), numbered((3, 5))
    np.testing.assert_array_equal(fill(TRANSPOSED.apply(tensor, 0), contents), whole.T)
    np.testing.assert_array_equal(fill(TRANSPOSED.invert(TRANSPOSED.apply(tensor, 0), 0), contents), whole)


@pytest.mark.parametrize(("layers", "cross"), [(6, 2), (8, 3), (32, 8), (80, 20), (10, 4), (7, 7)])
def test_layers_that_attend_to_images_are_numbered_as_metas_schedule_has_them(
    layers: int, cross: int
) -> None:
    sizes = replace(
        VISION_SIZES, text=replace(VISION_SIZES.text, layers=layers), cross_attention_layers=cross
    )
    expected = find_cross_layers(VisionSpec(layers=layers, cross=cross))
    assert list(sizes.cross_numbers) == expected
    numbers = [number for kind in ("text", "cross") for _own, number in sizes.numbers(kind)]
    assert sorted(numbers) == list(range(layers + len(expected)))


@pytest.mark.parametrize(
    ("spec", "architecture", "sizes"),
    [
        (VisionSpec(), MLLAMA, VISION_SIZES),
        (Llama4Spec(step=2, vocab=2368), LLAMA_4, LLAMA4_SIZES),
    ],
    ids=["vision", "llama 4"],
)
def test_a_table_names_all_tensors_in_both_dialects_with_their_shapes(
    spec: VisionSpec | Llama4Spec, architecture: object, sizes: MllamaDimensions | Llama4Dimensions
) -> None:
    rules = architecture.make_rules(sizes)  # type: ignore[attr-defined]
    expected = {name: tuple(tensor.shape) for name, tensor in convert(spec, make_model(spec)).items()}
    assert list_target_shapes(rules, sizes) == expected
    assert {one.stored for one in expand_rules(rules, sizes)} == cut_model(spec, make_model(spec))[0].keys()


def make_catalog(name: str, shape: tuple[int, ...]) -> tuple[Catalog, Contents]:
    contents: Contents = {}
    region = store(contents, numbered(shape)).copies[0].region
    view = TensorView(name, region, FLOAT32, 0, shape, contiguous_strides(shape))
    return Catalog((Shard("shard", ("shard",), 0, {name: view}),)), contents


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_is_stored_together_is_taken_apart_by_rows(ranks: int) -> None:
    name, rows = "layers.0.attention.wqkv.weight", 128 // ranks
    catalog, contents = make_catalog(name, (rows, 64))
    apart = take_apart(catalog, LLAMA_4.make_rules(LLAMA4_SIZES), LLAMA4_SIZES)
    whole = numbered((rows, 64))
    begin = 0
    for part, share in (("wq", 64), ("wk", 32), ("wv", 32)):
        own = f"layers.0.attention.{part}.weight"
        (view,) = apart.views(own)
        np.testing.assert_array_equal(fill(view.whole(), contents), whole[begin : begin + share // ranks])
        assert apart.stored_name(own) == name
        begin += share // ranks
    assert set(apart.names()) == {f"layers.0.attention.w{part}.weight" for part in "qkv"}


@pytest.mark.parametrize("shape", [(127, 64), (128,), (), (128, 64, 1)])
def test_what_does_not_divide_is_told_by_its_own_name_and_shape(shape: tuple[int, ...]) -> None:
    catalog, _contents = make_catalog("layers.0.attention.wqkv.weight", shape)
    with pytest.raises(
        InputError, match=r"^layers\.0\.attention\.wqkv\.weight in .*: shape .*expected the rows of"
    ):
        take_apart(catalog, LLAMA_4.make_rules(LLAMA4_SIZES), LLAMA4_SIZES)


def test_families_are_told_by_their_tensors() -> None:
    dense = replace(LLAMA4_SIZES, experts=0, expert_ffn_dim=0, moe_layers=())
    for sizes, name in (
        (VISION_SIZES, "llama-3.2-vision"),
        (LLAMA4_SIZES, "llama-4"),
        (dense, "llama-guard-4"),
    ):
        assert tell_image_family("in", sizes, None, has_statistics=False).family.name == name
    guard = find_family("llama-guard-3-vision")
    assert tell_image_family("in", VISION_SIZES, guard, has_statistics=False).family is guard
    told = tell_image_family("in", LLAMA4_SIZES, None, has_statistics=True)
    assert "as base models have" in told.evidence[-1]
    for sizes, asked in (
        (VISION_SIZES, "llama-4"),
        (dense, "llama-4"),
        (LLAMA4_SIZES, "llama-guard-4"),
        (dense, "llama-3"),
    ):
        with pytest.raises(MismatchError, match=f"`family='{asked}'` "):
            tell_image_family("in", sizes, find_family(asked), has_statistics=False)
