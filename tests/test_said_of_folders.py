"""What commands say of a folder that is not what its user takes it for: unfinished, of another family, not for chat."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import distconv
from distconv.cli import main
from distconv.errors import InputError, MismatchError, OutputError
from distconv.moving.digests import PartDigests
from distconv.output.folder import Folder
from distconv.output.unfinished import make_unfinished
from distconv.storage.fencing import make_attempt
from distconv.verbs.tokenizer import convert_tokenizer
from tests.called import call
from tests.checkpoints import Spec, rezip, write_checklist, write_checkpoint
from tests.foreign_folders import save_dense, write_folder
from tests.mistral_checkpoints import MistralSpec, write_mistral
from tests.output.records import DIGEST, IDENTITY, write_journal
from tests.reference import read_tensors

Write = Callable[[Spec], Path]
LLAMA_2, LLAMA_3 = Spec("llama-2", heads=8, kv_heads=4, shards=2), Spec("llama-3")


class Notes(distconv.SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)

    @property
    def remarks(self) -> list[str]:
        """What was remarked, beside what is being done."""
        return [message for message in self.told if message.startswith("note: ")]


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
    "look", [distconv.inspect, distconv.plan, distconv.check, distconv.verify], ids=lambda look: look.__name__
)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"instruct": True},
            "`to='transformers'`, `instruct=True`, all 6 chunks are written, what stands beside them is not",
        ),
        ({"to": "meta"}, "`to='meta'`, `shards=1`, its shard is written, what stands beside it is not"),
        (
            {"to": "meta", "shards": 2},
            "`to='meta'`, `shards=2`, all 2 shards are written, what stands beside them is not",
        ),
    ],
    ids=["transformers", "meta", "two shards"],
)
def test_an_unfinished_output_is_told_as_one_and_how_it_goes_on(
    checkpoint: Write, unfinished: Callable[..., Path], look: Callable[[Path], object],
    options: dict[str, object], words: str,
) -> None:  # fmt: skip
    output = unfinished(checkpoint(LLAMA_2), **options)
    with pytest.raises((InputError, OutputError)) as refused:
        look(output)
    assert str(refused.value) == (
        f"{output}: a conversion of Llama 2 into it is not finished ({words}); run the same conversion again, and it "
        f"goes on: `distconv convert INPUT {output}`, with the options that it had"
    )


def test_of_an_unfinished_output_that_has_its_mark_it_is_told_before_all_else(
    checkpoint: Write, unfinished: Callable[..., Path]
) -> None:
    output = unfinished(checkpoint(LLAMA_2))
    chunks = sorted(path.name for path in output.glob("*.safetensors"))
    (output / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": chunks[0]}}))
    first, *others = distconv.verify(output).differences
    assert first.startswith(f"{output}: a conversion of Llama 2 into it is not finished (")
    assert others


def test_what_the_journal_has_not_recorded_or_is_not_there_does_not_count(
    checkpoint: Write, unfinished: Callable[..., Path]
) -> None:
    output = unfinished(checkpoint(LLAMA_2))
    journal = output / ".distconv.journal"
    content = json.loads(journal.read_text())
    content["chunks"] = content["chunks"][2:]
    journal.write_text(json.dumps(content))
    for words in ("4 of 6 chunks so far)", "3 of 6 chunks so far)"):
        with pytest.raises(InputError, match=re.escape(words)):
            distconv.inspect(output)
        (output / content["chunks"][0]["name"]).unlink(missing_ok=True)
    content["chunks"] = []
    journal.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r", 0 chunks so far\)"):
        distconv.inspect(output)


def test_parts_of_a_file_that_is_begun_count_where_that_is_there(tmp_path: Path) -> None:
    attempt = Path(make_attempt(str(tmp_path / "consolidated.00.pth")))
    parts = {number: PartDigests((DIGEST,)) for number in (0, 2)}
    begun = make_unfinished({"consolidated.00.pth": (str(attempt), parts)})
    write_journal(tmp_path, conversion=IDENTITY | {"to": "meta", "shards": 1}, chunks=[], unfinished=begun)
    for words in ("0 of 1 shard so far)", "0 of 1 shard so far, and 2 parts of what is begun)"):
        with pytest.raises(InputError, match=re.escape(words)):
            distconv.inspect(tmp_path)
        attempt.touch()


def test_an_unfinished_output_is_no_input(
    checkpoint: Write, unfinished: Callable[..., Path], folders: Path, tmp_path: Path
) -> None:
    output = unfinished(checkpoint(LLAMA_2))
    for convert in (
        lambda: distconv.convert(output, tmp_path / "more"),
        lambda: distconv.manifest(output, tmp_path / "more"),
        lambda: convert_tokenizer(output, tmp_path / "more"),
        lambda: distconv.verify(checkpoint(LLAMA_2), against=output),
        lambda: distconv.inspect(folders / "rows", like=output),
    ):
        with pytest.raises(InputError, match="a conversion of Llama 2 into it is not finished"):
            convert()
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("to", ["transformers", "meta"])
def test_an_unfinished_output_does_not_speak(
    checkpoint: Write, unfinished: Callable[..., Path], to: str
) -> None:
    output = unfinished(checkpoint(LLAMA_2), to=to)
    with pytest.raises(OutputError, match="a conversion of Llama 2 into it is not finished"):
        distconv.generate(output, "One day")
    done = call(["verify", output, "--generate", "One day"])
    assert done.returncode == 2
    assert f"error: {output}: a conversion of Llama 2 into it is not finished" in done.stderr


def test_who_verifies_what_only_its_makers_code_loads_is_told_how_to_go_on(
    folders: Path, sentencepiece_file: Path, tmp_path: Path
) -> None:
    """Each command that is named does what is said of it."""
    for files in ("safetensors", "parts"):
        write_mistral(tmp_path / files, MistralSpec(files=files), sentencepiece_file)
        (tmp_path / files / sentencepiece_file.name).rename(tmp_path / files / "tokenizer.model")
    shutil.copytree(tmp_path / "safetensors", tmp_path / "hub/original")
    for source in (tmp_path / "safetensors", tmp_path / "parts", tmp_path / "hub"):
        with pytest.raises(OutputError) as refused:
            distconv.verify(source)
        typed = re.findall(r"`distconv ([^`]+)`", str(refused.value))
        assert typed == [f"check {source}", f"convert {source} OUT", f"verify OUT --against {source}"]
        for line in typed:
            done = call(line.replace("OUT", str(tmp_path / f"{source.name}-hf")).split())
            assert done.returncode == 0, done.stderr
    with pytest.raises(OutputError, match=f"`distconv check {folders / 'rows'}` looks at them"):
        distconv.verify(folders / "rows")


def test_who_verifies_a_folder_without_a_model_is_told_what_it_holds(tmp_path: Path) -> None:
    for name, words in (
        (None, "the folder is empty"),
        ("adapter_config.json", "a LoRA adapter without its model"),
    ):
        if name is not None:
            (tmp_path / name).write_text("{}")
        with pytest.raises(OutputError, match=words):
            distconv.verify(tmp_path)


def test_a_journal_that_tells_nothing_is_an_unfinished_conversion_too(tmp_path: Path) -> None:
    (tmp_path / ".distconv.journal").write_text("{")
    with pytest.raises(InputError, match=r"a conversion into it is not finished .*0 chunks"):
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
    assert distconv.verify(chat, instruct=True).ok
    assert distconv.verify(base, instruct=True).differences == (found,)
    assert found.startswith(
        f"{base}: no chat template, which an instruct model has; convert with `instruct=True`"
    )
    # Before Transformers 4.47 it was in the tokenizer's config alone, and others write another one.
    notes = Notes()
    (chat / "chat_template.jinja").unlink()
    (chat / "distconv.json").unlink()
    assert distconv.verify(chat, against=source, instruct=True, progress=notes).ok
    assert not notes.remarks
    config = json.loads((chat / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "{{ messages }}"}]
    (chat / "tokenizer_config.json").write_text(json.dumps(config))
    assert distconv.verify(chat, against=source, instruct=True, progress=notes).ok
    assert notes.remarks == [f"note: {chat}: its chat template is another than a conversion of Llama 3 gives"]


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


@pytest.mark.parametrize(
    ("before", "after", "words", "typed"),
    [
        ({}, {"instruct": True}, "no `instruct=True` before, `instruct=True` now", "no --instruct before, --instruct now"),
        (
            {"to": "meta", "shards": 2, "dtype": "float16"},
            {"to": "meta", "shards": 4, "dtype": "float32"},
            "`shards=2` before, `shards=4` now; `dtype='float16'` before, `dtype='float32'` now",
            "--shards 2 before, --shards 4 now; --dtype float16 before, --dtype float32 now",
        ),
        (
            {"max_shard_size": "1500MB"},
            {"max_shard_size": "2GiB"},
            "`max_shard_size='1500MB'` before, `max_shard_size='2147483648B'` now",
            "--max-shard-size 1500MB before, --max-shard-size 2147483648B now",
        ),
    ],
    ids=["instruct", "shards and type", "size"],
)  # fmt: skip
def test_another_conversion_is_told_by_options_as_each_gives_them(
    checkpoint: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    before: dict[str, object], after: dict[str, object], words: str, typed: str,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    distconv.convert(checkpoint(LLAMA_2), output, **before)  # type: ignore[arg-type]
    with pytest.raises(OutputError) as refused:
        distconv.convert(checkpoint(LLAMA_2), output, **after)  # type: ignore[arg-type]
    assert f"{output}: holds another conversion ({words});" in str(refused.value)
    options = [
        f"--{key.replace('_', '-')}{'' if value is True else f'={value}'}" for key, value in after.items()
    ]
    with pytest.raises(SystemExit):
        main(["convert", str(checkpoint(LLAMA_2)), str(output), *options])
    assert f"holds another conversion ({typed});" in capsys.readouterr().err


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


def test_people_are_shown_the_first_findings_and_programs_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = save_dense(tmp_path / "one"), save_dense(tmp_path / "other")
    tensors = read_tensors(one)
    write_folder(other, one / "config.json", {name: tensor + 1 for name, tensor in tensors.items()}, 2)
    report = distconv.verify(one, against=other)
    assert len(report.differences) == len(tensors) > 21
    first, *shown, last = report.lines()
    assert first == f"{one}: {len(tensors)} findings"
    assert tuple(shown) == report.differences[:20]
    assert last == f"… and {len(tensors) - 20} more like these"
    with pytest.raises(SystemExit):
        main(["verify", str(one), "--against", str(other), "--json"])
    assert len(json.loads(capsys.readouterr().out)["differences"]) == len(tensors)


def test_metas_own_shards_are_compared_and_it_is_said_what_proves_them_and_what_their_files(
    tmp_path: Path, sentencepiece_file: Path
) -> None:
    source = write_checkpoint(tmp_path / "in", replace(LLAMA_2, equal_norms=True), sentencepiece_file)
    for path in source.glob("*.pth"):
        # Each tensor by itself, in an archive in another form than ours.
        torch.save({name: tensor.clone() for name, tensor in torch.load(path).items()}, path)
        rezip(path)
    write_checklist(source)
    other = tmp_path / "other"
    for options in ({}, {"to": "meta", "shards": 4}):
        distconv.convert(source, other, overwrite=True, **options)  # type: ignore[arg-type]
        alone, compared = distconv.verify(source), distconv.verify(source, against=other)
        assert alone.ok, alone.differences
        assert compared.ok, compared.differences
        assert (alone.data_proved, compared.data_proved) == (False, True)
        assert any(
            f"whether a download of Meta's is whole `distconv check {source}` tells" in note
            for note in alone.notes
        )
        assert compared.notes == (
            f"{source}: rope.freqs: not looked at, as no code uses it",
            (
                f"{source}: no distconv.json, so only the comparison with {other} tells what its tensors should be, and "
                f"only `distconv check {source}` whether its files are those that Meta published"
            ),
        )
    path = source / "consolidated.01.pth"
    shard = torch.load(path)
    shard["output.weight"][3, 5] *= -1
    torch.save(shard, path)
    write_checklist(source)
    assert distconv.verify(source).ok
    (words,) = distconv.verify(source, against=other).differences
    assert words.startswith(f"output.weight in {path}: row 3, column 5 differs")
