"""The command line: what it prints, where, and how it exits."""

import contextlib
import inspect
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import psutil
import pytest
import torch

import distconv
from distconv.cli import main
from distconv.cli.commands import cli
from distconv.cli.sections import COMMANDS, OPTIONS
from distconv.output.folder import Folder
from tests.called import call
from tests.checkpoints import Spec, write_checkpoint, write_sparse
from tests.extent import THOROUGH, share
from tests.faults import interrupted_at, read_recorded
from tests.patience import HANG_SECONDS

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Give a function that runs a command in this process: exit code, output, error output."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


Run = Callable[..., tuple[int, str, str]]


def test_help_names_every_command_once_under_a_heading_and_its_examples_stand_line_by_line(run: Run) -> None:
    code, out, _err = run("--help")
    assert code == 0
    assert sorted(name for names in COMMANDS.values() for name in names) == sorted(cli.commands)
    listed = out.partition("\nOptions:\n")[2]
    for title, names in COMMANDS.items():
        below = listed.partition(f"\n{title}:\n")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in below] == list(names)
    assert "\n    distconv plan llama-2-7b\n" in out


def test_help_shows_every_option_once_and_many_under_headings(run: Run) -> None:
    assert {name for names in OPTIONS.values() for name in names} <= {
        option.name for command in cli.commands.values() for option in command.params
    }
    for name, command in cli.commands.items():
        out = run(name, "--help")[1]
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert all(option.help for option in options), name
        for option in options:
            # A line of the text above may begin with an option, too.
            assert (
                len(re.findall(rf"^  {re.escape(option.opts[0])}(?=$|  | [A-Z\[/])", out, re.MULTILINE)) == 1
            )
        assert ("\nOther options:\n" in out) == (len(options) >= 8)
        assert ("\nOptions:\n" in out) == (len(options) < 8)


@pytest.mark.parametrize("command", cli.commands.values(), ids=list(cli.commands))
def test_every_command_takes_what_its_options_give(command: click.Command) -> None:
    assert command.callback is not None
    takes = inspect.signature(inspect.unwrap(command.callback)).parameters
    assert {option.name for option in command.params} == set(takes)


def test_a_line_without_a_command_shows_the_help_as_it_is(run: Run) -> None:
    _code, help_, _err = run("--help")
    code, out, err = run()
    assert code == 2
    assert (out + err).strip() == help_.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", ""), ("check", ""), ("plan", ""), ("verify", ""), ("convert", "", "out"), ("convert", "in", ""),
        ("tokenizer", "in", ""), ("push", "", "me/x"), ("verify", "out", "--against", ""),
        ("plan", "in", "--tokenizer", ""), ("plan", "in", "--params", ""), ("download", "--models", "7B", "--to", ""),
        ("convert", "in", "out", "--trace", ""), ("convert", "in", "out", "--report", ""),
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_name_is_not_taken_for_this_folder(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "no name is given; is a variable of the shell not set?" in err


def test_help_fits_80_columns_and_breaks_no_word(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from distconv.cli.commands import cli

    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ([], *([name] for name in cli.commands)):
        code, out, _err = run(*arguments, "--help")
        assert code == 0
        for line in out.splitlines():
            assert len(line) <= 80
            # "--" stands between a job's options and its command.
            assert not line.endswith("-") or line.endswith(" --")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--max-shard-size", "0", "is not a size; write 5GB"),
        ("--max-shard-size", "9" * 400 + "GB", "is not a size; write 5GB"),
        ("--max-shard-size", "five", "is not a size; write 5GB"),
        ("--max-shard-size", "5", "'5' has no unit; write 5GB, or 5B for so many bytes"),
        ("--max-shard-size", "999", "'999' has no unit; write 999GB, or 999B for so many bytes"),
        ("--worker-resource", "ssd", "is not NAME=AMOUNT, as ssd=0.5"),
        ("--worker-resource", "=1", "is not NAME=AMOUNT, as ssd=0.5"),
        ("--worker-resource", "ssd=inf", "is not NAME=AMOUNT, as ssd=0.5"),
        ("--worker-resource", "ssd=many", "is not NAME=AMOUNT, as ssd=0.5"),
    ],
)
def test_a_value_that_says_nothing_is_refused_with_an_example(
    run: Run, tmp_path: Path, option: str, value: str, words: str
) -> None:
    code, _out, err = run("convert", tmp_path, tmp_path / "out", option, value)
    assert code == 2
    assert words in err


def test_a_wrong_family_lists_all(run: Run, tmp_path: Path) -> None:
    code, _out, err = run("inspect", tmp_path, "--family", "llama-9")
    assert code == 2
    assert "'code-llama-70b-python', 'llama-3', 'llama-3.1'" in err


def test_a_tensor_larger_than_a_chunk_may_be_is_said(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(SPEC)
    embedding = 320 * 64 * 2
    for limit, words in (
        (embedding, ()),
        (
            embedding - 1,
            (
                "note: 2 chunks are larger than 41.0 kB, as a tensor is never cut over chunks: ",
                "lm_head.weight (41.0 kB)",
                "model.embed_tokens.weight (41.0 kB)",
            ),
        ),
        ("1B", ("larger than 1 B, as a tensor is never cut over chunks: ", " more\n")),
    ):
        _code, out, err = run("plan", source, "--max-shard-size", limit)
        assert all(word in err for word in words)
        assert ("a tensor is never cut" in err) == bool(words)
        assert (" of tensors, but for " in out) == bool(words)
        _code, _out, err = run("convert", source, tmp_path / f"out{limit}", "--max-shard-size", limit)
        assert all(word in err for word in words)
        assert ("a tensor is never cut" in err) == bool(words)


@pytest.mark.parametrize("command", ["convert", "plan", "inspect", "verify", "tokenizer"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _err = run(command, "--help")
    assert code == 0
    assert "--json" in out


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "distconv", "--version"]
    assert "0.1.0" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_convert_tells_what_it_did_and_how_to_load_it(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    code, out, err = run("convert", checkpoint(SPEC), tmp_path / "out")
    assert code == 0
    assert "Llama 2, bfloat16, 1 chunk\n" in out
    assert f"from_pretrained('{tmp_path / 'out'}')" in out
    assert "note: taken as a base model" in err
    assert "1 of 1 chunk\n" in err or "1 of 1 chunk," in err


def test_json_is_all_that_standard_output_holds(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    source, output = checkpoint(SPEC), tmp_path / "out"
    code, out, _err = run("convert", source, output, "--json", "--verify", "--max-shard-size", "50kB")
    found = json.loads(out)
    assert code == 0
    assert found["verified"] is True
    assert found["chunks"] == len(list(output.glob("model-*.safetensors")))
    for command in (["plan", source], ["inspect", source], ["verify", output, "--against", source]):
        code, out, _err = run(*command, "--json")
        assert code == 0
        assert isinstance(json.loads(out), dict)


def test_quiet_prints_the_result_and_what_was_assumed_and_nothing_else(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    source = checkpoint(replace(SPEC, equal_norms=True))
    code, out, err = run("convert", source, tmp_path / "out", "--quiet", "--check", "--verify")
    assert (code, "Llama 2" in out) == (0, True)
    assert err == "note: taken as a base model; if it is an instruct (chat) model, add --instruct\n"
    assert run("convert", source, tmp_path / "chat", "--quiet", "--instruct")[2] == ""
    assert run("convert", source, tmp_path / "out", "--quiet", "--base")[2] == ""


def test_plan_and_inspect_are_readable(run: Run, checkpoint: Write) -> None:
    _code, out, _err = run("inspect", checkpoint(SPEC))
    assert "family      Llama 2" in out
    assert "known by    the tokenizer is a sentencepiece file" in out
    _code, out, _err = run("plan", checkpoint(SPEC), "--max-shard-size", "50kB")
    assert "model-00001-of-" in out
    assert "chunks of at most 50.0 kB" in out


def test_the_way_back_is_told_in_metas_words(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    run("convert", checkpoint(SPEC), tmp_path / "hf")
    arguments = ("convert", tmp_path / "hf", tmp_path / "my meta", "--to", "meta", "--shards", "4")
    code, out, err = run(*arguments, "--verify", "--max-shard-size", "20kB")
    assert code == 0
    assert f"{tmp_path / 'my meta'}: Llama 2, bfloat16, 4 shards\n" in out
    assert "chunk" not in out
    assert "from_pretrained" not in out
    assert "meta-llama/llama\ntorchrun --nproc_per_node 4 example_text_completion.py " in out
    # What a shell makes of it is one folder.
    assert f"--ckpt_dir '{tmp_path / 'my meta'}' " in out
    assert "instruct" not in err
    code, out, _err = run(*arguments, "--verify", "--max-shard-size", "20kB")
    assert (code, "already done, 4 shards as planned" in out) == (0, True)
    code, out, _err = run("verify", tmp_path / "my meta", "--against", tmp_path / "hf")
    assert (code, f"whole and equal to {tmp_path / 'hf'}" in out) == (0, True)
    file = tmp_path / "my meta/consolidated.02.pth"
    content = bytearray(file.read_bytes())
    content[content.index(torch.load(file)["norm.weight"].view(torch.uint8).numpy().tobytes())] ^= 1
    file.write_bytes(content)
    code, out, _err = run("verify", tmp_path / "my meta", "--against", checkpoint(SPEC))
    assert code == 1
    assert f"norm.weight in {file}: row 0, column 0 differs from norm.weight" in out


@pytest.mark.parametrize(
    ("spec", "repository", "program"),
    [
        (Spec("llama-3"), "llama-models", "-m models.llama3.scripts.completion"),
        (Spec("code-llama"), "codellama", "example_completion.py"),
    ],
    ids=lambda value: value.family if isinstance(value, Spec) else "",
)
def test_a_model_for_metas_code_is_loaded_by_the_code_of_its_family(
    run: Run, checkpoint: Write, tmp_path: Path, spec: Spec, repository: str, program: str
) -> None:
    out = run("convert", checkpoint(spec), tmp_path / "out", "--to", "meta")[1]
    assert (
        f"# in a checkout of github.com/meta-llama/{repository}\ntorchrun --nproc_per_node 1 {program} "
        in out
    )
    assert str(tmp_path / "out") in out.partition("torchrun")[2]


def test_another_number_of_shards_needs_no_word_on_instruct(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    code, out, err = run("convert", checkpoint(SPEC), tmp_path / "out", "--to", "meta")
    assert code == 0
    assert "Llama 2, bfloat16, 1 shard\n" in out
    assert "instruct" not in out + err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pth")) == ["consolidated.00.pth"]


def test_a_transformers_folder_without_a_word_on_the_way_is_pointed_to_it(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    run("convert", checkpoint(SPEC), tmp_path / "hf")
    for arguments in (("convert", tmp_path / "hf", tmp_path / "out"), ("plan", tmp_path / "hf")):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert "which needs no conversion; a Llama for Meta's code is made by --to meta" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convert", "{hf}", "{out}", "--to", "meta", "--instruct"), "Meta's layout has neither"),
        (("plan", "{in}", "--to", "meta", "--instruct"), "Meta's layout has neither"),
        (("convert", "{in}", "{out}", "--shards", "2"), "it needs --to meta"),
        (("plan", "{in}", "--shards", "2"), "it needs --to meta"),
        (("convert", "{hf}", "{out}", "--to", "meta", "--shards", "0"), "not in the range"),
        (("convert", "{hf}", "{out}", "--to", "meta", "--shards", "101"), "shards 101: expected a number, 1 to 100"),
        (("plan", "{hf}", "--to", "meta", "--shards", "3"), "Meta's code cannot divide among them"),
        (("convert", "{in}", "{out}", "--to", "gguf"), "'gguf' is not one of 'transformers', 'meta'"),
        (("verify", "{in}", "--generate", "Once"), "text is continued by Transformers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_means_nothing_for_a_format_is_refused(
    run: Run, checkpoint: Write, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    run("convert", checkpoint(SPEC), tmp_path / "hf")
    names = {"in": checkpoint(SPEC), "hf": tmp_path / "hf", "out": tmp_path / "out"}
    code, _out, err = run(*(argument.format_map(names) for argument in arguments))
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()


def test_a_plan_to_meta_has_a_row_for_each_shard_and_counts_its_parts(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    run("convert", checkpoint(SPEC), tmp_path / "hf")
    for source in (tmp_path / "hf", checkpoint(SPEC)):
        arguments = ("plan", source, "--to", "meta", "--shards", "2", "--max-shard-size", "20kB")
        code, out, err = run(*arguments)
        assert code == 0
        rows = [line.split() for line in out.splitlines() if line.startswith("consolidated.")]
        found = json.loads(run(*arguments, "--json")[1])
        parts = found["useful_workers"]
        assert parts > 2
        assert (found["to"], found["shards"]) == ("meta", 2)
        assert [file["name"] for file in found["files"]] == ["consolidated.00.pth", "consolidated.01.pth"]
        assert [len(file["parts"]) for file in found["files"]] == [parts] * 2
        shown = [[file["name"], str(parts), "0-1+", str(file["tensors"])] for file in found["files"]]
        assert [row[:4] for row in rows] == shown
        assert f"2 shards, written together in {parts} parts of at most 20.0 kB of tensors" in out
        assert f"workers  up to {parts}, each" in out
        assert "chunk" not in out
        assert "instruct" not in err
        assert found["write_bytes"] == sum(file["size_bytes"] for file in found["files"])
        output = tmp_path / f"from-{source.name}"
        run("convert", source, output, *arguments[2:])
        for file in found["files"]:
            assert (output / file["name"]).stat().st_size == file["size_bytes"]


def test_a_plan_to_transformers_has_a_row_for_each_file(run: Run, checkpoint: Write) -> None:
    found = json.loads(run("plan", checkpoint(SPEC), "--max-shard-size", "50kB", "--json")[1])
    assert (found["to"], found["shards"]) == ("transformers", None)
    assert found["useful_workers"] == len(found["files"]) > 1
    assert all(len(file["parts"]) == 1 for file in found["files"])


def test_inspect_tells_of_a_transformers_folder_what_meta_would_have(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    run("convert", checkpoint(SPEC), tmp_path / "hf", "--max-shard-size", "100kB")
    code, out, err = run("inspect", tmp_path / "hf")
    assert (code, err) == (0, f"next: distconv plan {tmp_path / 'hf'} --to meta\n")
    assert "family      Llama 2\n" in out
    assert f"folder      {tmp_path / 'hf'}, in Transformers' format" in out
    assert "for Meta    can be cut into 1, 2, 4 or 8 shards, with 320 rows of vocabulary" in out
    found, meta = (
        json.loads(run("inspect", source, "--json")[1]) for source in (tmp_path / "hf", checkpoint(SPEC))
    )
    same = ("family", "parameters", "dtypes", "dim", "layers", "heads", "kv_heads", "ffn_dim", "vocabulary")
    assert {key: found[key] for key in same} == {key: meta[key] for key in same}
    assert (found["format"], meta["format"]) == ("transformers", "meta")
    assert found["for_meta"]["shards"] == meta["for_meta"]["shards"] == [1, 2, 4, 8]
    run("convert", tmp_path / "hf", tmp_path / "back", "--to", "meta")
    assert json.loads((tmp_path / "back/params.json").read_text()) == found["for_meta"]["params"]


def test_inspect_names_exactly_the_numbers_of_shards_that_a_plan_takes(run: Run, checkpoint: Write) -> None:
    spec = Spec("llama-3", dim=96, heads=12, kv_heads=6, multiple_of=12)
    counts = json.loads(run("inspect", checkpoint(spec), "--json")[1])["for_meta"]["shards"]
    taken = [n for n in range(1, 25) if run("plan", checkpoint(spec), "--to", "meta", "--shards", n)[0] == 0]
    assert counts == taken


def test_verify_finds_a_changed_byte_and_exits_with_1(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    run("convert", checkpoint(SPEC), tmp_path / "out")
    assert run("verify", tmp_path / "out", "--against", checkpoint(SPEC))[0] == 0
    file = tmp_path / "out/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, out, _err = run("verify", tmp_path / "out", "--against", checkpoint(SPEC))
    assert code == 1
    assert "differs from" in out
    assert "row" in out


def test_a_conversion_run_again_is_already_done(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    run("convert", checkpoint(SPEC), tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    code, out, _err = run("convert", checkpoint(SPEC), tmp_path / "out")
    assert code == 0
    assert "already done" in out
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}


def test_a_run_that_finds_all_chunks_made_tells_of_no_bytes_and_no_speed(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    with interrupted_at(Folder, "finish"):
        distconv.convert(checkpoint(SPEC), tmp_path / "out")
    code, out, _err = run("convert", checkpoint(SPEC), tmp_path / "out")
    assert code == 0
    assert "1 chunk of an earlier run kept" in out
    assert "wrote" not in out


def test_the_tokenizer_is_converted_alone(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    code, out, _err = run("tokenizer", checkpoint(SPEC), tmp_path / "out", "--instruct")
    assert code == 0
    assert "tokenizer.json" in out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "{in}"], "error: missing argument 'OUTPUT'; see `distconv convert --help`\n"),
        (["convert", "{in}", "{out}", "--max-shard-size", "5XB"], "is not a size"),
        (["convert", "{in}", "{out}", "--max-shard-size", "0"], "is not a size"),
        (["convert", "{in}", "{out}", "--workers", "0"], "not in the range"),
        (["convert", "{in}", "{out}", "--workers", "two"], "'--workers': 'two' is not a valid whole number; see"),
        (["convert", "{in}", "{out}", "--gpus-per-worker", "a"], "'a' is not a valid number; see"),
        (["convert", "{in}", "{out}", "--report"], "option '--report' requires an argument; see `distconv convert --help`\n"),
        (["completion"], "error: missing argument 'SHELL'. Choose from: bash, zsh, fish; see `distconv completion --help`\n"),
        (["completion", "csh"], "'SHELL': 'csh' is not one of 'bash', 'zsh', 'fish'; see `distconv completion --help`\n"),
        (["convert", "{in}", "{out}", "--dtype", "int8"], "'int8' is not one of"),
        (["convert", "{in}", "{out}", "--family", "llama-9"], "'llama-9' is not one of"),
        (["convert", "{in}", "{out}", "--family", "llama-3"], "has a tiktoken tokenizer, found a sentencepiece"),
        (["convert", "{in}", "{out}", "--tokenizer", "{out}/none"], "given as the tokenizer"),
        (["convert", "{in}", "{in}"], "equal to INPUT's folder"),
        (["convert", "{in}", "{in}/.."], "above INPUT's folder"),
        (["convert", "{in}", "{in}/params.json/x"], "inside INPUT's folder"),
        (["convert", "{out}/none", "{out}"], "no such file or folder"),
        (["convert", "{in}", "{out}", "--address", "ray://somewhere:10001"], "Ray Client is not supported"),
        (["convert", "{in}", "{out}", "--address", ""], "address '': expected HOST:PORT of a cluster's head, auto or local"),
        (["convert", "{in}", "s3://bucket/\udcff"], r"s3://bucket/\xff: not UTF-8, as URLs are"),
        (["inspect", "https://host/\udcff"], r"https://host/\xff: not UTF-8, as URLs are"),
        (["verify", "{out}", "--against", "{in}"], "no such folder"),
        (["verify", "{out}"], "no such folder"),
        (["plan", "{in}", "--nonsense"], "error: no such option"),
        (["plan", "{in}", "--shard", "2"], "error: no such option '--shard' (Did you mean one of: '--max-shard-size', '--shards'?); see"),
        (["plan", "{in}", "{out}"], "error: got unexpected extra argument"),
        (["nonsense"], "error: no such command 'nonsense'; see `distconv --help`\n"),
        (["convrt"], "error: no such command 'convrt' (Did you mean 'convert'?); see `distconv --help`\n"),
    ],
)  # fmt: skip
def test_wrong_usage_and_bad_input_exit_with_2_and_leave_nothing(
    run: Run, checkpoint: Write, tmp_path: Path, arguments: list[str], words: str
) -> None:
    names = {"in": str(checkpoint(SPEC)), "out": str(tmp_path / "out")}
    code, out, err = run(*(argument.format_map(names) for argument in arguments))
    assert code == 2
    assert words in err
    assert all(line.startswith(("error: ", "note: ")) for line in err.splitlines())
    assert out == ""
    assert not list(tmp_path.rglob("*.safetensors"))


def test_links_are_resolved_before_input_and_output_are_compared(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(checkpoint(SPEC))
    code, _out, err = run("convert", checkpoint(SPEC), tmp_path / "link" / "out")
    assert code == 2
    assert "inside INPUT's folder" in err


def test_a_missing_tokenizer_is_said_by_all_that_look_at_input(
    run: Run, checkpoint: Write, tmp_path: Path
) -> None:
    source = checkpoint(Spec(tokenizer="none"))
    words = (
        f"{source}: no tokenizer.model (Mistral's: tekken.json) here, in original/ or in the parent folder; "
        "convert needs it for Transformers: give it by --tokenizer PATH\n"
    )
    assert run("convert", source, tmp_path / "out") == (2, "", f"error: {words}")
    # What is there may be as its checksums say, and Meta's layout without a tokenizer is one.
    for command in ("plan", "check"):
        code, _out, err = run(command, source)
        assert (code, f"note: {words}" in err) == (0, True)
    # What comes next is nothing that would be refused.
    assert f"next: distconv convert {source} OUTPUT --tokenizer PATH\n" in run("plan", source)[2]
    code, _out, err = run("plan", source, "--to", "meta")
    assert (code, f"next: distconv convert {source} OUTPUT --to meta\n" in err) == (0, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    code, _out, err = run("convert", checkpoint(SPEC), tmp_path / "out", "--device", "cuda")
    assert code == 2
    assert "device cuda: torch sees no GPU here (" in err
    assert "); use --device cpu" in err
    assert not (tmp_path / "out").exists()


def test_an_unreachable_cluster_exits_with_1(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    code, _out, err = run("convert", checkpoint(SPEC), tmp_path / "out", "--address", "127.0.0.1:1")
    assert code == 1
    assert "Ray at 127.0.0.1:1 cannot be reached" in err


def test_debug_shows_the_traceback_wherever_it_stands(run: Run, tmp_path: Path) -> None:
    code, _out, err = run("inspect", tmp_path / "none", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_overwrite_replaces_the_model_and_nothing_else(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run("convert", checkpoint(SPEC), output, "--max-shard-size", "50kB")
    (output / "notes.txt").write_text("mine")
    code, _out, err = run("convert", checkpoint(SPEC), output)
    assert code == 2
    assert "another conversion" in err
    assert run("convert", checkpoint(SPEC), output, "--overwrite")[0] == 0
    assert [file.name for file in output.glob("*.safetensors")] == ["model.safetensors"]
    assert not (output / "model.safetensors.index.json").exists()
    assert (output / "notes.txt").read_text() == "mine"


def test_files_are_readable_as_the_umask_says(run: Run, checkpoint: Write, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run("convert", checkpoint(SPEC), tmp_path / "out")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o640}


def wait_until(
    process: "subprocess.Popen[str]", happened: Callable[[], bool], every_seconds: float = 0.001
) -> None:
    """Wait until something has happened while a process lives."""
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(every_seconds)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        (signal.SIGINT, 130, ()),
        pytest.param(signal.SIGTERM, 143, (), marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, ("--workers", "2"), marks=pytest.mark.slow),
        (signal.SIGTERM, 143, ("--workers", "2")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_stopped_conversion_leaves_no_model_and_goes_on_when_it_is_run_again(
    tmp_path: Path, sentencepiece_file: Path, number: signal.Signals, code: int, workers: tuple[str, ...]
) -> None:
    spec = Spec("llama-2", dim=2048, layers=6, heads=16, multiple_of=256, shards=2)
    source, output = write_sparse(tmp_path / "in", spec), tmp_path / "out"
    arguments = [
        "convert", source, output, "--tokenizer", sentencepiece_file, "--max-shard-size", "100MB"
    ]  # fmt: skip
    command = [sys.executable, "-m", "distconv", *map(str, arguments), *workers]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(process, lambda: bool(list(output.glob(".model*.partial"))))
    process.send_signal(number)
    _out, err = process.communicate()
    assert process.returncode == code, err
    assert "run the same command again to go on" in err
    assert not list(output.glob(".*.partial"))
    assert not (output / "model.safetensors.index.json").exists()
    kept = {name: (output / name).stat().st_mtime_ns for name in read_recorded(output)}
    # Whoever moves the bytes: another Ray takes seconds.
    again = call([*arguments, *(workers if THOROUGH else ())])
    assert again.returncode == 0, again.stderr
    assert (output / "model.safetensors.index.json").exists()
    assert (
        kept.items() <= {file.name: file.stat().st_mtime_ns for file in output.glob("*.safetensors")}.items()
    )


def test_a_stop_while_ray_starts_has_the_right_code_too(checkpoint: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "distconv", "convert", checkpoint(SPEC), output, "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    # Its first child is the first process of Ray.
    wait_until(process, lambda: bool(psutil.Process(process.pid).children()), 0.05)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate()
    assert process.returncode == 143, err
    assert "run the same command again to go on" in err
    assert [path.name for path in output.iterdir()] == [".distconv.journal"]


HANGING = """
import signal, sys, time
from distconv.cli import main
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalWriter

signal.signal(signal.SIGINT, signal.default_int_handler)

def hang(*_arguments, **_named):
    # As in a file system that is dead: neither asked to stop nor interrupted.
    print("hangs", flush=True)
    while True:
        time.sleep(1000)

{}
main()
"""


def start_hanging(hanging: str, *arguments: object) -> "subprocess.Popen[str]":
    """Start a command in which something hangs for ever, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING.format(hanging), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "hangs\n"
    return process


@pytest.mark.first(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_ends_a_run_whose_lanes_hang(
    checkpoint: Write, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start_hanging("LocalWriter.write_at = hang", "convert", checkpoint(SPEC), tmp_path / "out")
    process.send_signal(number)
    _out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == code, err
    assert err.count("error: ") == 1
    assert "run the same command again to go on" in err
    assert not (tmp_path / "out/config.json").exists()


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("number", "code", "again"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGTERM, 143, False)],
)
def test_a_run_that_hangs_while_it_ends_is_ended_at_once_by_a_second_signal_and_else_soon(
    checkpoint: Write, number: signal.Signals, code: int, again: bool
) -> None:
    # The handler's exception is swallowed, as by a library, and what follows hangs too.
    swallowing = """
def hang_twice(*_arguments):
    try:
        hang()
    except BaseException:
        time.sleep(1000)
LocalStorage.find = hang_twice
"""
    process = start_hanging(swallowing, "inspect", checkpoint(SPEC))
    process.send_signal(number)
    if again:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == code, err
    assert err.count("error: ") == 1
    assert "Traceback" not in err


@pytest.mark.first(2)
@pytest.mark.parametrize("command", ["inspect", "plan", "convert", "verify", "check"])
def test_signals_at_any_time_and_any_number_of_them_end_a_command_by_its_own_code(
    checkpoint: Write, tmp_path: Path, command: str
) -> None:
    source, output = checkpoint(SPEC), tmp_path / "out"
    if command == "verify":
        main(["convert", str(source), str(output), "--quiet"])
    chance = random.Random(command)
    arguments = {"convert": [source, output], "verify": [output, "--against", source]}.get(command, [source])
    for _ in range(share(5)):
        process = subprocess.Popen(
            [sys.executable, "-c", BEGINNING, command, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        # Not a wait for anything: any moment is right.
        time.sleep(chance.random() * 1.5)
        numbers = [chance.choice([signal.SIGINT, signal.SIGTERM]) for _ in range(chance.randint(1, 8))]
        for number in numbers:
            process.send_signal(number)
            time.sleep(chance.choice([0, 0.001, 0.05]))
        _out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode in {0, 130, 143}, err
        assert "Traceback" not in err
        assert "ignored" not in err
        assert err.count("error: ") == (process.returncode != 0)


BEGINNING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import distconv.cli.signals
install = distconv.cli.signals.Signals.install

def say(signals):
    install(signals)
    print("begins", flush=True)

distconv.cli.signals.Signals.install = say
from distconv.cli import main
main()
"""
"""The interpreter's own start cannot be had: signals count from where the command line begins."""


def test_an_interruption_that_a_destructor_swallows_comes_again() -> None:
    swallowing = """
class Held:
    def __del__(self):
        hang()
def find(*_arguments):
    Held()
    while True:
        time.sleep(1000)
LocalStorage.find = find
"""
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start_hanging(swallowing, "inspect", "nowhere")
        process.send_signal(number)
        _out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == code, err
        assert "ignored" not in err
        assert err.count("error: ") == 1


@pytest.mark.parametrize(("verb", "resumes"), [("verify", False), ("convert", True)])
def test_only_of_what_goes_on_where_it_stopped_it_is_said_to_go_on(
    tmp_path: Path, verb: str, resumes: bool
) -> None:
    process = start_hanging(
        "LocalStorage.find = hang", "--debug", verb, tmp_path, *([tmp_path / "out"] if resumes else ())
    )
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=HANG_SECONDS)
    advice = "run the same command again to go on" if resumes else "run it again"
    assert err.endswith(f"error: interrupted; {advice}\n")


def test_signals_that_the_shell_wants_ignored_stay_ignored() -> None:
    code = """
import signal
from distconv.cli.signals import Signals
signal.signal(signal.SIGINT, signal.SIG_IGN)
signals = Signals()
signals.install()
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
signals.restore()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_closed_standard_streams_take_nothing_from_the_files(checkpoint: Write, tmp_path: Path) -> None:
    outputs = []
    for number, closed in enumerate(["", "2>&-", ">&-", "<&- >&- 2>&-"]):
        output = tmp_path / f"{number}"
        command = f"exec {sys.executable} -m distconv convert {checkpoint(SPEC)} {output} {closed}"
        assert subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode == 0
        outputs.append({file.name: file.read_bytes() for file in output.iterdir()})
    assert all(output == outputs[0] for output in outputs)


def test_a_checkpoint_in_the_current_folder_is_found(
    run: Run, tmp_path: Path, sentencepiece_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "in", SPEC, sentencepiece_file)
    monkeypatch.chdir(tmp_path / "in")
    assert run("convert", ".", "../out")[0] == 0
    assert run("verify", "../out", "--against", "consolidated.00.pth")[0] == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_command_for_each_shell(run, shell: str) -> None:
    code, out, _err = run("completion", shell)
    assert code == 0
    assert "_DISTCONV_COMPLETE" in out


def test_bash_completes_commands_and_options() -> None:
    """As a person types: the script is sourced, and its function asked with the words so far."""
    folder = os.path.dirname(sys.executable)
    script = """
        source <(distconv completion bash)
        COMP_WORDS=(distconv ve); COMP_CWORD=1; _distconv_completion distconv; echo "${COMPREPLY[@]}"
        COMPREPLY=(); COMP_WORDS=(distconv convert --dev); COMP_CWORD=2; _distconv_completion distconv; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["verify", "--device"], done.stderr


def on_terminal(*arguments: str, **environment: str) -> str:
    """Run the command with a terminal of 80 columns for its standard output and error."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": "80", **environment})
        os.execv(sys.executable, [sys.executable, "-m", "distconv", *arguments])
    shown = b""
    with contextlib.suppress(OSError):
        while block := os.read(terminal, 10_000):
            shown += block
    os.waitpid(pid, 0)
    return shown.decode()


def test_colours_are_for_terminals_and_not_where_they_are_unwanted(checkpoint, tmp_path: Path) -> None:
    source = str(checkpoint(Spec()))
    assert "\x1b[" in on_terminal("inspect", source)
    assert "\x1b[" in on_terminal("inspect", str(tmp_path / "nowhere"))
    for arguments in (("inspect", source), ("inspect", str(tmp_path / "nowhere"))):
        assert "\x1b[3" not in on_terminal(*arguments, NO_COLOR="1")
    for way, name in (((), ".safetensors"), (("--to", "meta", "--shards", "2"), "consolidated.")):
        shown = on_terminal("plan", source, *way, NO_COLOR="1")
        assert "\x1b[3" not in shown
        rows = [line for line in shown.splitlines() if name in line]
        assert rows
        assert all(len(line) <= 80 for line in rows)


def test_examples_of_the_help_go_on_with_the_folder_that_the_first_one_makes(run) -> None:
    from distconv.downloads.releases import find_release

    typed = re.findall(r"^ +distconv (.*)$", run("--help")[1], re.MULTILINE)
    assert typed[0] == "download --models 7B --to ."
    made = find_release("7B").folder
    assert typed[1:3] == [f"inspect {made}", f"check {made}"]
    assert not [line for line in typed if "Llama-2" in line]


def test_every_command_has_help_with_an_example(run) -> None:
    from distconv.cli.commands import cli

    for name in cli.commands:
        code, out, _err = run(name, "--help")
        assert code == 0
        assert "Examples:" in out
        assert f"distconv {name}" in out
