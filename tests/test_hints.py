"""What a command says that one may type next: it is understood, it runs, and programs do not see it."""

import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from distconv.cli import main
from tests.called import call
from tests.checkpoints import Spec

Run = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Give a function that runs a command: its output, and the command lines that it hints at."""

    def run(*words: object) -> tuple[str, list[str]]:
        main(list(map(str, words)))
        shown = capsys.readouterr()
        assert "next: " not in shown.out
        hints = [line.removeprefix("next: ") for line in shown.err.splitlines() if line.startswith("next: ")]
        assert all(hint.startswith("distconv ") for hint in hints)
        return shown.out, hints

    return run


def follow(run: Run, hint: str, **names: Path) -> list[str]:
    """Run what was hinted at, given what it leaves to people."""
    _, *words = shlex.split(hint)
    return run(*(names.get(word, word) for word in words))[1]


def test_from_inspect_to_a_speaking_model_each_command_names_the_next(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, run: Run
) -> None:
    source, out = checkpoint(Spec("llama-2", shards=2)), tmp_path / "my out"
    _, (planning,) = run("inspect", source, "--instruct", "--family", "llama-2")
    assert planning == f"distconv plan {source} --family llama-2 --instruct"
    (converting,) = follow(run, planning + " --max-shard-size 50kB")
    assert converting == f"distconv convert {source} OUTPUT --max-shard-size 50kB --family llama-2 --instruct"
    (verifying,) = follow(run, converting, OUTPUT=out)
    assert verifying == f"distconv verify '{out}' --against {source} --family llama-2 --instruct"
    (speaking,) = follow(run, verifying)
    assert speaking == f"distconv verify '{out}' --generate 'Once upon a time'"
    assert follow(run, speaking) == []
    assert run(
        "convert", source, out, "--family", "llama-2", "--instruct", "--max-shard-size", "50kB", "--verify"
    )[1] == [speaking]


def test_a_folder_that_could_be_taken_for_an_option_is_not(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, (verifying,) = run("convert", checkpoint(Spec("llama-2")), "--", "-out")
    (speaking,) = follow(run, verifying)
    assert speaking == "distconv verify ./-out --generate 'Once upon a time'"


def test_the_way_back_and_manifests_have_their_own(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, run: Run
) -> None:
    source, folder = checkpoint(Spec("llama-2")), tmp_path / "hf"
    run("convert", source, folder)
    _, (planning,) = run("inspect", folder)
    assert planning == f"distconv plan {folder} --to meta"
    (converting,) = follow(run, planning)
    assert converting == f"distconv convert {folder} OUTPUT --to meta"
    (verifying,) = follow(run, converting, OUTPUT=tmp_path / "meta")
    assert verifying == f"distconv verify {tmp_path / 'meta'} --against {folder}"
    # Transformers would not load it.
    assert follow(run, verifying) == []
    _, (comparing,) = run("manifest", folder, tmp_path / "m.json")
    assert comparing == f"distconv verify OUTPUT --against {tmp_path / 'm.json'}"
    assert len(follow(run, comparing, OUTPUT=folder)) == 1


def test_nothing_is_hinted_at_to_programs_and_to_who_wants_quiet(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, run: Run
) -> None:
    source, out = checkpoint(Spec()), tmp_path / "out"
    for words in (
        ("inspect", source, "--json"), ("plan", source, "--json"), ("convert", source, out, "--quiet"),
        ("convert", source, out, "--json"), ("verify", out, "--json"), ("verify", out, "--quiet"),
        ("manifest", out, tmp_path / "m.json", "--quiet"), ("manifest", out, tmp_path / "m.json", "--json"),
    ):  # fmt: skip
        assert run(*words)[1] == []


def test_what_is_printed_after_a_conversion_loads_the_model_of_whatever_class(
    checkpoint: Callable[[Spec], Path], folders: Path, tmp_path: Path, run: Run
) -> None:
    model = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=4, d_ff=8, num_layers=1, vocab_size=20))
    model.save_pretrained(tmp_path / "like")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "step")
    for source, options, kind in (
        (checkpoint(Spec()), (), LlamaForCausalLM),
        (folders / "rows", ("--like", folders / "llama-hf"), LlamaForCausalLM),
        (tmp_path / "step", ("--like", tmp_path / "like"), T5ForConditionalGeneration),
    ):
        shown, _ = run("convert", source, tmp_path / kind.__name__, "--overwrite", *options)
        lines = [line for line in shown.splitlines() if line.startswith(("from ", "model = "))]
        scope: dict[str, object] = {}
        exec("\n".join(lines), scope)
        assert type(scope["model"]) is kind


def find_reason(said: str, why: str) -> str:
    """Give the one command that is hinted at for a reason."""
    (hint,) = (line for line in said.splitlines() if line.startswith(f"next, {why}: "))
    return hint.removeprefix(f"next, {why}: ")


@pytest.mark.parametrize("options", [(), ("--instruct",), ("--to", "meta", "--shards", "2")], ids=str)
def test_after_findings_in_a_folder_of_distconvs_the_command_that_mends_it_is_named(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    source, out, why = (
        checkpoint(Spec("llama-2", shards=2)),
        tmp_path / "my out",
        "to make again what is damaged, with the options that it had",
    )
    assert call(("convert", source, out, *options)).returncode == 0
    beside = out / ("params.json" if "meta" in options else "config.json")
    beside.unlink()
    for weights in (path for path in out.iterdir() if path.suffix in {".safetensors", ".pth"}):
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    verified = call(("verify", out))
    assert (verified.returncode, why in verified.stdout) == (1, False)
    mending = find_reason(verified.stderr, why)
    assert mending == f"distconv convert INPUT '{out}' --verify{''.join(f' {word}' for word in options)}"
    _, *words = shlex.split(mending)
    mended = call([source if word == "INPUT" else word for word in words])
    assert mended.returncode == 0, mended.stderr
    assert call(("verify", out)).returncode == 0
    beside.unlink()
    assert "next" not in call(("verify", out, "--quiet")).stderr + call(("verify", out, "--json")).stderr
    # Nobody knows of what it was made.
    (out / "distconv.json").unlink()
    assert "next" not in call(("verify", out)).stderr


def test_that_input_was_not_compared_with_its_own_checksums_is_said_where_it_has_some(
    checkpoint: Callable[[Spec], Path], folders: Path, tmp_path: Path
) -> None:
    source, why = checkpoint(Spec("llama-2")), "as INPUT was not compared with its own checksums"
    bare = checkpoint(Spec("llama-2", legacy=True, checklist=False))
    first = call(("convert", source, tmp_path / "hf", "--family", "llama-2"))
    assert find_reason(first.stderr, why) == f"distconv check {source} --family llama-2"
    trained = call(("convert", folders / "grid", tmp_path / "trained", "--like", folders / "llama-hf"))
    assert find_reason(trained.stderr, why).startswith(f"distconv check {folders / 'grid'} --like")
    for words in (
        ("convert", source, tmp_path / "hf", "--family", "llama-2"),  # which is there already
        ("convert", source, tmp_path / "checked", "--check"),
        ("convert", source, tmp_path / "quiet", "--quiet"),
        ("convert", source, tmp_path / "json", "--json"),
        ("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta"),
        ("convert", bare, tmp_path / "old"),
    ):
        done = call(words)
        assert (done.returncode, why in done.stderr) == (0, False), words
    listed = checkpoint(Spec("llama-2", legacy=True))
    told = find_reason(call(("convert", listed, tmp_path / "last")).stderr, why)
    assert told == f"distconv check {listed}"
