"""What is signed is what the folder holds, and model-signing's own command says so too."""

import base64
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from distconv.cli import main
from distconv.errors import OutputError, UsageError
from tests.checkpoints import Spec
from tests.keys import write_key
from tests.moving.fakes import RecordingProgress
from tests.patience import HANG_SECONDS

pytest.importorskip("model_signing")
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)


@pytest.fixture
def output(checkpoint: Callable[[Spec], Path], tmp_path: Path) -> Path:
    """Give a converted model."""
    distconv.convert(checkpoint(SPEC), tmp_path / "out")
    return tmp_path / "out"


def check(output: Path, public: Path, signature: Path | None = None) -> list[str]:
    """Give what verify says of the signature."""
    found = distconv.verify(
        output, signature=signature or output / "model.sig", public_key=public
    ).differences
    return [words for words in found if "not a signature by this key" in words]


def test_a_signature_is_good_here_and_for_model_signing_until_a_byte_changes(
    output: Path, tmp_path: Path
) -> None:
    private, public = write_key(tmp_path)
    report = distconv.sign(output, private)
    assert report.files == len(list(output.iterdir())) - 1
    assert check(output, public) == []
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        output,
        "--signature",
        output / "model.sig",
    ]
    subprocess.run([*command, "--public_key", public], check=True, capture_output=True, timeout=HANG_SECONDS)
    with (output / "generation_config.json").open("ab") as file:
        file.write(b" ")
    (words,) = check(output, public)
    assert words.endswith("holds: changed: generation_config.json")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signature_is_named_and_a_readme_written_after_it_is_no_fault(
    output: Path, tmp_path: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = write_key(tmp_path)
    if when == "before":
        (output / "README.md").write_text("mine")
    distconv.sign(output, private)
    (output / ".gitattributes").write_text("*.safetensors filter=lfs")
    (output / "README.md").write_text("mine")
    report = distconv.verify(output, signature=output / "model.sig", public_key=public)
    assert report.ok, report.differences
    assert report.examined == f"structure, small files, the digests of all data, the signature by {public}"
    assert (f"{output}/README.md: not signed" in report.notes) is (when == "after")
    (output / "README.md").write_text("another")
    assert len(check(output, public)) == (when == "before")
    with contextlib.suppress(SystemExit):
        main(["verify", str(output), "--signature", str(output / "model.sig"), "--public-key", str(public)])
    assert ("the signature by" in capsys.readouterr().out) is (when == "after")


def test_the_statement_has_the_source_the_plan_and_the_output(output: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path)
    distconv.sign(output, private, signature=tmp_path / "elsewhere.sig")
    assert check(output, public, tmp_path / "elsewhere.sig") == []
    bundle = json.loads((tmp_path / "elsewhere.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    identity = json.loads((output / "distconv.json").read_text())["conversion"]
    assert statement["predicate"]["conversion"] == identity
    assert "plan_sha256" in identity
    signed = {row["name"] for row in statement["predicate"]["resources"]}
    assert signed == {path.name for path in output.iterdir()}


def test_the_same_conversion_elsewhere_has_the_same_signature_but_for_the_key(
    checkpoint: Callable[[Spec], Path], output: Path, tmp_path: Path
) -> None:
    private, public = write_key(tmp_path)
    distconv.sign(output, private, signature=tmp_path / "first.sig")
    (tmp_path / "again").mkdir()
    distconv.convert(checkpoint(SPEC), tmp_path / "again/out")
    assert check(tmp_path / "again/out", public, tmp_path / "first.sig") == []


def test_another_key_a_file_more_and_a_damaged_signature_are_found(output: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path)
    _other, foreign = write_key(tmp_path, "other")
    distconv.sign(output, private)
    (words,) = check(output, foreign)
    assert "key" in words.lower()
    (output / "notes.txt").write_text("new")
    (words,) = check(output, public)
    assert "notes.txt" in words
    (output / "notes.txt").unlink()
    (output / "more").mkdir()
    (output / "more/modeling.py").write_text("new")
    (words,) = check(output, public)
    assert words.endswith("Extra files: more/modeling.py")
    shutil.rmtree(output / "more")
    (output / "more").symlink_to(tmp_path)
    (words,) = check(output, public)
    assert words.endswith("Extra files: more")
    (output / "more").unlink()
    content = json.loads((output / "model.sig").read_text())
    content["dsseEnvelope"]["payload"] = base64.b64encode(b"{}").decode()
    (output / "model.sig").write_text(json.dumps(content))
    assert len(check(output, public)) == 1
    (output / "model.sig").write_text("x")
    assert len(check(output, public)) == 1


def test_what_is_not_whole_is_not_signed_and_what_is_no_key_is_said_so(output: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path)
    with pytest.raises(UsageError, match="expected an elliptic-curve key"):
        distconv.sign(output, public)
    with pytest.raises(UsageError, match="expected the public key"):
        distconv.verify(output, signature=tmp_path / "x", public_key=private)
    progress = RecordingProgress()
    with pytest.raises(UsageError, match=r"model\.sig: no such file"):
        distconv.verify(output, signature=output / "model.sig", public_key=public, progress=progress)
    with pytest.raises(UsageError, match="nowhere/x: cannot be written"):
        distconv.sign(output, private, signature=output / "nowhere/x", progress=progress)
    assert progress.calls == []
    with pytest.raises(UsageError, match="give both, or neither"):
        distconv.verify(output, public_key=public)
    with pytest.raises(UsageError, match="only a folder of this host"):
        distconv.sign("s3://bucket/out", private)
    path = output / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OutputError, match="not whole, and so not signed"):
        distconv.sign(output, private)
    assert not (output / "model.sig").exists()


def test_a_key_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    key = tmp_path / "none.pem"
    with pytest.raises(UsageError) as raised:
        distconv.sign(tmp_path, key)
    assert str(raised.value).startswith(f"{key}: no such file; expected an elliptic-curve key")
    assert str(raised.value).count(str(key)) == 1


def test_a_file_that_stands_there_already_is_replaced_by_a_signature_only_where_it_is_one(
    output: Path, tmp_path: Path
) -> None:
    private, public = write_key(tmp_path)
    key = private.read_bytes()
    with pytest.raises(UsageError, match=r"key\.pem: there already, and no signature"):
        distconv.sign(output, private, signature=private)
    assert private.read_bytes() == key
    for _again in range(2):
        distconv.sign(output, private)
    assert check(output, public) == []
