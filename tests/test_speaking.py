"""``verify --generate``: what a model says is what its logits say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import distconv
from distconv.cli.screen import defuse
from distconv.errors import InputError, UsageError
from tests.called import call
from tests.checkpoints import Spec

Write = Callable[[Spec], Path]


def say(folder: Path, text: str, *, instruct: bool, tokens: int) -> str:
    """Take the likeliest token again and again, with no cache and no generate()."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if instruct:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    ids = tokenizer(text, add_special_tokens=not instruct)["input_ids"]
    begun = len(ids)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    with torch.no_grad():
        while len(ids) - begun < tokens and ids[-1] not in ends:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[begun:], skip_special_tokens=True)


@pytest.mark.parametrize("instruct", [False, True])
def test_it_says_what_the_logits_say(checkpoint: Write, tmp_path: Path, instruct: bool) -> None:
    folder = tmp_path / "out"
    distconv.convert(checkpoint(Spec(shards=2)), folder, instruct=instruct, dtype="float32")
    said = distconv.generate(folder, "One day", tokens=8)
    assert said == say(folder, "One day", instruct=instruct, tokens=8)
    done = call(["verify", folder, "--generate", "One day", "--quiet"])
    assert done.returncode == 0, done.stderr
    assert f"\n\nprompt: One day\ncontinuation: {defuse(said)}" in done.stdout
    assert done.stderr == ""


def test_what_takes_long_before_it_speaks_is_told_and_json_has_the_continuation_alone(
    checkpoint: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    distconv.convert(checkpoint(Spec()), folder, dtype="float32")
    done = call(["verify", folder, "--generate", "One day", "--json"])
    assert done.returncode == 0, done.stderr
    told = done.stderr.partition("\nloading the model\n")[2]
    assert told == defuse(distconv.generate(folder, "One day")) + "\n"
    assert json.loads(done.stdout)["ok"] is True


def test_a_model_cannot_give_orders_to_the_terminal() -> None:
    assert defuse("a\tb\n\x1b[2J\x9b1m\rc\u202e") == "a\tb\n\ufffd[2J\ufffd1m\ufffdc\ufffd"


def test_bytes_that_are_no_text_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'a\\udcff': not UTF-8 text"):
        distconv.generate(tmp_path, "a\udcff")


def test_a_model_without_a_tokenizer_is_not_let_speak_nor_is_that_suggested(
    checkpoint: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    distconv.convert(checkpoint(Spec()), folder)
    assert "--generate" in call(["verify", folder]).stderr
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="Transformers does not load the tokenizer: "):
        distconv.generate(folder, "One day")
    for name in ("tokenizer.json", "tokenizer.model", "distconv.json"):
        (folder / name).unlink(missing_ok=True)
    done = call(["verify", folder])
    assert done.returncode == 0, done.stderr
    assert "--generate" not in done.stderr
    done = call(["verify", folder, "--generate", "One day"])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "out: no tokenizer here" in done.stderr
