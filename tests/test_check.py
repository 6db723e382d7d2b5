"""INPUT's own checksums: Meta's checklists, and what zip archives record."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distconv
from distconv.errors import InputError, Interrupted
from distconv.formats.meta.archive import read_archive
from distconv.formats.meta.checklist import Listed, compare_crc32, compare_md5, read_checklists
from distconv.formats.meta.files import SourceFiles
from distconv.storage.base import opened
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec, write_checklist, write_checkpoint

SPEC = Spec(shards=3, heads=6, kv_heads=3, dim=96, multiple_of=24, vocab=336)
Write = Callable[[Spec], Path]


@pytest.fixture
def folder(checkpoint: Write, tmp_path: Path) -> Path:
    """Give a checkpoint of one's own, to be damaged."""
    return shutil.copytree(checkpoint(SPEC), tmp_path / "in")


def flip(path: Path, at: int) -> None:
    """Change one bit of a file, counted from its end where negative."""
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def test_a_good_checkpoint_is_good_by_md5(folder: Path) -> None:
    report = distconv.check(folder)
    assert report.ok
    assert (report.by_md5, report.by_crc32) == (5, 0)  # three shards, params.json, tokenizer.model


def test_one_changed_bit_in_a_shard_is_found_and_named(folder: Path) -> None:
    path = folder / "consolidated.01.pth"
    flip(path, path.stat().st_size // 2)
    report = distconv.check(folder)
    assert len(report.findings) == 1
    assert report.findings[0].startswith(f"{path}: MD5 ")
    assert "checklist.chk gives" in report.findings[0]
    with pytest.raises(InputError, match="download the file again"):
        distconv.convert(folder, folder.parent / "out", check=True)
    assert not (folder.parent / "out").exists()


def test_without_a_checklist_the_records_of_the_zip_are_checked(folder: Path) -> None:
    (folder / "checklist.chk").unlink()
    assert (distconv.check(folder).by_md5, distconv.check(folder).by_crc32) == (0, 3)
    assert distconv.check(folder).ok
    path = folder / "consolidated.02.pth"
    flip(path, path.stat().st_size // 2)
    (finding,) = distconv.check(folder).findings
    assert finding.startswith(f"{path}: CRC32 ")


def test_a_file_without_any_checksum_is_said_to_be_unchecked(
    tmp_path: Path, sentencepiece_file: Path
) -> None:
    folder = write_checkpoint(tmp_path / "in", Spec(legacy=True, checklist=False), sentencepiece_file)
    report = distconv.check(folder)
    assert report.ok
    assert "nothing to compare with" in report.notes[0]
    assert "no checksums to compare with" in report.lines()[0]


def test_the_tokenizers_list_lies_in_the_parent_folder(tmp_path: Path, sentencepiece_file: Path) -> None:
    folder = write_checkpoint(tmp_path / "7B", Spec(tokenizer="parent"), sentencepiece_file)
    write_checklist(tmp_path)
    (tmp_path / "checklist.chk").rename(tmp_path / "tokenizer_checklist.chk")
    assert distconv.check(folder).by_md5 == 3
    flip(tmp_path / "tokenizer.model", -1)
    assert any("tokenizer_checklist.chk gives" in finding for finding in distconv.check(folder).findings)


@pytest.mark.parametrize("form", ["{md5}  ./{name}", "{md5} *{name}", "{MD5}  {name}\r"])
def test_every_form_of_line_is_read(folder: Path, form: str) -> None:
    lines = (folder / "checklist.chk").read_text().splitlines()
    pairs = [line.split("  ") for line in lines]
    text = "\n".join(form.format(md5=md5, MD5=md5.upper(), name=name) for md5, name in pairs)
    (folder / "checklist.chk").write_text(text)
    assert distconv.check(folder).by_md5 == 5
    assert distconv.check(folder).ok


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0" * 32 + "  ../params.json\n", "line 1 names ../params.json, which lies outside"),
        ("0" * 32 + "  /etc/passwd\n", "line 1 names /etc/passwd, which lies outside"),
        ("0" * 32 + "  x/../../y\n", "which lies outside"),
        ("<html>403</html>", "line 1 is no `md5  name`; the file is an HTML or XML page"),
        ("0" * 31 + "  params.json\n", "line 1 is no `md5  name`"),
        ("\n \n\ud8ff\n", "line 3 is no `md5  name`"),
        ("0" * 32 + "  consolidated.07.pth\n", "consolidated.07.pth: missing, though"),
        ("0" * 32 + "  params.json/x\n", "params.json/x: missing, though"),
        ("0" * 32 + "  a\0b\n", "a\0b: missing, though"),
        ("0" * 32 + "  " + "a" * 300 + "\n", "a: missing, though"),
        ("0" * 32 + "  " + "a" * 5000 + "\n", "line 1 is no `md5  name`"),
    ],
)
def test_a_bad_checklist_is_a_finding(folder: Path, text: str, words: str) -> None:
    (folder / "checklist.chk").write_text(text, errors="surrogatepass")
    assert any(words in finding for finding in distconv.check(folder).findings)


def test_a_bad_checklist_hides_no_other(folder: Path) -> None:
    paths = [folder / name for name in ("checklist.chk", "tokenizer_checklist.chk")]
    for path in paths:
        path.write_text("nonsense\n")
    findings = distconv.check(folder).findings
    assert [finding.partition(":")[0] for finding in findings] == list(map(str, paths))


def test_checklists_are_found_without_a_tokenizer_and_beside_one_that_has_no_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "checklist.chk").rename(folder / "tokenizer_checklist.chk")
    files = SourceFiles("elsewhere", (), "params.json", None, ())
    assert read_checklists(LocalStorage(), files) == ((), ())
    monkeypatch.chdir(folder)
    listed, findings = read_checklists(LocalStorage(), replace(files, tokenizer="tokenizer.model"))
    assert (len(listed), findings) == (5, ())


def test_files_are_compared_block_by_block_until_it_is_stopped(folder: Path) -> None:
    storage, path = LocalStorage(), str(folder / "consolidated.00.pth")
    with opened(storage, path) as reader:
        regions = [region for _mark, region in read_archive(reader).values()]
    size, data = os.path.getsize(path), sum(region.size_bytes for region in regions)
    listed = Listed(path, hashlib.md5(Path(path).read_bytes()).hexdigest(), "checklist.chk")
    for compare, expected in (
        (lambda told, stopped: compare_md5(storage, listed, told.append, stopped), size),
        (lambda told, stopped: list(compare_crc32(storage, path, regions, told.append, stopped)), data),
    ):
        told: list[int] = []
        assert not compare(told, lambda: False)
        assert sum(told) == expected
        with pytest.raises(Interrupted):
            compare(told, lambda: True)


def test_headers_and_checksums_are_reported_together(folder: Path) -> None:
    flip(folder / "consolidated.00.pth", 2000)
    (folder / "consolidated.01.pth").write_bytes(b"<html>403 Forbidden</html>")
    state = torch.load(folder / "consolidated.02.pth", weights_only=True)
    torch.save(state, folder / "consolidated.02.pth")
    findings = distconv.check(folder).findings
    assert any("HTML" in finding for finding in findings)
    assert sum("MD5" in finding for finding in findings) >= 2


def test_the_command_exits_with_2_and_names_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from distconv.cli import main

    main(["check", str(folder)])
    assert "5 files by MD5, 0 by CRC32, all as they should be" in capsys.readouterr().out
    flip(folder / "params.json", -2)
    with pytest.raises(SystemExit) as exited:
        main(["check", str(folder), "--json"])
    assert exited.value.code == 1
    assert '"ok": false' in capsys.readouterr().out


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    """Give a Transformers folder in several files, to be damaged."""
    distconv.convert(folder, tmp_path / "model", max_shard_size=100_000)
    return tmp_path / "model"


def test_of_a_transformers_folder_headers_are_compared_and_what_was_not_is_said(model: Path) -> None:
    files = sorted(model.glob("*.safetensors"))
    report = distconv.check(model)
    assert report.ok
    assert (report.by_md5, report.by_crc32, report.by_headers) == (0, 0, len(files))
    assert report.lines() == (
        f"{model}: 0 files by MD5, 0 by CRC32, {len(files)} by headers alone, all as they should be",
    )
    (note,) = report.notes
    assert "no checksums are in it" in note
    assert f"distconv verify {model} compares its data" in note
    (model / "distconv.json").unlink()
    assert "distconv verify" not in distconv.check(model).notes[0]


def test_a_transformers_folder_whose_index_and_files_differ_is_found(model: Path) -> None:
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    homes = list(index["weight_map"].values())
    name = next(name for name, home in index["weight_map"].items() if homes.count(home) > 1)
    index["weight_map"][name] = next(home for home in homes if home != index["weight_map"][name])
    path.write_text(json.dumps(index))
    (finding,) = distconv.check(model).findings
    assert finding.startswith(f"{path}: names model-")
    assert name in finding


def test_a_transformers_folder_whose_config_says_other_sizes_is_found(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    assert any("config.json gives" in finding for finding in distconv.check(model).findings)


def test_what_torch_saved_for_transformers_is_compared_by_its_own_checksums(model: Path) -> None:
    tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (model / "model.safetensors.index.json").unlink()
    torch.save(tensors, model / "pytorch_model.bin")
    largest = max(tensors.values(), key=torch.numel).view(torch.uint8).numpy().tobytes()
    report = distconv.check(model)
    assert (report.ok, report.by_crc32, report.by_headers, report.notes) == (True, 1, 0, ())
    # Between records nothing has a checksum.
    flip(model / "pytorch_model.bin", (model / "pytorch_model.bin").read_bytes().index(largest) + 100)
    (finding,) = distconv.check(model).findings
    assert finding.startswith(f"{model / 'pytorch_model.bin'}: CRC32 ")
    with pytest.raises(InputError, match="CRC32"):
        distconv.convert(model, model.parent / "out", to="meta", check=True)
    assert not (model.parent / "out").exists()
