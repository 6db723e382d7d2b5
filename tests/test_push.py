"""``distconv push`` against a stand-in for the hub, by the hub's real client."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import ModelCard, constants

import distconv
from tests.called import call
from tests.checkpoints import Spec
from tests.faults import digest_folder
from tests.hub import TOKEN, Hub, Repository, serving

Write = Callable[[Spec], Path]
RESOLVE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as served:
        yield served


@pytest.fixture
def output(checkpoint: Write, tmp_path: Path) -> Path:
    """Give a converted model in two chunks, with files in it that are none of ours."""
    folder = tmp_path / "out"
    distconv.convert(checkpoint(Spec(shards=2)), folder, max_shard_size=150_000)
    (folder / "diary.txt").write_text("private")
    (folder / ".x.partial").write_text("rest")
    return folder


def push(hub: Hub, output: Path, *options: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    with (
        warnings.catch_warnings(),
        # What the hub's library reads of the environment once.
        mock.patch.object(constants, "ENDPOINT", hub.endpoint),
        mock.patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.endpoint}{RESOLVE}"),
        # The stand-in speaks the hub's LFS protocol; xet needs a server of its own.
        mock.patch.object(constants, "HF_HUB_DISABLE_XET", True),
        mock.patch.dict(os.environ, HF_TOKEN=token),
    ):
        # The hub's library and the one that speaks HTTP for it do not agree.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        return call(["push", output, *options])


def test_a_model_is_uploaded_whole_private_and_with_a_card(hub: Hub, output: Path, tmp_path: Path) -> None:
    done = push(hub, output, "somebody/llama", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["private"] is True
    assert "\r" not in done.stderr
    repository = hub.repositories["somebody/llama"]
    assert repository.private
    strangers = {"diary.txt", ".x.partial"}
    expected = {path.name: path.read_bytes() for path in output.iterdir() if path.name not in strangers}
    card = repository.files.pop("README.md").decode()
    assert repository.files == expected
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "llama2",
        "transformers",
        "text-generation",
    )
    receipt = json.loads((output / "distconv.json").read_text())
    assert all(chunk["xxh3_128"] in card for chunk in receipt["chunks"])
    assert all(digest in card for digest in receipt["files"].values())
    assert "distconv convert INPUT OUTPUT --family llama-2 --dtype bfloat16 --max-shard-size 150000" in card
    assert str(tmp_path) not in card


def test_the_cards_command_makes_the_same_model(
    checkpoint: Write, output: Path, hub: Hub, tmp_path: Path
) -> None:
    push(hub, output, "llama")
    card = hub.repositories["somebody/llama"].files["README.md"].decode()
    command = next(line for line in card.splitlines() if line.startswith("distconv convert")).split()
    command[2:4] = [str(checkpoint(Spec(shards=2))), str(tmp_path / "again")]
    assert call(command[1:]).returncode == 0
    assert (tmp_path / "again" / "distconv.json").read_bytes() == (output / "distconv.json").read_bytes()


@pytest.mark.parametrize("instruct", [False, True])
def test_the_card_of_a_model_for_metas_code_has_its_shards_digests_and_a_command_that_makes_them(
    checkpoint: Write, hub: Hub, tmp_path: Path, instruct: bool
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    distconv.convert(checkpoint(Spec(shards=2)), source, instruct=instruct)
    distconv.convert(source, output, to="meta", shards=4, max_shard_size=50_000)
    done = push(hub, output, "llama")
    assert done.returncode == 0, done.stderr
    card = hub.repositories["somebody/llama"].files["README.md"].decode()
    assert "None" not in card
    assert ModelCard(card).data.library_name is None
    for shard in output.glob("*.pth"):
        content = shard.read_bytes()
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        assert f"| {shard.name} | {len(content):,} | MD5 `{md5}` |\n" in card
    command = next(line for line in card.splitlines() if line.startswith("distconv convert")).split()
    command[2:4] = [str(source), str(tmp_path / "again")]
    assert call(command[1:]).returncode == 0
    assert digest_folder(tmp_path / "again") == digest_folder(output)


def test_a_failed_upload_goes_on_without_sending_chunks_again(hub: Hub, output: Path, tmp_path: Path) -> None:
    hub.failing_commits = 1
    failed = push(hub, output, "llama")
    assert failed.returncode == 1
    assert "the hub answered 400 (busy); run the same command again" in failed.stderr
    sent = list(hub.puts)
    assert push(hub, output, "llama").returncode == 0
    assert hub.puts == sent
    assert "config.json" in hub.repositories["somebody/llama"].files


def test_a_public_repository_is_not_written_to_by_accident(hub: Hub, output: Path, tmp_path: Path) -> None:
    hub.repositories["somebody/llama"] = Repository(private=False)
    refused = push(hub, output, "somebody/llama")
    assert refused.returncode == 2
    assert "is public already; add --public" in refused.stderr
    assert not hub.repositories["somebody/llama"].files
    assert push(hub, output, "somebody/llama", "--public").returncode == 0


def test_a_signature_is_sent_and_the_card_does_not_break_it(hub: Hub, output: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    from tests.keys import write_key

    private, public = write_key(tmp_path)
    for name in ("diary.txt", ".x.partial"):
        (output / name).unlink()
    distconv.sign(output, private)
    assert push(hub, output, "somebody/llama").returncode == 0
    got = tmp_path / "got"
    got.mkdir()
    for name, content in hub.repositories["somebody/llama"].files.items():
        (got / name).write_bytes(content)
    assert {"model.sig", "README.md"} <= {path.name for path in got.iterdir()}
    report = distconv.verify(got, signature=got / "model.sig", public_key=public)
    assert report.ok, report.differences


def test_cards_that_are_there_stay(hub: Hub, output: Path, tmp_path: Path) -> None:
    hub.repositories["somebody/llama"] = Repository(private=True, files={"README.md": b"theirs"})
    done = push(hub, output, "somebody/llama")
    assert "has a README.md already" in done.stderr
    assert hub.repositories["somebody/llama"].files["README.md"] == b"theirs"
    (output / "README.md").write_text("mine")
    assert push(hub, output, "somebody/llama").returncode == 0
    assert hub.repositories["somebody/llama"].files["README.md"] == b"mine"


def test_without_a_good_token_it_says_how_to_get_one(hub: Hub, output: Path, tmp_path: Path) -> None:
    refused = push(hub, output, "llama", token="hf_wrong")
    assert refused.returncode == 2
    assert "run `hf auth login` or set HF_TOKEN" in refused.stderr
    assert "hf_wrong" not in refused.stderr


def test_a_hub_that_cannot_be_reached_is_named_as_where_it_is_read(output: Path, tmp_path: Path) -> None:
    refused = push(Hub(port=9), output, "me/llama")
    assert refused.returncode == 1
    assert "error: me/llama: 127.0.0.1:9 cannot be reached (" in refused.stderr
    assert "is this machine online? HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy" in refused.stderr


@pytest.mark.parametrize("name", ["a/b/c", "", "a/b c", "x-", "a/b--c", "a/b.git", "hf://a/b"])
def test_a_bad_name_is_refused_before_anything_is_read(
    hub: Hub, output: Path, tmp_path: Path, name: str
) -> None:
    refused = push(hub, output, name)
    assert refused.returncode == 2
    words = f"error: {name!r}: no name of a repository on the hub; expected USER/NAME of letters, digits, -, _ and ., "
    (line,) = refused.stderr.splitlines()
    assert line.startswith(words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "out"),
        (lambda folder: os.truncate(folder / "model-00002-of-00002.safetensors", 1000), "not a whole model"),
        (lambda folder: (folder / "distconv.json").unlink(), "no distconv.json in it"),
        (lambda folder: (folder / "distconv.json").write_text("{}"), "its own digest differs"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: missing"),
        (shutil.rmtree, "out"),
    ],
)
def test_what_is_not_finished_is_not_uploaded(
    hub: Hub, output: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(output)
    refused = push(hub, output, "llama")
    assert refused.returncode == 2
    assert words in refused.stderr
    assert not hub.repositories


CHUNK = "model-00002-of-00002.safetensors"


def flip(path: Path) -> None:
    """Flip one bit near the end of a file."""
    content = bytearray(path.read_bytes())
    content[-30] ^= 4
    path.write_bytes(content)


def link_away(path: Path) -> None:
    """Put a link to a file of the same content, outside of the folder, in a file's place."""
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.write_bytes(path.read_bytes() if path.exists() else b"secret")
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "words", "found_without_reading"),
    [
        (lambda folder: flip(folder / CHUNK), "differs from its digest", False),
        (lambda folder: flip(folder / "tokenizer.json"), "differs from its SHA-256", True),
        (lambda folder: flip(folder / "config.json"), "differs from its SHA-256", True),
        (lambda folder: flip(folder / "generation_config.json"), "differs from its SHA-256", True),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not of this model", True),
        (lambda folder: link_away(folder / CHUNK), "expected a file of its own", True),
        (lambda folder: link_away(folder / "config.json"), "expected a file of its own", True),
        (lambda folder: link_away(folder / "distconv.json"), "expected a file of its own", True),
        (lambda folder: link_away(folder / "README.md"), "expected a file of its own", True),
        (lambda folder: (folder / "README.md").symlink_to("nowhere"), "expected a file of its own", True),
        (lambda folder: (folder / "README.md").mkdir(), "expected a file of its own", True),
        (lambda folder: os.mkfifo(folder / "README.md"), "expected a file of its own", True),
    ],
)
def test_what_is_not_what_its_digests_say_is_not_uploaded(
    hub: Hub,
    output: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    words: str,
    found_without_reading: bool,
) -> None:
    damage(output)
    options = ["--no-verify"] if found_without_reading else []
    refused = push(hub, output, "llama", *options)
    assert refused.returncode == 2, refused.stderr
    assert words in refused.stderr
    assert not any(repository.files for repository in hub.repositories.values())


def test_what_was_looked_at_is_said_and_the_data_is_looked_at_unless_told_not_to(
    hub: Hub, output: Path, tmp_path: Path
) -> None:
    done = push(hub, output, "llama")
    assert "looked at: structure, small files, the digests of all data" in done.stdout
    flip(output / CHUNK)
    done = push(hub, output, "llama", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "the chunks' data was not read" in done.stdout


def test_a_licence_that_became_a_link_is_not_followed(checkpoint: Write, hub: Hub, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint(Spec(shards=2)), tmp_path / "in")
    (source / "LICENSE").write_text("of the model")
    distconv.convert(source, tmp_path / "out")
    link_away(tmp_path / "out/LICENSE")
    refused = push(hub, tmp_path / "out", "llama", "--no-verify")
    assert refused.returncode == 2
    assert "LICENSE: a link, folder or device, expected a file of its own" in refused.stderr
    assert not any(repository.files for repository in hub.repositories.values())


def test_a_chunk_that_changes_while_it_is_sent_is_not_committed(
    hub: Hub, output: Path, tmp_path: Path
) -> None:
    # After the last one: what was sent is right, what is there now is not.
    hub.on_put = lambda: flip(output / CHUNK) if len(hub.puts) == 2 else None
    refused = push(hub, output, "llama")
    assert refused.returncode == 2
    assert f"{CHUNK}: changed since it was looked at; nothing was committed" in refused.stderr
    assert not any(repository.files for repository in hub.repositories.values())


def test_a_chunk_that_is_changed_under_its_old_times_is_not_committed(
    hub: Hub, output: Path, tmp_path: Path
) -> None:
    def change() -> None:
        times = (output / CHUNK).stat()
        flip(output / CHUNK)
        os.utime(output / CHUNK, ns=(times.st_atime_ns, times.st_mtime_ns))

    hub.on_put = lambda: change() if len(hub.puts) == 2 else None
    refused = push(hub, output, "llama")
    assert refused.returncode == 2
    assert f"{CHUNK}: changed since it was looked at; nothing was committed" in refused.stderr
    assert not any(repository.files for repository in hub.repositories.values())


def test_the_old_scripts_flag_pushes_into_a_repository_of_the_folders_name(
    checkpoint: Write, hub: Hub, tmp_path: Path
) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip
    script = Path(__file__).parents[1] / "examples" / "convert_llama_weights_to_hf.py"
    options = [
        "--input_dir",
        str(checkpoint(Spec())),
        "--output_dir",
        str(tmp_path / "my-llama"),
        "--push_to_hub",
    ]
    done = subprocess.run(
        [sys.executable, script, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert hub.repositories["somebody/my-llama"].private
    assert "model.safetensors" in hub.repositories["somebody/my-llama"].files
