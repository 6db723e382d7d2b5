"""Shards may cut anywhere, through heads as well: the same tensors come out, and verify proves it."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import distconv
from distconv.errors import InputError
from distconv.moving.job import Job
from distconv.moving.progress import SilentProgress
from distconv.moving.worker import write_file
from distconv.output.structure import read_headers
from distconv.output.targets import TRANSFORMERS
from distconv.storage.local import LocalStorage
from distconv.verbs import rows
from distconv.verbs.checkpoint import decide, plan_conversion, read_checkpoint
from distconv.verbs.compare_chunks import compare_chunks
from distconv.verbs.plan import read_bytes
from tests import reference
from tests.checkpoints import Layout, Spec, Tensors, shapes, write_checkpoint
from tests.extent import share
from tests.moving.test_strided import CountedStorage
from tests.test_end_to_end import assert_equal

Write = Callable[[Spec], Path]


def make_spec(shards: int, heads: int, kv_heads: int, head_dim: int, layout: Layout = "separate") -> Spec:
    """A small model of which all that is cut can be cut over so many shards."""
    return Spec(
        "llama-2", dim=heads * head_dim, heads=heads, kv_heads=kv_heads, shards=shards, layers=1,
        multiple_of=shards, vocab=320 + -320 % shards, layout=layout, checklist=False,
    )  # fmt: skip


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Models whose key heads are cut in any way: whole, halves, single rows, odd numbers of rows."""
    head_dim = draw(st.sampled_from([2, 4, 6, 8, 10, 16]))
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 7, 8]))
    shards = draw(st.sampled_from([n for n in range(1, 17) if kv_heads * head_dim % n == 0]))
    heads = kv_heads * draw(st.integers(1, 3))
    layouts: list[Layout] = ["separate", "packed", "transposed", "apart"]
    return make_spec(shards, heads, kv_heads, head_dim, draw(st.sampled_from(layouts)))


@given(specs())
@settings(max_examples=share(40))
def test_wherever_shards_cut_every_tensor_is_what_concatenation_and_permutation_give(spec: Spec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = write_checkpoint(Path(folder, "in"), spec)
        assert_converts(source, Path(folder, "out"), reference.convert(source, spec))


@given(specs(), st.integers(2, 16), st.randoms(use_true_random=False))
@settings(max_examples=share(40))
def test_parts_of_any_sizes_are_put_together(spec: Spec, shards: int, random: Random) -> None:
    whole = replace(spec, shards=1)
    with tempfile.TemporaryDirectory() as folder:
        source = write_checkpoint(Path(folder, "in"), whole)
        expected = reference.convert(source, whole)
        cut_unevenly(source, whole, shards, random)
        assert_converts(source, Path(folder, "out"), expected)


def cut_unevenly(source: Path, spec: Spec, shards: int, random: Random) -> None:
    """Cut a checkpoint of one shard at random places; parts may be empty where no size is told by them."""
    state = torch.load(source / "consolidated.00.pth", weights_only=True)
    cut: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for name, shape, axis in shapes(spec):
        if axis is None:
            parts: Sequence[torch.Tensor] = [state[name]] * shards
        else:
            least = 1 if name in {"tok_embeddings.weight", "layers.0.feed_forward.w1.weight"} else 0
            edges = sorted(random.randint(least, shape[axis]) for _ in range(shards - 1))
            parts = state[name].tensor_split(edges, dim=axis)
            if least and parts[0].shape[axis] == shape[axis]:
                parts = state[name].tensor_split([1, *edges[1:]], dim=axis)
        for shard, part in zip(cut, parts, strict=True):
            shard[name] = part.clone()
    for number, shard in enumerate(cut):
        torch.save(shard, source / f"consolidated.{number:02d}.pth")


def assert_converts(source: Path, output: Path, expected: Tensors) -> None:
    """Convert each chunk, compare the tensors with those expected, and prove them against the source."""
    storage = LocalStorage()
    loaded = read_checkpoint(storage, str(source))
    plan = plan_conversion(loaded, decide(loaded)[0], max_shard_size=20_000)
    output.mkdir()
    receipts = [
        write_file(Job(storage, str(output), "cpu"), chunk, lambda _size_bytes: None, lambda: False)
        for chunk in plan.files
    ]
    assert_equal(output, expected)
    stored_bytes = sum(path.stat().st_size for path in source.glob("*.pth"))
    assert sum(receipt.bytes_read for receipt in receipts) <= 1.1 * stored_bytes
    headers, findings = read_headers(storage, str(output), TRANSFORMERS, [file.name for file in plan.files])
    assert findings + compare_chunks(storage, loaded, headers, SilentProgress()) == []


CUTS = [
    (16, 8, 8, 8), (8, 12, 12, 8), (16, 16, 8, 8), (4, 4, 1, 8), (16, 1, 1, 16), (3, 3, 1, 6), (5, 10, 5, 2), (12, 12, 4, 6),
]  # fmt: skip
"""Shards, heads, key heads, head size: half heads, one and a half, of the keys alone, one for all, single rows."""


@pytest.mark.first(2)
@pytest.mark.parametrize("cut", CUTS[:5], ids=str)
def test_logits_of_cut_heads_are_those_of_metas_forward(
    checkpoint: Write, tmp_path: Path, cut: tuple[int, int, int, int]
) -> None:
    spec = replace(make_spec(*cut), dtype=torch.float32)
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    tokens = torch.randint(0, 300, (12,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(tokens[None]).logits[0]
    expected = reference.forward(source, spec, tokens)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.product
@pytest.mark.parametrize("layout", ["separate", "transposed", "apart"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_one_wrong_element_of_a_cut_head_is_found_against_the_source(
    checkpoint: Write, tmp_path: Path, cut: tuple[int, int, int, int], layout: Layout
) -> None:
    spec = make_spec(*cut, layout)
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    name, row, column = "model.layers.0.self_attn.k_proj.weight", spec.head_dim // 2, spec.dim - 1
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    start += json.loads(content[8:start])[name]["data_offsets"][0]
    content[start + 2 * (row * spec.dim + column)] ^= 1
    file.write_bytes(content)
    found = distconv.verify(tmp_path / "out", against=source).differences
    where = f"{name} in {file}: row {row}, column {column} differs from layers.0.attention.wk.weight"
    assert where in found


@pytest.mark.first(1)
@pytest.mark.parametrize("layout", ["separate", "packed", "transposed"])
def test_verifying_against_the_source_reads_it_once(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    """However its storages are strided, and in bands much smaller than its tensors."""
    source = checkpoint(make_spec(8, 12, 12, 16, layout))
    distconv.convert(source, tmp_path / "out")
    monkeypatch.setattr(rows, "BAND_BYTES", 1 << 13)
    storage = CountedStorage()
    loaded = read_checkpoint(LocalStorage(), str(source))
    headers, findings = read_headers(
        LocalStorage(), str(tmp_path / "out"), TRANSFORMERS, ["model.safetensors"]
    )
    assert findings + compare_chunks(storage, loaded, headers, SilentProgress()) == []
    size_bytes = read_bytes(distconv.plan(source).plan)
    assert sum(storage.sizes_bytes) <= 1.1 * 2 * size_bytes  # of INPUT and of OUTPUT
    assert max(storage.sizes_bytes) <= 1 << 14


def test_parts_that_make_up_no_whole_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", make_spec(2, 2, 2, 4))
    for shard in (0, 1):
        path = source / f"consolidated.{shard:02d}.pth"
        state = torch.load(path, weights_only=True)
        state["output.weight"] = torch.ones(161 - 2 * shard, 8, dtype=torch.bfloat16)
        state["tok_embeddings.weight"] = torch.ones(321, 4, dtype=torch.bfloat16)
        torch.save(state, path)
    with pytest.raises(InputError) as raised:
        distconv.convert(source, tmp_path / "out")
    assert str(raised.value) == (
        f"{source}: output.weight: shape (161, 8) in consolidated.00.pth, (159, 8) in consolidated.01.pth; "
        "expected (321, 8) cut along axis 0 into 2 shards"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stated", [1, 4, 8])
def test_key_heads_that_params_state_otherwise_are_refused_layer_by_layer(
    tmp_path: Path, stated: int
) -> None:
    source = write_checkpoint(tmp_path / "in", replace(make_spec(4, 8, 2, 8), layers=3))
    params = json.loads((source / "params.json").read_text())
    (source / "params.json").write_text(json.dumps(params | {"n_kv_heads": stated}))
    with pytest.raises(InputError) as raised:
        distconv.plan(source)
    lines = str(raised.value).splitlines()
    for number in range(3):
        expected = f"layers.{number}.attention.wk.weight in consolidated.02.pth: shape (4, 64), expected ({stated * 2}, 64)"
        assert f"{source}: {expected}" in lines
