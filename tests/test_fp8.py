"""FP8 originals become what torch's own arithmetic makes of their values and scales, in both families."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import distconv
from distconv.errors import InputError
from distconv.moving import job
from distconv.moving.torch_device import TorchDevice
from distconv.output.receipt import read_receipt
from distconv.storage import places
from distconv.verbs.card import make_card
from distconv.verbs.dequantize import make_values
from tests.checkpoints import Spec, shapes, write_checklist, write_checkpoint, write_params
from tests.faults import read_data
from tests.fp8_checkpoints import (
    FLOAT8,
    Tensors,
    dequantize_checkpoint,
    quantize_checkpoint,
    write_sparse_fp8,
)
from tests.image_checkpoints import Llama4Spec, make_model, write_image_checkpoint
from tests.image_reference import convert as convert_plainly
from tests.moving.stand_ins import Late, pretended_gpu
from tests.reference import convert as convert_llama
from tests.reference import read_tensors
from tests.sidecars.conftest import packaged_file
from tests.test_input_changes import A_CHUNK, act_before

AnySpec = Spec | Llama4Spec
Write = Callable[[AnySpec], Path]
LLAMA = Spec("llama-3.1", dim=64, layers=4, heads=8, kv_heads=8, shards=2, equal_norms=True, checklist=False)
MAVERICK = Llama4Spec(layers=6, step=2, qk_norm=False, scaled=False, kv_heads=8, shards=2)
BOTH = [LLAMA, MAVERICK]
LIMIT = 150_000
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
on_both = pytest.mark.parametrize("spec", BOTH, ids=["llama", "maverick"])


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, tiktoken_file: Path) -> Write:
    """Give a function that writes an FP8 checkpoint once and gives its folder, to be read only."""
    written: dict[AnySpec, Path] = {}

    def run(spec: AnySpec) -> Path:
        if spec not in written:
            folder = tmp_path_factory.mktemp("fp8") / "meta"
            if isinstance(spec, Spec):
                write_checkpoint(folder, spec, tiktoken_file)
                written[spec] = quantize_checkpoint(folder, spec.layers)
            else:
                write_image_checkpoint(folder, spec, tiktoken_file)
                written[spec] = quantize_checkpoint(folder, spec.layers, spec.experts)
        return written[spec]

    return run


def expect(spec: AnySpec, source: Path, scratch: Path, dtype: torch.dtype) -> Tensors:
    """Dequantize all shards by torch, and make Transformers' tensors of them the plain way."""
    plain = dequantize_checkpoint(source, scratch / "plain", dtype)
    if isinstance(spec, Spec):
        return convert_llama(plain, spec)
    shards = [torch.load(path, weights_only=True) for path in sorted(plain.glob("*.pth"))]
    model = make_model(spec)
    for name, whole in model.items():
        if ".experts." in name:
            axis = 1 if name.endswith("eF_D") else 2
            parts = [shard[name].view(spec.experts, -1, shard[name].shape[-1]) for shard in shards]
            model[name] = torch.cat(parts, axis)
        else:
            model[name] = whole.to(dtype)
    return convert_plainly(spec, model)


def assert_equal(found: Tensors, expected: Tensors) -> None:
    """Compare names, and every bit, but for NaNs: these are all the quiet one."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        kind = INTEGERS[tensor.dtype]
        quiet = torch.where(tensor.isnan(), torch.tensor(float("nan"), dtype=tensor.dtype), tensor)
        assert torch.equal(found[name].view(kind), quiet.contiguous().view(kind)), name


@pytest.mark.product
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@on_both
def test_every_value_is_its_float8_number_times_its_scale(
    write: Write, tmp_path: Path, spec: AnySpec, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(spec, shards=shards)
    block_bytes = {1: None, 2: 1001, 4: 30_001, 8: 300}[shards]
    monkeypatch.setattr(job.Job.__init__, "__defaults__", (block_bytes, *job.Job.__init__.__defaults__[1:]))
    report = distconv.convert(write(spec), tmp_path / "hf", dtype="bfloat16", max_shard_size=LIMIT)
    assert any("dequantized, each value times its scale" in note for note in report.notes)
    assert_equal(read_tensors(tmp_path / "hf"), expect(spec, write(spec), tmp_path, torch.bfloat16))
    assert distconv.verify(tmp_path / "hf", against=write(spec)).ok


@pytest.fixture
def strange(write: Write, tmp_path: Path) -> Callable[[AnySpec], Path]:
    """Give a function that writes a checkpoint with every pattern of float8, and with scales from tiny to huge."""

    def run(spec: AnySpec) -> Path:
        folder = shutil.copytree(write(spec), tmp_path / "strange")
        for rank, path in enumerate(sorted(folder.glob("*.pth"))):
            shard = torch.load(path, weights_only=False)
            scales = torch.load(folder / f"fp8_scales_{rank}.pt")
            generator = torch.Generator().manual_seed(rank)
            for tensor in shard.values():
                if isinstance(tensor, torch.Tensor) and tensor.dtype == FLOAT8:
                    patterns = torch.arange(tensor.numel()) % 256
                    order = torch.randperm(tensor.numel(), generator=generator)
                    tensor.view(torch.uint8).view(-1)[:] = patterns[order].to(torch.uint8)
            for scale in scales.values():
                exponents = torch.randint(-149, 127, scale.shape, generator=generator)
                scale[:] = torch.ldexp(1 + torch.rand(scale.shape, generator=generator), exponents).clamp(
                    min=1e-45
                )
            torch.save(shard, path)
            torch.save(scales, folder / f"fp8_scales_{rank}.pt")
        return folder

    return run


@pytest.mark.product
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@on_both
def test_every_pattern_and_any_scale_is_multiplied_as_torch_does_it_and_nan_is_the_quiet_one(
    strange: Callable[[AnySpec], Path], tmp_path: Path, spec: AnySpec, dtype: torch.dtype
) -> None:
    source, asked = strange(spec), str(dtype).removeprefix("torch.")
    report = distconv.convert(source, tmp_path / "hf", dtype=asked, max_shard_size=LIMIT)
    expected = expect(spec, source, tmp_path, dtype)
    assert_equal(read_tensors(tmp_path / "hf"), expected)
    assert report.became_infinite == sum(int(tensor.isinf().sum()) for tensor in expected.values()) > 0
    different = distconv.verify(tmp_path / "hf", against=source).differences
    assert not [words for words in different if "differs" in words or "expected" in words]


@on_both
@pytest.mark.parametrize("kind", ["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_the_gpus_way_gives_the_same_bytes(
    write: Write, tmp_path: Path, spec: AnySpec, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"dtype": "bfloat16", "max_shard_size": LIMIT}
    distconv.convert(write(spec), tmp_path / "host", **options)
    monkeypatch.setattr(TorchDevice, "small_bytes", 0)
    with nullcontext() if kind == "gpu" else pretended_gpu(Late):
        distconv.convert(write(spec), tmp_path / "cuda", **options, device="cuda")
    assert read_data(tmp_path / "cuda") == read_data(tmp_path / "host")


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_bytes(write: Write, tmp_path: Path) -> None:
    options = {"dtype": "bfloat16", "max_shard_size": LIMIT}
    distconv.convert(write(MAVERICK), tmp_path / "host", **options)
    distconv.convert(write(MAVERICK), tmp_path / "workers", **options, workers=2)
    assert read_data(tmp_path / "workers") == read_data(tmp_path / "host")


@pytest.mark.product
@pytest.mark.parametrize("shards", [1, 2, 4])
@on_both
def test_metas_layout_is_given_dequantized_shards_in_any_number(
    write: Write, tmp_path: Path, spec: AnySpec, shards: int
) -> None:
    plain = dequantize_checkpoint(write(spec), tmp_path / "plain", torch.bfloat16)
    for source, output in ((write(spec), "fp8"), (plain, "bf16")):
        options = {"to": "meta", "shards": shards, "dtype": "bfloat16", "max_shard_size": LIMIT}
        distconv.convert(source, tmp_path / output, **options)
        assert distconv.verify(tmp_path / output, against=source).ok
    assert read_data(tmp_path / "fp8") == read_data(tmp_path / "bf16")


@pytest.mark.parametrize("to", ["transformers", "meta"])
@on_both
def test_without_a_type_it_is_refused_with_the_reason(
    write: Write, tmp_path: Path, spec: AnySpec, to: str
) -> None:
    for act in (
        lambda: distconv.convert(write(spec), tmp_path / "out", to=to),
        lambda: distconv.plan(write(spec), to=to),
        lambda: distconv.manifest(write(spec), tmp_path / "manifest.json"),
    ):
        with pytest.raises(
            InputError, match=r"an FP8 checkpoint, .* a scale for each row and shard.*`dtype='bfloat16'`"
        ):
            act()
    assert not (tmp_path / "out").exists()


@on_both
def test_inspect_and_plan_say_what_it_is(write: Write, spec: AnySpec) -> None:
    scaled = 3 * 2  # of the middle layers
    found = distconv.inspect(write(spec))
    assert found.to_json()["dtypes"] == ["bfloat16", "float8_e4m3fn"]
    (note,) = [note for note in found.notes if "FP8" in note]
    assert note.startswith(
        f"{scaled} tensors are stored in FP8 (float8_e4m3fn) with a scale for each row of each shard"
    )
    planned = distconv.plan(write(spec), dtype="bfloat16")
    assert note in planned.notes
    assert planned.to_json()["dtype"] == "bfloat16"


def test_check_compares_scales_by_md5_and_by_the_checksums_of_their_records(
    write: Write, tmp_path: Path
) -> None:
    folder = shutil.copytree(write(LLAMA), tmp_path / "meta")
    plain = distconv.check(folder)
    assert plain.ok
    assert plain.by_crc32 == 2 * LLAMA.shards
    write_checklist(folder)
    listed = distconv.check(folder)
    assert listed.ok
    assert listed.by_md5 == 2 * LLAMA.shards + 2
    damage(folder / "fp8_scales_1.pt")
    (finding,) = distconv.check(folder).findings
    assert "fp8_scales_1.pt: MD5" in finding
    (folder / "checklist.chk").unlink()
    (finding,) = distconv.check(folder).findings
    assert "fp8_scales_1.pt: CRC32" in finding


def damage(path: Path) -> None:
    """Change the mantissa of one scale."""
    scale = next(iter(torch.load(path).values())).reshape(-1)[:4].numpy().tobytes()
    content = path.read_bytes()
    place = content.index(scale)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@on_both
def test_another_scale_is_found_by_the_comparison(write: Write, tmp_path: Path, spec: AnySpec) -> None:
    folder = shutil.copytree(write(spec), tmp_path / "meta")
    distconv.convert(folder, tmp_path / "hf", dtype="float32")
    damage(folder / "fp8_scales_1.pt")
    (words,) = distconv.verify(tmp_path / "hf", against=folder).differences
    assert "differs from layers.1.feed_forward." in words


def test_scales_that_change_are_named_and_make_nothing_whole(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = (
        shutil.copytree(write(LLAMA), tmp_path / "meta"),
        {"dtype": "bfloat16", "max_shard_size": LIMIT},
    )
    whole = places.LocalStorage
    act_before(monkeypatch, A_CHUNK, lambda: damage(folder / "fp8_scales_1.pt"))
    with pytest.raises(InputError, match=r"fp8_scales_1\.pt: written, replaced or touched"):
        distconv.convert(folder, tmp_path / "out", **options)
    monkeypatch.setattr(places, "LocalStorage", whole)
    assert not (tmp_path / "out/config.json").exists()


def test_an_interrupted_conversion_goes_on_and_one_of_other_scales_does_not(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = (
        shutil.copytree(write(LLAMA), tmp_path / "meta"),
        {"dtype": "bfloat16", "max_shard_size": LIMIT},
    )
    distconv.convert(folder, tmp_path / "expected", **options)

    def stop() -> None:
        raise OSError(28, "No space left on device")

    whole = places.LocalStorage
    act_before(monkeypatch, "tokenizer.json", stop)
    with pytest.raises(OSError, match="No space left"):
        distconv.convert(folder, tmp_path / "out", **options)
    monkeypatch.setattr(places, "LocalStorage", whole)
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    report = distconv.convert(folder, tmp_path / "out", **options)
    assert report.kept_chunks == report.chunks > 3
    assert read_data(tmp_path / "out") == read_data(tmp_path / "expected")
    damage(folder / "fp8_scales_0.pt")
    with pytest.raises(distconv.errors.OutputError, match=r"fp8_scales_0\.pt"):
        distconv.convert(folder, tmp_path / "other", **options)


def test_the_values_of_the_comparison_are_those_of_torch() -> None:
    bits = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(FLOAT8)
    np.testing.assert_array_equal(make_values(), bits.to(torch.float32).numpy())


LLAMA_405B = Spec("llama-3.1", 16384, 126, 128, 8, 4096, 1.2, vocab=128256, shards=8, checklist=False)
MAVERICK_INSTRUCT = Llama4Spec(
    5120, 48, 40, 8, 2048, 202048, 128, 2, qk_norm=False, scaled=False, width=1408, encoder_layers=34,
    encoder_heads=16, side=24, output=4096, shards=8, split=True, extra_state=False, multiplier=1.2,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "published_bytes", "scaled", "parameters"),
    [(LLAMA_405B, 60_903_742_309, 372, 405_853_388_800), (MAVERICK_INSTRUCT, 54_121_549_657, 69, 401_583_781_376)],
    ids=["405B", "Maverick"],
)  # fmt: skip
def test_shards_of_the_published_sizes_are_planned_whole(
    tmp_path: Path, spec: AnySpec, published_bytes: int, scaled: int, parameters: int
) -> None:
    if isinstance(spec, Spec):
        folder = write_sparse_fp8(tmp_path / "meta", list(shapes(spec)), spec.shards, spec.layers)
        write_params(folder, spec)
    else:
        folder = write_sparse_fp8(
            tmp_path / "meta", list(spec.rows()), spec.shards, spec.layers, spec.experts
        )
        (folder / "params.json").write_text(json.dumps(spec.params()))
    # But for the zip and the pickle they are byte for byte as large.
    assert (folder / "consolidated.00.pth").stat().st_size == pytest.approx(published_bytes, rel=1e-5)
    generation = "llama3" if isinstance(spec, Spec) else "llama4"
    tokenizer = packaged_file("llama_models", f"{generation}/tokenizer.model")
    found = distconv.plan(folder, dtype="bfloat16", tokenizer=tokenizer)
    assert any(note.startswith(f"{scaled} tensors are stored in FP8") for note in found.notes)
    assert found.plan.size_bytes == pytest.approx(2 * parameters, rel=1e-6)
    assert sum(tensor.elements for tensor in found.plan.tensors) == parameters


def test_receipt_and_model_card_say_of_what_it_was_made(write: Write, tmp_path: Path) -> None:
    distconv.convert(write(LLAMA), tmp_path / "hf", dtype="bfloat16")
    receipt = read_receipt(places.LocalStorage(), str(tmp_path / "hf/distconv.json"))
    names = {source.name for source in receipt.conversion.sources}
    assert names >= {f"fp8_scales_{rank}.pt" for rank in range(LLAMA.shards)}
    assert "stored as bfloat16, dequantized from FP8: each value times its scale" in make_card(receipt, {})
