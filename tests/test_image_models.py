"""Models that see go from Meta's layout to Transformers', among ranks and back, as plain torch has them."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForImageTextToText

import distconv
from distconv.errors import InputError, UsageError
from tests.faults import read_data
from tests.image_checkpoints import (
    RATIOS,
    Llama4Spec,
    Tensors,
    VisionSpec,
    cut_model,
    make_model,
    write_image_checkpoint,
)
from tests.image_reference import convert as convert_plainly
from tests.reference import read_tensors

Spec = VisionSpec | Llama4Spec
VISION, SCOUT = VisionSpec(), Llama4Spec(statistics=True)
MAVERICK = Llama4Spec(step=2, qk_norm=False, scaled=False)
GUARD = Llama4Spec(experts=0, nope=None, chunk=None, scaled=False, qk_norm=False)
NAMED = {
    "vision": VISION,
    "vision of other layers": VisionSpec(layers=8, cross=3, side=3),
    "scout": SCOUT,
    "maverick": MAVERICK,
    "maverick by its modules' names": replace(MAVERICK, split=True),
    "guard 4": GUARD,
}
SPECS = list(NAMED.values())


def name_spec(value: object) -> str | None:
    """Name a case."""
    return (
        next((name for name, spec in NAMED.items() if spec == value), None)
        if isinstance(value, Spec)
        else str(value)
    )


def load_shards(folder: Path) -> list[Tensors]:
    """Load all shards of a folder."""
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))]


def assert_equal(found: Tensors, expected: Tensors) -> None:
    """Compare names, and every bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.int16), tensor.contiguous().view(torch.int16)), name


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, tiktoken_file: Path) -> Callable[[Spec], Path]:
    """Give a function that writes a checkpoint once and gives its folder, to be read only."""
    written: dict[Spec, Path] = {}

    def run(spec: Spec) -> Path:
        if spec not in written:
            written[spec] = tmp_path_factory.mktemp("images") / "meta"
            write_image_checkpoint(written[spec], spec, tiktoken_file)
        return written[spec]

    return run


@pytest.mark.product
@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("spec", SPECS, ids=name_spec)
def test_every_tensor_is_what_plain_torch_makes_of_the_shards(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec, shards: int
) -> None:
    source = write(replace(spec, shards=shards))
    distconv.convert(source, tmp_path / "hf", max_shard_size=200_000)
    assert_equal(read_tensors(tmp_path / "hf"), convert_plainly(spec, make_model(spec)))
    assert distconv.verify(tmp_path / "hf", against=source).ok


@pytest.mark.first(2)
@pytest.mark.parametrize("spec", [VISION, SCOUT, MAVERICK], ids=name_spec)
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 4), (4, 2)])
def test_shards_are_brought_into_any_other_number_of_them(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec, before: int, after: int
) -> None:
    source = write(replace(spec, shards=before))
    distconv.convert(source, tmp_path / "meta", to="meta", shards=after, max_shard_size=100_000)
    plain = replace(spec, statistics=False) if isinstance(spec, Llama4Spec) else spec
    expected = cut_model(replace(plain, shards=after), make_model(spec))
    for found, wanted in zip(load_shards(tmp_path / "meta"), expected, strict=True):
        assert_equal(found, wanted)
    assert distconv.verify(tmp_path / "meta", against=source).ok


@pytest.mark.product
@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("spec", [VISION, SCOUT, MAVERICK, GUARD], ids=name_spec)
def test_the_way_back_gives_metas_shards_but_for_places_that_no_image_has(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec, shards: int
) -> None:
    distconv.convert(write(spec), tmp_path / "hf", max_shard_size=200_000)
    distconv.convert(tmp_path / "hf", tmp_path / "meta", to="meta", shards=shards)
    model = make_model(spec)
    for name, tensor in model.items():
        if tensor.ndim == 4:  # a table by places, of which Meta's code reads those of images only
            known = torch.zeros(4, 4, 1, 1, dtype=torch.bool)
            for rows, columns in RATIOS:
                known[:rows, :columns] = True
            model[name] = torch.where(known, tensor, torch.zeros_like(tensor))
    plain = replace(spec, statistics=False) if isinstance(spec, Llama4Spec) else spec
    for found, wanted in zip(
        load_shards(tmp_path / "meta"), cut_model(replace(plain, shards=shards), model), strict=True
    ):
        assert_equal(found, wanted)
    assert distconv.verify(tmp_path / "meta", against=tmp_path / "hf").ok


def test_a_table_that_was_trained_for_each_ratio_by_itself_has_no_way_back(
    write: Callable[[Spec], Path], tmp_path: Path
) -> None:
    distconv.convert(write(VISION), tmp_path / "hf")
    path, name = (
        tmp_path / "hf/model.safetensors",
        "vision_model.pre_tile_positional_embedding.embedding.weight",
    )
    tensors = load_file(path)
    tensors[name][2, 0] += 1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"{name}: images of several ratios"):
        distconv.convert(tmp_path / "hf", tmp_path / "meta", to="meta")
    assert not (tmp_path / "meta").exists()


@pytest.mark.first(1)
@pytest.mark.parametrize("spec", [VISION, MAVERICK], ids=name_spec)
def test_saving_a_reloaded_model_changes_no_byte(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec
) -> None:
    distconv.convert(write(spec), tmp_path / "hf")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "hf/model.safetensors"
    ).read_bytes()


TOUCHED = {
    VISION: (
        "language_model.model.embed_tokens.weight", "vision_model.gated_positional_embedding.tile_embedding.weight",
        "language_model.model.layers.2.cross_attn_attn_gate", "vision_model.patch_embedding.weight",
    ),
    MAVERICK: (
        "language_model.model.layers.1.feed_forward.experts.gate_up_proj",
        "language_model.model.layers.1.feed_forward.experts.down_proj",
        "language_model.model.layers.1.feed_forward.router.weight", "language_model.model.layers.2.self_attn.v_proj.weight",
    ),
}  # fmt: skip


@pytest.mark.first(3)
@pytest.mark.parametrize(
    ("spec", "name"), [(spec, name) for spec, names in TOUCHED.items() for name in names], ids=str
)
def test_an_element_that_was_changed_is_found_with_its_tensor(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec, name: str
) -> None:
    source = write(replace(spec, shards=2))
    distconv.convert(source, tmp_path / "hf")
    (tmp_path / "hf/distconv.json").unlink()
    path = tmp_path / "hf/model.safetensors"
    content = bytearray(path.read_bytes())
    head = int.from_bytes(content[:8], "little")
    end = json.loads(content[8 : 8 + head])[name]["data_offsets"][1]
    content[8 + head + end - 1] ^= 1
    path.write_bytes(content)
    differences = distconv.verify(tmp_path / "hf", against=source).differences
    assert len(differences) == 1
    assert name in differences[0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (VISION, r"attention\.wk\.weight has 4 heads of 8 rows"),
        (MAVERICK, r"attention\.wk\.weight has 4 heads of 8 rows"),
        (replace(MAVERICK, multiple_of=2, dim=40, heads=10, kv_heads=10), "[0-9]+ rows in each of 4 experts"),
    ],
    ids=str,
)
def test_a_number_of_ranks_that_cuts_a_head_or_an_expert_is_refused(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        distconv.convert(write(spec), tmp_path / "meta", to="meta", shards=8)


def change_params(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let params.json say something else."""
    found = json.loads((folder / "params.json").read_text())
    change(found)
    (folder / "params.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layers": 3}, "n_layers is 3, the tensors have 2"),
        ({"dim": 64}, "dim is 64, the tensors have 32"),
        ({"output_dim": 64}, "output_dim is 64, the tensors have 128"),
        ({"patch_size": {"height": 7, "width": 7}}, "patch_size is 7, the tensors have 14"),
        ({"image_size": {"height": 336, "width": 336}}, "image_size is 336, the tensors have 56"),
        ({"pixel_shuffle_ratio": 0.25}, "pixel_shuffle_ratio is 0.25: 32 wide patches become 512 wide, the adapter takes 128"),
    ],
    ids=str,
)  # fmt: skip
def test_an_encoder_of_other_sizes_than_params_json_says_is_refused(
    write: Callable[[Spec], Path], tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    source = shutil.copytree(write(SCOUT), tmp_path / "in")
    change_params(source, lambda found: found["vision_args"].update(changes))
    with pytest.raises(InputError) as raised:
        distconv.plan(source)
    assert f"{source}/params.json: vision_args.{words}" in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "change", "words"),
    [
        (SCOUT, {"interleave_moe_layer_step": 2}, r"layers \[1, 3\] have experts, in the shards layer 0 has some"),
        (MAVERICK, {"interleave_moe_layer_step": 1}, r"layers \[0, 1, 2, 3\] have experts, in the shards layer 0 has none"),
        (SCOUT, {"num_experts": 0}, "no layers have experts, in the shards layer 0 has some"),
    ],
    ids=["scout", "maverick", "no experts"],
)  # fmt: skip
def test_layers_that_have_experts_otherwise_than_params_json_says_are_named(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec, change: dict[str, object], words: str
) -> None:
    source = shutil.copytree(write(spec), tmp_path / "in")
    change_params(source, lambda found: found["moe_args"].update(change))
    with pytest.raises(InputError, match=words):
        distconv.plan(source)


def test_an_encoder_without_its_last_layer_is_refused(write: Callable[[Spec], Path], tmp_path: Path) -> None:
    source = shutil.copytree(write(SCOUT), tmp_path / "in")
    state = torch.load(source / "consolidated.00.pth", weights_only=False)
    left = {name: tensor for name, tensor in state.items() if ".transformer.resblocks.1." not in name}
    torch.save(left, source / "consolidated.00.pth")
    with pytest.raises(InputError, match=r"vision_args\.n_layers is 2, the tensors have 1"):
        distconv.plan(source)


FUSED = "layers.1.attention.wqkv.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state.update({"layers.1.attention.wk.weight": torch.ones(32, 64).bfloat16()}),
            r"layers\.1\.attention\.wk\.weight is there by itself, and in layers\.1\.attention\.wqkv\.weight",
        ),
        (
            lambda state: state.update({FUSED: state[FUSED][:-1].clone()}),
            r"wqkv\.weight in consolidated\.00\.pth: shape \(127, 64\), expected the rows of .*which are as 64 to 32 to 32",
        ),
    ],
    ids=["twice", "odd rows"],
)
def test_what_is_stored_together_is_neither_there_twice_nor_of_other_rows(
    write: Callable[[Spec], Path], tmp_path: Path, change: Callable[[Tensors], object], words: str
) -> None:
    source = shutil.copytree(write(SCOUT), tmp_path / "in")
    state = torch.load(source / "consolidated.00.pth", weights_only=False)
    change(state)
    torch.save(state, source / "consolidated.00.pth")
    with pytest.raises(InputError, match=words):
        distconv.plan(source)


def test_a_rope_that_params_json_does_not_scale_is_not_scaled(
    write: Callable[[Spec], Path], tmp_path: Path
) -> None:
    source = shutil.copytree(write(VISION), tmp_path / "in")
    change_params(source, lambda found: found.update(use_scaled_rope=False))
    report = distconv.convert(source, tmp_path / "out")
    assert any("rope is not scaled, as it says" in note for note in report.notes)
    config = json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    assert config["rope_parameters"] == {"rope_theta": 500000.0, "rope_type": "default"}
    distconv.convert(tmp_path / "out", tmp_path / "back", to="meta")
    assert json.loads((tmp_path / "back/params.json").read_text())["use_scaled_rope"] is False


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (VISION, r"3 of 4 shards, by their heads: .*8 a head, and params\.json says 8 heads"),
        (SCOUT, r"vision_args\.dim is 32, the tensors have 24; .*download the missing shards"),
    ],
    ids=["vision", "scout"],
)
def test_a_last_shard_that_is_missing_is_told_by_the_heads(
    write: Callable[[Spec], Path], tmp_path: Path, spec: Spec, words: str
) -> None:
    source = shutil.copytree(write(replace(spec, shards=4)), tmp_path / "in")
    (source / "consolidated.03.pth").unlink()
    with pytest.raises(InputError, match=words):
        distconv.plan(source)


def test_a_family_that_does_not_fit_is_not_advised(write: Callable[[Spec], Path]) -> None:
    with pytest.raises(InputError, match=r"give one that fits \(llama-guard-4\)"):
        distconv.plan(write(GUARD), family="llama-4")


@pytest.mark.slow
def test_workers_on_ray_make_the_same_bytes(write: Callable[[Spec], Path], tmp_path: Path) -> None:
    source = write(replace(MAVERICK, shards=4))
    distconv.convert(source, tmp_path / "one", max_shard_size=100_000)
    distconv.convert(source, tmp_path / "two", max_shard_size=100_000, workers=2)
    assert read_data(tmp_path / "two") == read_data(tmp_path / "one")


def test_a_conversion_goes_on_where_an_earlier_one_was_cut_off(
    write: Callable[[Spec], Path], tmp_path: Path
) -> None:
    source = write(VISION)
    distconv.convert(source, tmp_path / "whole", max_shard_size=200_000)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    gone = max((tmp_path / "part").glob("*.safetensors"))
    gone.unlink()
    report = distconv.convert(source, tmp_path / "part", max_shard_size=200_000)
    assert report.kept_chunks == report.chunks - 1
    assert gone.read_bytes() == (tmp_path / "whole" / gone.name).read_bytes()


def save_alone(state: Tensors, folder: Path) -> None:
    """Save as a trainer of one process does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save({"model": state}, checkpoint_id=folder, no_dist=True)


@pytest.fixture(scope="module")
def trained(write: Callable[[Spec], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a function that saves a model that was trained from another in some type, and gives the folder of both."""
    place = tmp_path_factory.mktemp("trained")

    def save(name: str, dtype: str = "bfloat16") -> Path:
        folder = place / f"{name}-{dtype}"
        if not folder.exists():
            distconv.convert(write(NAMED[name]), folder / "like")
            model = AutoModelForImageTextToText.from_pretrained(folder / "like", dtype=dtype)
            save_alone(model.state_dict(), folder / "saved")
        return folder

    return save


def list_dtypes(folder: Path) -> dict[str, object]:
    """Give the type that a config names for all, and for each of its parts."""
    config = json.loads((folder / "config.json").read_text())
    parts = {"": config} | {key: part for key, part in config.items() if key.endswith("_config")}
    return {key: part["dtype"] for key, part in parts.items()}


@pytest.mark.first(2)
@pytest.mark.parametrize("name", ["vision", "scout"])
@pytest.mark.parametrize(("stored", "cast"), [("bfloat16", "float16"), ("float32", "auto")])
def test_the_config_of_a_trained_model_names_one_type_for_all_parts_as_transformers_saves_it(
    trained: Callable[..., Path], tmp_path: Path, name: str, stored: str, cast: str
) -> None:
    folder, dtype = trained(name, stored), stored if cast == "auto" else cast
    distconv.convert(folder / "saved", tmp_path / "out", like=folder / "like", dtype=cast)
    model = AutoModelForImageTextToText.from_pretrained(folder / "like", dtype=dtype)
    model.save_pretrained(tmp_path / "saved")
    assert list_dtypes(tmp_path / "out") == list_dtypes(tmp_path / "saved")
    assert set(list_dtypes(tmp_path / "out").values()) == {dtype}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert {str(tensor.dtype) for tensor in loaded.parameters()} == {f"torch.{dtype}"}


def test_the_config_of_a_part_keeps_a_type_that_its_tensors_have(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    folder = trained("vision")
    like = shutil.copytree(folder / "like", tmp_path / "like")
    config = json.loads((like / "config.json").read_text())
    config["vision_config"] |= {"dtype": "float32", "torch_dtype": "float32"}
    (like / "config.json").write_text(json.dumps(config))
    state = AutoModelForImageTextToText.from_pretrained(like, dtype="auto").state_dict()
    state = {name: tensor.float() if "vision_model" in name else tensor for name, tensor in state.items()}
    save_alone(state, tmp_path / "saved")
    distconv.convert(tmp_path / "saved", tmp_path / "out", like=like)
    kept = list_dtypes(tmp_path / "out")
    assert kept["vision_config"] == "float32"
    assert kept == list_dtypes(like) | {"": kept[""]}
    distconv.convert(tmp_path / "saved", tmp_path / "cast", like=like, dtype="float16")
    assert set(list_dtypes(tmp_path / "cast").values()) == {"float16"}
