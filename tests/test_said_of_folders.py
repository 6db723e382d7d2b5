"""What commands say of a folder that is not what its user takes it for: unfinished, of another family, not for chat."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

import distconv
from distconv.errors import InputError, MismatchError
from distconv.output.folder import Folder
from tests.checkpoints import Spec, write_checkpoint

Write = Callable[[Spec], Path]
LLAMA_2, LLAMA_3 = Spec("llama-2", heads=8, kv_heads=4, shards=2), Spec("llama-3")


class Notes(distconv.SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


class StoppedError(Exception):
    """Ends a conversion as a kill would, but for what is cleaned up."""


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Give a function that converts until all is done but the last file, and gives OUTPUT."""

    def convert(source: Path, **options: object) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "finish", _stop)
            with pytest.raises(StoppedError):
                distconv.convert(source, tmp_path / "out", max_shard_size=50_000, **options)
        return tmp_path / "out"

    return convert


def _stop(*_arguments: object) -> None:
    raise StoppedError


@pytest.mark.parametrize(
    "look", [distconv.inspect, distconv.plan, distconv.check], ids=lambda look: look.__name__
)
@pytest.mark.parametrize(
    ("to", "words"), [("transformers", "6 chunks"), ("meta", "1 shard")], ids=["transformers", "meta"]
)
def test_an_unfinished_output_is_told_as_one_and_how_it_goes_on(
    checkpoint: Write, unfinished: Callable[..., Path], look: Callable[[Path], object], to: str, words: str
) -> None:
    output = unfinished(checkpoint(LLAMA_2), to=to)
    with pytest.raises(InputError) as refused:
        look(output)
    assert str(refused.value) == (
        f"{output}: no model yet, but a conversion of Llama 2 that is not finished (`to='{to}'`, {words} so far); "
        "run the same conversion again, and it goes on"
    )


def test_an_unfinished_output_is_no_input(
    checkpoint: Write, unfinished: Callable[..., Path], tmp_path: Path
) -> None:
    output = unfinished(checkpoint(LLAMA_2))
    for convert in (
        lambda: distconv.convert(output, tmp_path / "more"),
        lambda: distconv.manifest(output, tmp_path / "more"),
    ):
        with pytest.raises(InputError, match="a conversion of Llama 2 that is not finished"):
            convert()
    assert not (tmp_path / "more").exists()


def test_a_journal_that_tells_nothing_is_an_unfinished_conversion_too(tmp_path: Path) -> None:
    (tmp_path / ".distconv.journal").write_text("{")
    with pytest.raises(InputError, match=r"no model yet, but a conversion that is not finished .*0 chunks"):
        distconv.inspect(tmp_path)


def test_what_an_output_was_not_made_of_is_named_by_both_families(checkpoint: Write, tmp_path: Path) -> None:
    for to in ("transformers", "meta"):
        output = tmp_path / to
        distconv.convert(checkpoint(LLAMA_3), output, to=to)
        with pytest.raises(MismatchError) as refused:
            distconv.verify(output, against=checkpoint(LLAMA_2))
        assert str(refused.value) == (
            f"{checkpoint(LLAMA_2)}: looks like Llama 2, and {output} was made of Llama 3; give what it was made of"
        )


def test_a_missing_chat_template_is_found_where_an_instruct_model_is_asked_for(
    checkpoint: Write, tmp_path: Path
) -> None:
    source, base, chat = checkpoint(LLAMA_3), tmp_path / "base", tmp_path / "chat"
    distconv.convert(source, base)
    distconv.convert(source, chat, instruct=True)
    assert distconv.verify(base, against=source).ok
    assert distconv.verify(chat, against=source, instruct=True).ok
    [found] = distconv.verify(base, against=source, instruct=True).differences
    assert found.startswith(
        f"{base}: no chat template, which an instruct model has; convert with `instruct=True`"
    )
    # Before Transformers 4.47 it was in the tokenizer's config alone, and others write another one.
    notes = Notes()
    (chat / "chat_template.jinja").unlink()
    (chat / "distconv.json").unlink()
    assert distconv.verify(chat, against=source, instruct=True, progress=notes).ok
    assert not notes.told
    config = json.loads((chat / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "{{ messages }}"}]
    (chat / "tokenizer_config.json").write_text(json.dumps(config))
    assert distconv.verify(chat, against=source, instruct=True, progress=notes).ok
    assert notes.told == [f"note: {chat}: its chat template is another than a conversion of Llama 3 gives"]


def test_inspect_tells_a_chat_model_by_its_template(checkpoint: Write, tmp_path: Path) -> None:
    for instruct in (False, True):
        distconv.convert(checkpoint(LLAMA_3), tmp_path / str(instruct), instruct=instruct)
        found = distconv.inspect(tmp_path / str(instruct))
        assert found.to_json()["instruct"] is instruct
        assert ("Llama 3 (instruct)" in str(found)) is instruct


def test_tensors_that_shards_share_are_counted_in_each(checkpoint: Write, tmp_path: Path) -> None:
    distconv.convert(checkpoint(LLAMA_2), tmp_path / "hf")
    with safe_open(tmp_path / "hf/model.safetensors", "pt") as file:
        whole = len(file.keys())
    for shards, words in (
        (1, f"all {whole} tensors are whole"),
        (4, f"all {4 * whole} tensors of 4 shards are whole"),
    ):
        distconv.convert(checkpoint(LLAMA_2), tmp_path / str(shards), to="meta", shards=shards)
        assert words in str(distconv.verify(tmp_path / str(shards), against=tmp_path / "hf"))


@pytest.mark.parametrize("to", ["transformers", "meta"])
def test_what_shards_hold_whole_and_differs_and_what_is_left_out_is_said(
    tmp_path: Path, sentencepiece_file: Path, to: str
) -> None:
    for equal in (False, True):
        source = write_checkpoint(
            tmp_path / f"in-{equal}", replace(LLAMA_2, equal_norms=equal), sentencepiece_file
        )
        notes = [
            note
            for note in distconv.convert(source, tmp_path / f"out-{equal}", to=to).notes
            if ".weight" in note
        ]
        planned = distconv.plan(source, to=to).notes
        assert set(notes) <= set(planned)
        names = "layers.0.attention_norm.weight, layers.1.attention_norm.weight, layers.0.ffn_norm.weight, layers.1.ffn_norm.weight, …"
        wanted = (
            f"{names}: each shard has the whole, and they differ; taken from {source / 'consolidated.00.pth'}"
        )
        assert notes == ([] if equal else [wanted])
        left = "rope.freqs: left out; Meta's code computes what follows from params.json"
        assert (left in planned) is (to == "meta")
