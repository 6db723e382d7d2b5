"""A model folder is whole or it is not, whichever command looks; and what is damaged is mended."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import distconv
from distconv.errors import ConversionError, InputError, OutputError
from distconv.output import contents, proof
from distconv.sidecars.tokenizer import Vocabulary
from distconv.storage.local import LocalStorage
from distconv.verbs import making
from distconv.verbs.tokenizer import convert_tokenizer
from tests.checkpoints import Spec
from tests.faults import digest_folder, looks_whole
from tests.moving.fakes import RecordingProgress

Write = Callable[[Spec], Path]
Damage = Callable[[Path], object]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LIMIT = 100_000
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a converted model in several chunks."""
    output = tmp_path_factory.mktemp("whole") / "out"
    distconv.convert(checkpoint(SPEC), output, max_shard_size=LIMIT)
    return output


@pytest.fixture
def output(model: Path, tmp_path: Path) -> Path:
    """Give a copy of it, to be damaged."""
    return shutil.copytree(model, tmp_path / "out")


def convert(source: Path, output: Path, **options: object) -> distconv.ConversionReport:
    """Convert with the small chunks of these tests."""
    return distconv.convert(source, output, max_shard_size=LIMIT, **options)  # type: ignore[arg-type]


def chunk(output: Path, number: int = 1) -> Path:
    """Name a chunk, by its place in the order."""
    return sorted(output.glob("model-*.safetensors"))[number]


def flip(path: Path, place: int = -100) -> None:
    """Flip one bit of a file, and leave its size and its time as they are."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(first: Path, second: Path) -> None:
    """Give two files each other's name."""
    first.rename(first.with_suffix(".away"))
    second.rename(first)
    first.with_suffix(".away").rename(second)


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2, sort_keys=True) + "\n")


def sign(output: Path, **changes: object) -> None:
    """Change a receipt and give it the right digest again."""
    content = json.loads((output / "distconv.json").read_text()) | changes
    content.pop("sha256")
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (output / "distconv.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def put(name: str, content: bytes = b"{}") -> Damage:
    """Put a file into the folder."""
    return lambda folder: (folder / name).write_bytes(content)


def put_weights(name: str) -> Damage:
    """Put weights of the right shapes into the folder, all zeros."""

    def damage(folder: Path) -> None:
        found: dict[str, torch.Tensor] = {}
        for path in folder.glob("model-*.safetensors"):
            found |= {key: torch.zeros_like(tensor) for key, tensor in load_file(path).items()}
        if name.endswith(".safetensors"):
            save_file(found, folder / name, {"format": "pt"})
        else:
            torch.save(found, folder / name)

    return damage


def put_template(folder: Path) -> None:
    """Put a chat template where only the tokenizer's loader looks."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/default.jinja").write_text("overruled")


IN_THE_DATA: dict[str, Damage] = {
    "a flipped bit": lambda folder: flip(chunk(folder)),
    "flipped bits in two chunks": lambda folder: [flip(chunk(folder, 0)), flip(chunk(folder, 2), -1)],
}
IN_THE_STRUCTURE: dict[str, Damage] = {
    "a chunk cut short": lambda folder: os.truncate(chunk(folder), chunk(folder).stat().st_size - 1),
    "an empty chunk": lambda folder: os.truncate(chunk(folder), 0),
    "a missing chunk": lambda folder: chunk(folder).unlink(),
    "two chunks in each other's place": lambda folder: swap(chunk(folder, 0), chunk(folder, 1)),
    "a flipped bit in a header": lambda folder: flip(chunk(folder), 60),
    "a changed config": lambda folder: edit(folder / "config.json", rope_theta=5e5),
    "a missing config": lambda folder: (folder / "config.json").unlink(),
    "a changed tokenizer": lambda folder: flip(folder / "tokenizer.json"),
    "a missing tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "a changed generation config": lambda folder: edit(folder / "generation_config.json", do_sample=True),
    "a changed index": lambda folder: edit(folder / INDEX, metadata={"total_size": 1}),
    "a missing index": lambda folder: (folder / INDEX).unlink(),
    "a damaged receipt": lambda folder: edit(folder / "distconv.json", sha256="0" * 64),
}  # fmt: skip
STRANGERS: dict[str, Damage] = {
    "weights that win": put_weights("model.safetensors"),
    "weights that lose": put_weights("pytorch_model.bin"),
    "weights of another name": put_weights("consolidated.safetensors"),
    "weights of a variant": put_weights("model.fp16.safetensors"),
    "a chunk too many": put_weights("model-00099-of-00099.safetensors"),
    "an adapter": put("adapter_config.json"),
    "added tokens": put("added_tokens.json", b'{"<new>": 320}'),
    "a map of special tokens": put("special_tokens_map.json", b'{"eos_token": "<unk>"}'),
    "a chat template": put("chat_template.jinja", b"overruled"),
    "a tokenizer of another model": put("spiece.model", b"pieces"),
    "more chat templates": put_template,
}  # fmt: skip


def is_whole(output: Path) -> bool:
    """Ask ``verify``."""
    try:
        return distconv.verify(output).ok
    except OutputError:
        return False


@pytest.mark.first(5)
@pytest.mark.parametrize(
    "damage", [*IN_THE_DATA.values(), *IN_THE_STRUCTURE.values()], ids=[*IN_THE_DATA, *IN_THE_STRUCTURE]
)
def test_convert_with_verify_mends_whatever_is_damaged(
    checkpoint: Write, model: Path, output: Path, damage: Damage
) -> None:
    damage(output)
    assert not is_whole(output)
    report = convert(checkpoint(SPEC), output, verify=True)
    assert not report.already_done
    assert report.kept_chunks >= report.chunks - 2
    assert digest_folder(output) == digest_folder(model)


@pytest.mark.first(5)
@pytest.mark.parametrize("damage", IN_THE_STRUCTURE.values(), ids=IN_THE_STRUCTURE)
def test_convert_alone_mends_what_shows_without_reading_the_data(
    checkpoint: Write, model: Path, output: Path, damage: Damage
) -> None:
    damage(output)
    assert not convert(checkpoint(SPEC), output).already_done
    assert digest_folder(output) == digest_folder(model)


@pytest.mark.parametrize("damage", IN_THE_DATA.values(), ids=IN_THE_DATA)
def test_convert_alone_does_not_claim_to_have_read_the_data(
    checkpoint: Write, output: Path, damage: Damage
) -> None:
    damage(output)
    before = digest_folder(output)
    (line,) = convert(checkpoint(SPEC), output).lines()
    assert "already done" in line
    assert "the chunks' data was not read, `verify=True` reads it" in line
    assert digest_folder(output) == before


def test_a_whole_model_is_left_as_it_is_with_verify_too(checkpoint: Write, output: Path) -> None:
    before = {path: path.stat() for path in output.iterdir()}
    report = convert(checkpoint(SPEC), output, verify=True)
    assert report.already_done
    assert "the digests of all data, and every tensor compared with the source" in report.lines()[0]
    assert "not read" not in report.lines()[0]
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == {
        path: status.st_mtime_ns for path, status in before.items()
    }


def test_a_chunk_whose_digests_are_of_its_wrong_bytes_is_made_again_with_verify(
    checkpoint: Write, model: Path, output: Path
) -> None:
    other = shutil.copytree(output, output.parent / "other")
    flip(chunk(other))
    receipt = json.loads((other / "distconv.json").read_text())
    from xxhash import xxh3_128

    row = receipt["chunks"][1]
    content = chunk(other).read_bytes()
    row["xxh3_128"] = xxh3_128(content).hexdigest()
    first = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:first]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            row["tensors"][name] = xxh3_128(content[first + start : first + end]).hexdigest()
    sign(other, chunks=receipt["chunks"])
    assert is_whole(other)
    report = convert(checkpoint(SPEC), other, verify=True)
    assert report.kept_chunks == report.chunks - 1
    assert digest_folder(other) == digest_folder(model)


def test_while_damaged_chunks_are_mended_the_folder_does_not_look_whole(
    checkpoint: Write, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(chunk(output))
    seen: list[tuple[bool, bool]] = []
    check = making._check_chunks

    def look(*arguments: object) -> None:
        seen.append((looks_whole(output), (output / INDEX).exists()))
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(making, "_check_chunks", look)
    convert(checkpoint(SPEC), output, verify=True)
    assert seen == [(False, False)]
    assert looks_whole(output)


def test_differences_after_moving_leave_no_mark_and_the_same_command_mends_them(
    checkpoint: Write, model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk(output, 2).unlink()
    check = making._check_chunks

    def damage(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        flip(chunk(output))

    monkeypatch.setattr(making, "_check_chunks", damage)
    with pytest.raises(ConversionError, match="it is not made whole, run the same command again"):
        convert(checkpoint(SPEC), output, verify=True)
    assert not looks_whole(output)
    assert not (output / INDEX).exists()
    monkeypatch.undo()
    convert(checkpoint(SPEC), output, verify=True)
    assert digest_folder(output) == digest_folder(model)


def loaded(output: Path) -> tuple[dict[str, torch.Tensor], list[int], str | None]:
    """Load model and tokenizer as anybody would, and give what tells them from others."""
    loading = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(output)
    template = tokenizer.chat_template
    return dict(loading.state_dict()), tokenizer("the <new> fox</s>").input_ids, template


@pytest.mark.parametrize("damage", STRANGERS.values(), ids=STRANGERS)
def test_what_transformers_would_load_in_place_of_the_model_is_found_by_every_command(
    checkpoint: Write, output: Path, damage: Damage
) -> None:
    damage(output)
    before = digest_all(output)
    found = distconv.verify(output).differences
    assert any("not of this model" in finding for finding in found)
    for verify in (False, True):
        with pytest.raises(OutputError, match="may be loaded in its place; move it away"):
            convert(checkpoint(SPEC), output, verify=verify)
    with pytest.raises(OutputError, match="not a whole model, and so not uploaded"):
        distconv.push(output, "somebody/llama")
    assert digest_all(output) == before


def digest_all(folder: Path) -> dict[str, str]:
    """Give the SHA-256 of all files, those of folders below included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.product
@pytest.mark.parametrize("damage", [put("diary.txt"), *STRANGERS.values()], ids=["nothing", *STRANGERS])
@pytest.mark.parametrize("receipt", [True, False], ids=["with a receipt", "without"])
def test_what_is_called_whole_is_what_transformers_loads(
    model: Path, output: Path, damage: Damage, receipt: bool
) -> None:
    tensors, ids, template = loaded(model)
    damage(output)
    if not receipt:
        (output / "distconv.json").unlink()
    report = distconv.verify(output)
    if not report.ok:
        return
    found, found_ids, found_template = loaded(output)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    if not report.notes or receipt:
        assert (found_ids, found_template) == (ids, template)


def test_some_strangers_really_win(model: Path, output: Path) -> None:
    put_weights("model.safetensors")(output)
    assert not any(tensor.any() for tensor in loaded(output)[0].values())
    assert any(tensor.any() for tensor in loaded(model)[0].values())


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.json", "transformers_weights"),
        ("config.json", "quantization_config"),
        ("tokenizer_config.json", "fast_tokenizer_files"),
    ],
)
def test_a_config_that_leads_elsewhere_is_found_without_a_receipt_too(
    output: Path, name: str, key: str
) -> None:
    (output / "distconv.json").unlink()
    edit(output / name, **{key: {"AutoModel": "other.Model"}})
    assert any(
        f"has {key}, which no conversion writes" in found for found in distconv.verify(output).differences
    )


def test_code_that_others_name_beside_a_model_that_transformers_knows_is_said_not_to_be_run(
    output: Path,
) -> None:
    edit(output / "config.json", auto_map={"AutoModel": "other.Model"})
    assert any(
        "has auto_map, which no conversion writes" in words for words in distconv.verify(output).differences
    )
    (output / "distconv.json").unlink()
    report = distconv.verify(output)
    assert report.ok
    assert any("has auto_map; the code that it names is never run here" in note for note in report.notes)


def test_a_copy_of_metas_own_tokenizer_is_no_stranger(checkpoint: Write, output: Path) -> None:
    shutil.copy(checkpoint(SPEC) / "tokenizer.model", output)
    assert distconv.verify(output).ok
    assert convert(checkpoint(SPEC), output).already_done


def test_without_a_receipt_it_is_said_that_the_data_was_not_proved(checkpoint: Write, output: Path) -> None:
    assert distconv.verify(output).to_json()["data_proved"] is True
    assert "digests of all data" in distconv.verify(output).lines()[0]
    (output / "distconv.json").unlink()
    flip(chunk(output))
    alone = distconv.verify(output)
    assert alone.ok
    assert alone.to_json()["data_proved"] is False
    assert "the data was not proved" in alone.lines()[0]
    flip(chunk(output))
    compared = distconv.verify(output, against=checkpoint(SPEC))
    assert compared.ok
    assert compared.to_json()["data_proved"] is True
    assert "not proved" not in compared.lines()[0]


@pytest.mark.parametrize("to", ["transformers", "meta"])
def test_of_a_folder_that_could_not_be_read_no_data_is_called_proved(
    checkpoint: Write, tmp_path: Path, to: str
) -> None:
    source, output, progress = checkpoint(SPEC), tmp_path / "out", RecordingProgress()
    distconv.convert(source, output, to=to)
    (weights,) = (path for path in output.iterdir() if path.suffix in {".safetensors", ".pth"})
    os.truncate(weights, 1000)
    for found in (
        distconv.verify(output, progress=progress),
        distconv.verify(output, against=source, progress=progress, card=tmp_path / "card.md"),
    ):
        told = found.to_json()
        assert (told["ok"], told["data_proved"], told["tensors"], told["sha256"]) == (False, False, 0, None)
        assert told["examined"] == "structure and small files; no data could be read"
    card = (tmp_path / "card.md").read_text()
    assert re.search(r"findings?\*\*: structure and small files; no data could be read\.\n", card)
    # Where nothing is read, nothing is told of how far along it is; checklist.chk has the MD5s of small files too.
    assert progress.calls == [] or to == "meta"


def test_of_a_folder_of_which_a_part_was_read_not_all_is_called_proved(
    checkpoint: Write, output: Path
) -> None:
    os.truncate(chunk(output), 1000)
    told = distconv.verify(output).to_json()
    assert (told["data_proved"], told["sha256"]) == (False, None)
    assert told["examined"] == "structure, small files, the digests of what data could be read"
    told = distconv.verify(output, against=checkpoint(SPEC)).to_json()
    assert told["data_proved"] is False
    assert told["examined"] == (
        "structure, small files, the digests of what data could be read, and every tensor of it compared"
    )
    (output / "distconv.json").unlink()
    assert distconv.verify(output).examined == "structure, and the values of what data could be read"


@pytest.mark.parametrize("damage", ["a chunk cut short", "a missing chunk"])
@pytest.mark.parametrize("other", ["checkpoint", "folder", "manifest"])
def test_a_chunk_that_cannot_be_read_is_one_finding_whatever_it_is_compared_with(
    checkpoint: Write, model: Path, output: Path, tmp_path: Path, other: str, damage: str
) -> None:
    against = {"checkpoint": checkpoint(SPEC), "folder": model, "manifest": tmp_path / "manifest.json"}
    distconv.manifest(model, tmp_path / "manifest.json")
    lost = chunk(output)
    assert len(load_file(lost)) > 1
    IN_THE_STRUCTURE[damage](output)
    (words,) = distconv.verify(output, against=against[other]).differences
    assert words.startswith(f"{lost}: ")


def test_a_chunk_that_cannot_be_read_is_made_again_without_a_word_on_each_of_its_tensors(
    checkpoint: Write, output: Path
) -> None:
    progress, lost = RecordingProgress(), chunk(output)
    lost.unlink()
    convert(checkpoint(SPEC), output, verify=True, progress=progress)
    assert [note for note in progress.notes if "missing" in note] == [
        f"{lost}: missing, though the index names it; it is made again"
    ]
    assert distconv.verify(output).ok


def test_what_cannot_be_read_any_more_as_its_turn_comes_is_not_called_proved(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_cut(*arguments: object, **named: object) -> contents.Data:
        os.truncate(chunk(output), chunk(output).stat().st_size - 1)
        return contents.read_data(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(proof, "read_data", read_cut)
    found = distconv.verify(output)
    assert (found.ok, found.data_proved, found.manifest) == (False, False, None)
    assert found.examined == "structure, small files, the digests of what data could be read"


def test_a_path_that_is_no_folder_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nope: no such folder"):
        distconv.verify(tmp_path / "nope")
    with pytest.raises(OutputError, match="nope: no such folder"):
        distconv.push(tmp_path / "nope", "somebody/llama")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: a file, expected a folder"):
        distconv.verify(tmp_path / "file")


FOREIGN = {
    ".thesis.tex.partial": b"mine", ".model.safetensors.partial": b"mine", "LICENSE": b"mine", "LICENSE.txt": b"mine",
    "USE_POLICY.md": b"mine", "README.md": b"mine", "notes.txt": b"mine", ".x.host-12-0123abcd.partial": b"mine",
    ".config.json.host-12-0123ABCD.partial": b"mine", "model.safetensors.bak": b"mine",
}  # fmt: skip
OURS = (
    ".config.json.some.host-12-0123abcd.partial",
    ".model-00001-of-00009.safetensors.node-1.cluster-9-ffffffff.partial",
    "..distconv.journal.host-12-0123abcd.partial",
)


def test_overwrite_removes_what_is_provably_ours_and_the_model_and_nothing_else(
    checkpoint: Write, output: Path
) -> None:
    for name, content in FOREIGN.items():
        (output / name).write_bytes(content)
    for name in OURS:
        (output / name).touch()
    theirs = (
        "pytorch_model.bin",
        "added_tokens.json",
        "model.safetensors",
        "model-00077-of-00077.safetensors",
    )
    for name in theirs:
        (output / name).write_bytes(b"{}")
    convert(checkpoint(SPEC), output, dtype="float32", overwrite=True)
    assert {name: (output / name).read_bytes() for name in FOREIGN} == FOREIGN
    assert not [name for name in (*OURS, *theirs) if (output / name).exists()]
    assert distconv.verify(output).ok


def test_a_resumed_conversion_leaves_what_looks_unfinished_but_is_not_ours(
    checkpoint: Write, output: Path
) -> None:
    chunk(output).unlink()
    for name in FOREIGN.keys() - {"LICENSE"}:
        (output / name).write_bytes(b"mine")
    for name in OURS:
        (output / name).touch()
    convert(checkpoint(SPEC), output)
    assert all((output / name).read_bytes() == b"mine" for name in FOREIGN.keys() - {"LICENSE"})
    assert not [name for name in OURS if (output / name).exists()]


def test_the_licence_that_came_with_a_model_goes_with_it_and_another_one_is_not_replaced(
    checkpoint: Write, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "in")
    (source / "LICENSE").write_text("of the model")
    output = tmp_path / "out"
    convert(source, output)
    assert (output / "LICENSE").read_text() == "of the model"
    convert(checkpoint(SPEC), output, overwrite=True)
    assert not (output / "LICENSE").exists()
    (output / "LICENSE").write_text("mine")
    before = digest_folder(output)
    with pytest.raises(OutputError, match="LICENSE: not the one that belongs to this model; move it away"):
        convert(source, output, overwrite=True)
    assert digest_folder(output) == before


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "distconv.json",
        ".distconv.journal",
        "model-00001-of-00003.safetensors",
    ],
)
def test_a_folder_where_a_file_will_be_written_is_told_before_anything_moves(
    checkpoint: Write, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "deep.txt").write_text("mine")
    with pytest.raises(OutputError, match=f"{name}: a folder, where a file will be written; move it away"):
        convert(checkpoint(SPEC), tmp_path / "out", overwrite=True)
    assert list(digest_all(tmp_path / "out")) == [f"{name}/deep.txt"]


@pytest.mark.parametrize("damage", [put("adapter_config.json"), put("consolidated.00.pth"), put_template])
def test_what_overwrite_would_not_remove_but_transformers_would_load_is_told_first(
    checkpoint: Write, output: Path, damage: Damage
) -> None:
    damage(output)
    before = digest_all(output)
    with pytest.raises(OutputError, match="may be loaded in its place; move it away"):
        convert(checkpoint(SPEC), output, overwrite=True)
    assert digest_all(output) == before


def test_weights_that_appear_while_it_converts_keep_the_mark_from_being_set(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    check = making._check_chunks

    def put_beside(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        (output / "model.safetensors").write_bytes(b"{}")

    monkeypatch.setattr(making, "_check_chunks", put_beside)
    with pytest.raises(ConversionError, match=r"model\.safetensors: not of this model"):
        convert(checkpoint(SPEC), output)
    assert not (output / INDEX).exists()
    assert not (output / "config.json").exists()


def test_an_output_that_holds_the_only_copy_of_the_tokenizer_is_refused(
    checkpoint: Write, tmp_path: Path
) -> None:
    source, output = shutil.copytree(checkpoint(SPEC), tmp_path / "in"), tmp_path / "out"
    output.mkdir()
    (source / "tokenizer.model").rename(output / "tokenizer.model")
    with pytest.raises(OutputError, match=r"tokenizer\.model, which is INPUT's; give another folder"):
        convert(source, output, tokenizer=output, overwrite=True)
    assert (output / "tokenizer.model").exists()


class Panic(BaseException):
    """What a Rust library raises when it gives up is no Exception."""


@pytest.mark.parametrize("error", [ValueError("odd\nvocabulary"), RecursionError("deep"), Panic("unwrapped")])
def test_what_stands_beside_the_chunks_is_made_before_anything_is_touched(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from distconv.verbs import assembly

    def fail(_vocabulary: Vocabulary, **_options: object) -> dict[str, bytes]:
        raise error

    monkeypatch.setattr(assembly, "make_tokenizer_files", fail)
    with pytest.raises(InputError, match=r"tokenizer\.model: no tokenizer can be made of it") as raised:
        convert(checkpoint(SPEC), tmp_path / "out")
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"tokenizer\.model: no tokenizer can be made of it"):
        convert_tokenizer(checkpoint(SPEC) / "tokenizer.model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_licence_that_cannot_be_read_is_told_before_anything_is_touched(
    checkpoint: Write, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "in")
    os.mkfifo(source / "LICENSE")
    with pytest.raises(InputError, match="LICENSE: a folder, pipe or device"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["begin_removal", "begin"])
def test_a_signal_as_the_folder_is_taken_leaves_nothing_begun(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What it raises comes after something was begun and before anybody knows that."""
    source, begin = checkpoint(SPEC), getattr(LocalStorage, method)

    def begin_and_stop(storage: LocalStorage, path: str, *arguments: int) -> None:
        begin(storage, path, *arguments)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStorage, method, begin_and_stop)
    with pytest.raises(KeyboardInterrupt):
        distconv.convert(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/.*.partial"))
