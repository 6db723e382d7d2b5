"""Meta's own code and torchtune's compute for Meta's folders what Transformers computes for ours."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaForCausalLM

import distconv
from tests import reference
from tests.checkpoints import Spec, write_checkpoint
from tests.meta_model import ROOT, MetaCode, meta_logits
from tests.patience import HANG_SECONDS
from tests.torchtune_logits import TuneModel, torchtune_logits

Write = Callable[[Spec], Path]

TOKENS = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(3)).tolist()


make = functools.partial(Spec, dim=128, heads=16, kv_heads=8, equal_norms=True)
"""Sizes that 8 processes can share."""

# Meta's resharder is wrong where processes are more than key heads, and cannot cut an embedding by columns.
SAME = [
    make("llama-3", shards=1, ffn_dim_multiplier=1.3),
    make("llama-3.1", shards=2),
    make("llama-3", shards=4, tied=True),
    make("llama-3", shards=8, dtype=torch.float32),
    make("llama-2", shards=1),
    make("llama-2", shards=2, dtype=torch.float16),
    pytest.param(make("llama-1", shards=4, kv_heads=None), marks=pytest.mark.slow),
    pytest.param(make("code-llama", shards=8), marks=pytest.mark.slow),
]
RESHARDED = [(1, 8), (2, 1), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(2, 4), (8, 2)])]


@pytest.fixture
def hanging(tiktoken_file: Path, tmp_path: Path) -> Path:
    """Give a folder on whose second shard a reader waits for ever."""
    folder = write_checkpoint(tmp_path / "model", make("llama-3", shards=2), tiktoken_file)
    path = folder / "consolidated.01.pth"
    path.unlink()
    os.mkfifo(path)
    return folder


def ranks() -> list[psutil.Process]:
    """Give the ranks that run at present."""
    return [
        rank
        for process in psutil.Process().children()
        if "tests.meta_ranks" in process.cmdline()
        for rank in process.children(recursive=True)
    ]


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare logits of float32 computations: they differ by rounding only."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def transformers_logits(folder: Path, spec: Spec, output: Path) -> np.ndarray:
    """Convert, and let Transformers compute in float32."""
    distconv.convert(folder, output, family=spec.family)
    model = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.first(3)
@pytest.mark.parametrize("spec", SAME, ids=lambda spec: f"{spec.family}-{spec.shards}")
def test_meta_s_code_loads_every_shard_and_computes_what_transformers_computes(
    spec: Spec, checkpoint: Write, meta_code: MetaCode, tmp_path: Path
) -> None:
    folder = checkpoint(spec)
    found = meta_logits(meta_code, folder, TOKENS, spec.shards, columns=spec.by_columns)
    assert_same(found, transformers_logits(folder, spec, tmp_path / "out"))
    expected = [reference.forward(folder, spec, torch.tensor(sequence)).numpy() for sequence in TOKENS]
    assert_same(found, np.stack(expected))


@pytest.mark.parametrize(("shards", "processes"), RESHARDED)
def test_meta_s_resharding_gives_the_same_logits(
    shards: int, processes: int, checkpoint: Write, meta_code: MetaCode
) -> None:
    spec = make("llama-3.1", shards=shards)
    folder = checkpoint(spec)
    expected = [reference.forward(folder, spec, torch.tensor(sequence)).numpy() for sequence in TOKENS]
    assert_same(meta_logits(meta_code, folder, TOKENS, processes), np.stack(expected))


def test_meta_s_own_dtype_gives_nearly_the_same_logits(checkpoint: Write, meta_code: MetaCode) -> None:
    folder = checkpoint(make("llama-3.1", shards=2))
    exact = meta_logits(meta_code, folder, TOKENS, 2)
    rounded = meta_logits(meta_code, folder, TOKENS, 2, dtype="bfloat16")
    # bfloat16 keeps 8 bits, and errors of a dozen steps add up.
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["attention.wq", "attention.wk"])
def test_rows_in_transformers_order_under_meta_s_names_give_other_logits(
    name: str, tiktoken_file: Path, meta_code: MetaCode, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "model", make("llama-3"), tiktoken_file)
    right = meta_logits(meta_code, folder, TOKENS, 1)
    path = folder / "consolidated.00.pth"
    state = torch.load(path)
    key = f"layers.0.{name}.weight"
    torch.save(state | {key: reference.permute(state[key], state[key].shape[0] // 8)}, path)
    assert np.abs(meta_logits(meta_code, folder, TOKENS, 1) - right).max() > 0.1 * np.abs(right).max()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_gives_its_words_and_ends_the_others(
    rank: int, tiktoken_file: Path, tmp_path: Path, meta_code: MetaCode
) -> None:
    folder = write_checkpoint(tmp_path / "model", make("llama-3", shards=2), tiktoken_file)
    path = folder / f"consolidated.{rank:02d}.pth"
    state = torch.load(path)
    del state["norm.weight"]
    torch.save(state, path)
    with pytest.raises(RuntimeError, match=rf'(?s)rank {rank} of 2.*Missing key.*"norm\.weight"'):
        meta_logits(meta_code, folder, TOKENS, 2)
    assert not ranks()


@pytest.mark.slow
def test_ranks_that_hang_are_ended(hanging: Path, meta_code: MetaCode) -> None:
    with pytest.raises(RuntimeError, match=r"did not end within 3 s"):
        meta_logits(meta_code, hanging, TOKENS, 2, seconds=3)
    assert not ranks()


@pytest.mark.slow
def test_ranks_end_when_what_asked_for_them_is_killed(hanging: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.meta_model import *\n"
        "with start_meta_code() as code: meta_logits(code, Path(sys.argv[1]), [[1, 2]], 2)"
    )
    with (
        subprocess.Popen([sys.executable, "-c", script, hanging], cwd=ROOT) as asking,
        # Opening it waits until rank 1 reads, which then waits for what is never written.
        (hanging / "consolidated.01.pth").open("wb"),
    ):
        started = psutil.Process(asking.pid).children(recursive=True)
        asking.kill()
        assert len(started) == 3
        _gone, alive = psutil.wait_procs(started, timeout=HANG_SECONDS)
        assert not alive


def test_a_name_that_meta_s_strict_loader_does_not_know_is_refused(
    tiktoken_file: Path, tmp_path: Path, meta_code: MetaCode
) -> None:
    folder = write_checkpoint(tmp_path / "model", make("llama-3"), tiktoken_file)
    path = folder / "consolidated.00.pth"
    torch.save(torch.load(path) | {"rope.freqs": torch.zeros(4)}, path)
    with pytest.raises(RuntimeError, match=r"(?s)Unexpected key.*rope\.freqs"):
        meta_logits(meta_code, folder, TOKENS, 1)


# Name of the checkpointer's model type and of the builder, with what sizes alone do not say.
TORCHTUNE = [
    (make("llama-2"), "LLAMA2", "llama2", {}),
    (make("code-llama"), "LLAMA2", "llama2", {"rope_base": 1e6}),
    (make("llama-3", ffn_dim_multiplier=1.3), "LLAMA3", "llama3", {}),
    (make("llama-3.1", dtype=torch.float32), "LLAMA3", "llama3_1", {}),
    (make("llama-3.2", tied=True), "LLAMA3_2", "llama3_2", {}),
]


@pytest.mark.peer
def test_torchtune_s_checkpointer_loads_a_single_shard(
    checkpoint: Write, peer_python: Callable[[str], Path], tmp_path: Path
) -> None:
    models = [
        TuneModel(
            checkpoint(spec),
            kind,
            builder,
            {
                "vocab_size": spec.vocab_size,
                "num_layers": spec.layers,
                "num_heads": spec.heads,
                "num_kv_heads": spec.stored_kv_heads,
                "embed_dim": spec.dim,
                "intermediate_dim": spec.ffn_dim,
                **sizes,
            },
        )
        for spec, kind, builder, sizes in TORCHTUNE
    ]
    found = torchtune_logits(peer_python("torchtune-0.6.1"), models, TOKENS, tmp_path)
    for number, (logits, (spec, *_rest)) in enumerate(zip(found, TORCHTUNE, strict=True)):
        assert_same(logits, transformers_logits(checkpoint(spec), spec, tmp_path / f"out{number}"))
