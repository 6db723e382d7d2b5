"""``distconv download`` against a real server that cuts, corrupts, refuses and dawdles."""

import base64
import contextlib
import gzip
import hashlib
import json
import logging
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from llama_models import sku_list

import distconv
from distconv.downloads.link import read_link
from distconv.downloads.partial import PartialFile, merge
from distconv.downloads.releases import RELEASES, find_release
from distconv.downloads.server import Remote
from distconv.errors import ConversionError, InputError, Interrupted, OutputError, UsageError
from distconv.verbs import download as downloading
from tests.checkpoints import Spec, write_checklist
from tests.downloads import SECRET, Files, serving
from tests.patience import HANG_SECONDS

Write = Callable[[Spec], Path]
SPEC = Spec(shards=2, heads=4, kv_heads=4, dim=64)
MODEL, FOLDER = "13B-chat", "llama-2-13b-chat"
COMMAND = [sys.executable, "-m", "distconv", "download", "--models", MODEL]


@pytest.fixture
def files(checkpoint: Write, tmp_path: Path) -> Iterator[Files]:
    """Serve a small checkpoint in the layout of Llama 2's downloads."""
    root = tmp_path / "served"
    shutil.copytree(checkpoint(SPEC), root / FOLDER)
    (root / FOLDER / "tokenizer.model").rename(root / "tokenizer.model")
    write_checklist(root / FOLDER)
    (root / "LICENSE").write_text("licence")
    (root / "USE_POLICY.md").write_text("policy")
    digest = hashlib.md5((root / "tokenizer.model").read_bytes()).hexdigest()
    (root / "tokenizer_checklist.chk").write_text(f"{digest}  tokenizer.model\n")
    with serving(Files(root)) as served:
        yield served


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less; every other figure is the product's own."""
    monkeypatch.setattr(downloading, "_LONGEST_WAIT_SECONDS", 0.05)


def equal(left: Path, right: Path) -> bool:
    """Whether both folders hold the same files with the same bytes, and nothing is left over."""
    found = [
        {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (left, right)
    ]
    return found[0] == found[1]


def run(to: Path, url: str, *options: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command with the URL on standard input."""
    return subprocess.run(
        [*COMMAND, "--to", str(to), *options],
        input=url + "\n",
        capture_output=True,
        text=True,
        check=False,
        **more,
    )


def test_a_model_arrives_in_metas_layout_and_converts(files: Files, tmp_path: Path) -> None:
    done = run(tmp_path / "in", files.url, "--json")
    assert done.returncode == 0, done.stderr
    assert equal(files.folder, tmp_path / "in")
    report = json.loads(done.stdout)
    assert report["files"] == 8
    assert report["files_by_md5"] == 4  # two shards, params.json, tokenizer.model
    assert distconv.convert(report["folders"][0], tmp_path / "out", family="llama-2").chunks


def test_a_second_time_only_small_files_come_again(files: Files, tmp_path: Path) -> None:
    distconv.download([MODEL], tmp_path / "in", files.url)
    files.asked.clear()
    report = distconv.download([MODEL], tmp_path / "in", files.url)
    assert {wanted for name, wanted in files.asked if name.endswith(".pth")} == {"bytes=0-0"}
    assert report.checked_files == 4
    assert equal(files.folder, tmp_path / "in")


@pytest.mark.parametrize("has_ranges", [True, False])
def test_cut_answers_are_gone_on_with(files: Files, tmp_path: Path, monkeypatch, has_ranges: bool) -> None:
    monkeypatch.setattr(downloading, "PART_BYTES", 50_000)
    files.has_ranges = has_ranges
    size = sum(path.stat().st_size for path in files.folder.rglob("*.pth"))
    files.cuts = [0, 1, 7777, 0, 49_999, 20_000, 3]
    report = distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")
    assert not files.cuts
    if has_ranges:
        # Nothing that arrived was asked for again.
        assert size <= report.bytes_fetched <= size + 1_000_000


def test_a_server_that_stays_busy_is_given_up_with_what_came(files: Files, tmp_path: Path, capfd) -> None:
    files.answers = [(503, {"Retry-After": "1"}, b"")] * downloading.TRIES
    with pytest.raises(ConversionError, match=r"answered 503 .*8 times in a row; run the same command again"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    files.answers = [(503, {}, b""), (429, {}, b""), (500, {}, b"")]
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")


def test_an_answer_that_stalls_is_asked_for_again(files: Files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("distconv.downloads.server.READ_SECONDS", 0.3)
    files.stalls = 3
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert files.stalls == 0
    assert equal(files.folder, tmp_path / "in")


def test_a_corrupted_file_is_fetched_once_more(files: Files, tmp_path: Path) -> None:
    name = f"{FOLDER}/consolidated.01.pth"
    files.corrupted = {name: 1}
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
    files.corrupted = {name: 2}
    with pytest.raises(InputError, match=rf"{name}: its MD5 is wrong twice in a row"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert not (tmp_path / "in" / name).exists()


@pytest.mark.parametrize("left", [0.0, 0.6, 1.0])
def test_what_wget_left_is_completed(files: Files, tmp_path: Path, left: float) -> None:
    name = f"{FOLDER}/consolidated.00.pth"
    content = (files.folder / name).read_bytes()
    target = tmp_path / "in" / name
    target.parent.mkdir(parents=True)
    target.write_bytes(content[: int(len(content) * left)])
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")
    assert (
        files.served_bytes
        < sum(p.stat().st_size for p in files.folder.rglob("*") if p.is_file()) * 1.1 + 50_000
    )


@pytest.mark.parametrize("before", [b"<!doctype html><html>sign in</html>", b"x" * 10_000_000])
def test_a_web_page_or_a_longer_file_in_its_place_does_no_harm(
    files: Files, tmp_path: Path, before: bytes
) -> None:
    target = tmp_path / "in" / FOLDER / "consolidated.00.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(before)
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")


def test_a_file_that_changed_on_the_server_is_not_mixed(
    files: Files, checkpoint: Write, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(downloading, "PART_BYTES", 50_000)
    (files.folder / FOLDER / "checklist.chk").unlink()
    files.cuts = [20_000] + [0] * 100
    with pytest.raises(ConversionError):
        distconv.download([MODEL], tmp_path / "in", files.url, connections=1)
    files.cuts = []
    shard = files.folder / FOLDER / "consolidated.00.pth"
    # Of the same size, and another file in every other respect.
    shutil.copyfile(files.folder / FOLDER / "consolidated.01.pth", shard)
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")


def test_a_full_disk_is_told_before_anything_large_is_fetched(
    files: Files, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("distconv.storage.local.LocalStorage.free_bytes", lambda *_: 1000)
    with pytest.raises(OutputError, match=r"needed, 1.0 kB free; free .* add `ignore_free_space=True`"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert {wanted for name, wanted in files.asked if name.endswith(".pth")} == {"bytes=0-0"}
    distconv.download([MODEL], tmp_path / "in", files.url, ignore_free_space=True)
    assert equal(files.folder, tmp_path / "in")


def make_url(files: Files, seconds: int) -> str:
    """Make a URL as CloudFront signs them, that ends in so many seconds."""
    policy = {"Statement": [{"Condition": {"DateLessThan": {"AWS:EpochTime": int(time.time()) + seconds}}}]}
    text = base64.b64encode(json.dumps(policy).encode()).decode().translate(str.maketrans("+=/", "-_~"))
    return f"http://127.0.0.1:{files.port}/*?Policy={text}&Signature=S1gn4tUr3"


def test_a_refusal_says_why_and_what_to_do(files: Files, tmp_path: Path) -> None:
    files.secret = "another"
    done = run(tmp_path / "in", files.url)
    assert done.returncode == 2
    assert "refuses it (403, AccessDenied); a URL ends after 24 hours" in done.stderr
    assert "https://www.llama.com/llama-downloads/" in done.stderr
    done = run(tmp_path / "in", make_url(files, -60))
    assert done.returncode == 2
    assert "the URL ended on 20" in done.stderr


def test_a_url_that_ends_meanwhile_keeps_what_came(files: Files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloading, "PART_BYTES", 50_000)
    counted = iter(range(1000))
    files.refused = lambda name: name.endswith("01.pth") and next(counted) > 3
    with pytest.raises(InputError, match="ask for a new one"):
        distconv.download([MODEL], tmp_path / "in", files.url, connections=1)
    served, files.refused = files.served_bytes, lambda _name: False
    distconv.download([MODEL], tmp_path / "in", files.url.replace("Policy", "Policy"))
    assert equal(files.folder, tmp_path / "in")
    size = sum(path.stat().st_size for path in files.folder.rglob("*.pth"))
    assert files.served_bytes - served < size


def test_a_web_page_instead_of_a_file_is_explained(files: Files, tmp_path: Path) -> None:
    files.answers = [(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Sign in</html>")]
    done = run(tmp_path / "in", files.url)
    assert done.returncode == 2
    assert "answered with a web page instead of the file" in done.stderr


def test_nobody_listens_and_no_such_host(tmp_path: Path, files: Files) -> None:
    for host, words in (("127.0.0.1:9", "the connection failed"), ("nobody.invalid", "no such host")):
        url = f"http://{host}/*?{SECRET}"
        with pytest.raises(ConversionError, match=words) as caught:
            distconv.download([MODEL], tmp_path / "in", url)
        assert "S1gn4tUr3" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no URL was given"),
        ("hello", "is no URL"),
        ("ftp://host/*?x", "is no URL"),
        ("https://[::1/*", "is no URL"),
        ("https://host:port/*", "is no URL"),
        ("https://host/LICENSE?Policy=x", r"has no \* in its path"),
        ("https://host/?Policy=*", r"has no \* in its path"),
        ("https://host/* ?Policy=x", "spaces or line breaks"),
        ("https://eur01.safelinks.protection.outlook.com/?url=https%3A%2F%2Fhost%2F*", "your mail program"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_repeating_it(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read_link(text)
    assert "Policy" not in str(caught.value)


def test_urls_as_people_paste_them() -> None:
    for text in (
        " https://host/*?a=1&amp;b=2\n",
        '"https://host/*?a=1&b=2"',
        "<https://host/*?a=1&b=2>",
        r"https://host/\*?a=1\&b=2",
    ):
        assert read_link(text).url("a b/c") == "https://host/a%20b/c?a=1&b=2"
    assert read_link("https://host/*?Expires=1700000000").has_expired()
    assert read_link("https://host/*?Policy=e30_").expires is None


def test_the_url_is_in_no_output_log_trace_or_process_list(files: Files, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    for troubled in (True, False):
        files.cuts = [0, 5] if troubled else []
        files.secret = "another" if troubled else SECRET
        try:
            distconv.download([MODEL], tmp_path / f"in{troubled}", files.url)
        except InputError as error:
            text = f"{error!r} {error.__cause__!r}"
            assert "S1gn4tUr3" not in text
    assert "S1gn4tUr3" not in caplog.text
    shard = files.folder / FOLDER / "consolidated.00.pth"
    shard.write_bytes(random.Random(3).randbytes(30_000_000))
    write_checklist(files.folder / FOLDER)
    files.seconds_a_block = 0.05
    environment = os.environ | {"DISTCONV_URL": files.url, "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        [*COMMAND, "--to", str(tmp_path / "slow"), "--debug"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while not list(tmp_path.glob("slow/*/*.partial")):
        time.sleep(0.05)
        assert process.poll() is None
    listing = subprocess.run(
        ["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    assert str(process.pid) in listing
    assert "S1gn4tUr3" not in listing
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate()
    assert process.returncode == 130
    assert "Traceback" in shown
    assert "S1gn4tUr3" not in shown
    assert not any(
        "S1gn4tUr3" in path.read_text("latin-1") for path in (tmp_path / "slow").rglob("*") if path.is_file()
    )
    files.seconds_a_block = 0
    done = run(tmp_path / "slow", files.url)
    assert done.returncode == 0
    assert equal(files.folder, tmp_path / "slow")


def test_the_url_is_asked_for_on_a_terminal_and_not_shown(files: Files, tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*COMMAND, "--to", str(tmp_path / "in")])
    shown = b""
    while b"not shown" not in shown:
        shown += os.read(terminal, 1000)
    while termios.tcgetattr(terminal)[3] & termios.ECHO:
        time.sleep(0.01)
    os.write(terminal, files.url.encode() + b"\n")
    try:
        while True:
            shown += os.read(terminal, 10_000)
    except OSError:
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert b"S1gn4tUr3" not in shown
    assert b"distconv convert" in shown
    assert equal(files.folder, tmp_path / "in")


def test_killed_again_and_again_it_goes_on(files: Files, tmp_path: Path) -> None:
    shard = files.folder / FOLDER / "consolidated.00.pth"
    shard.write_bytes(random.Random(5).randbytes(30_000_000))
    write_checklist(files.folder / FOLDER)
    files.seconds_a_block = 0.01
    for _ in range(4):
        process = subprocess.Popen(
            [*COMMAND, "--to", str(tmp_path / "in"), "--quiet"], stdin=subprocess.PIPE, text=True
        )
        process.stdin.write(files.url + "\n")
        process.stdin.close()
        while process.poll() is None and not list(tmp_path.glob("in/*/*.partial")):
            time.sleep(0.02)
        time.sleep(0.3)
        process.kill()
        process.wait()
    files.seconds_a_block = 0
    assert run(tmp_path / "in", files.url).returncode == 0
    assert equal(files.folder, tmp_path / "in")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gigabytes_cut_twenty_times_arrive_whole(files: Files, tmp_path: Path) -> None:
    shard = files.folder / FOLDER / "consolidated.00.pth"
    noise = random.Random(7)
    block = noise.randbytes(1 << 20)
    with shard.open("wb") as file:
        for number in range(2000):
            file.write(number.to_bytes(8) + block[8:])
    size = shard.stat().st_size
    write_checklist(files.folder / FOLDER)
    files.cuts = [noise.randrange(1, 60 << 20) for _ in range(20)]
    done = run(tmp_path / "in", files.url)
    assert done.returncode == 0, done.stderr
    assert not files.cuts
    assert equal_large(shard, tmp_path / "in" / FOLDER / shard.name)
    # What had arrived was not fetched again, but for what was on its way when a connection was cut.
    assert files.served_bytes < size * 1.05


def equal_large(left: Path, right: Path) -> bool:
    """Compare two large files block by block."""
    return subprocess.run(["cmp", left, right], check=False).returncode == 0


def test_names_of_models() -> None:
    assert find_release("7B").folder == "llama-2-7b"
    assert find_release("13b-CHAT").shards == 2
    assert find_release("llama-2-70b").shards == 8
    assert find_release("CodeLlama-70b-Instruct").shards == 8
    assert find_release("34b-python").name == "CodeLlama-34b-Python"
    assert find_release("Meta-Llama-3-8B").remotes[0] == "8b_pre_trained"
    assert find_release("Llama-3-8B").folder == "Meta-Llama-3-8B"
    assert find_release("llama-3.1-405b-fp8").remotes[0] == "Llama-3.1-405B"
    with pytest.raises(UsageError, match=r"expected one of .*-405B-MP8, .*-405B-FP8"):
        find_release("Llama-3.1-405B")
    for name in ("8B", "30B", "", "llama"):
        with pytest.raises(UsageError, match=r"model .*: expected one of "):
            find_release(name)
    every = [name.lower() for release in RELEASES for name in {release.name, release.short or release.name}]
    assert len(every) == len(set(every))


def test_folders_and_files_are_those_of_metas_own_list() -> None:
    theirs = {}
    for model in sku_list.all_registered_models():
        served = sku_list.llama_meta_net_info(model)
        # Llama 2's lists are another; int4 and int8 are not converted.
        if model.model_family.value != "llama2" and "INT" not in served.folder:
            theirs[served.folder] = set(served.files)
    newer = [
        release
        for release in RELEASES
        if release.name.startswith(("Llama-3", "Llama-4", "Meta-", "Llama-Guard"))
    ]
    found = {}
    for release in newer:
        folder = next(remote for remote in release.remotes if remote in theirs)
        found[folder] = {"checklist.chk", "params.json", "tokenizer.model", *release.weight_names}
    assert len(found) == len(newer)
    assert found == theirs


def test_ranges_join() -> None:
    assert merge([(5, 9), (0, 2), (2, 3), (8, 12), (4, 4)]) == [(0, 3), (5, 12)]


def test_without_a_model_nothing_is_asked(files: Files, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model was named"):
        distconv.download([], tmp_path / "in", files.url)
    done = subprocess.run(
        [*COMMAND[:-1], " ,", "--to", tmp_path / "in"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "names no model" in done.stderr
    assert not files.asked


def served(files: Files, name: str) -> bytes:
    """Give what a right server would give."""
    return (files.folder / name).read_bytes()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Write an answer as it goes over the wire."""
    head = [f"HTTP/1.1 {status}", *(headers or (f"Content-Length: {len(body)}",))]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


UNPROVED = "looked at, but compared with nothing, as no checksum is known"

BODIES = {
    "nothing": b"",
    "zeros": bytes(4096),
    "web page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "XML": b'<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>',
    "JSON": b'{"error": "quota exceeded"}',
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a pickle": b"\x80\x02N.",
    "text": b"too many requests, try later\n",
}


@pytest.mark.product
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("base", ["consolidated.00.pth", "params.json", "tokenizer.model"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "unlisted"])
def test_what_cannot_be_the_file_never_gets_its_name(
    files: Files, tmp_path: Path, body: bytes, base: str, listed: bool
) -> None:
    name = base if base == "tokenizer.model" else f"{FOLDER}/{base}"
    if not listed:
        (files.folder / FOLDER / "checklist.chk").unlink()
        (files.folder / "tokenizer_checklist.chk").unlink()
    (files.folder / name).write_bytes(body)
    with pytest.raises((InputError, ConversionError), match=base):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert not (tmp_path / "in" / name).exists()


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_licence_that_is_none_is_left_out_and_told_of(files: Files, tmp_path: Path, body: bytes) -> None:
    (files.folder / "LICENSE").write_bytes(body)
    if body in {BODIES["text"], BODIES["a pointer"], BODIES["a pickle"]}:
        body = BODIES["web page"]
        (files.folder / "LICENSE").write_bytes(body)
    report = distconv.download([MODEL], tmp_path / "in", files.url)
    assert any(note.startswith("LICENSE: left out, as what the server gives is ") for note in report.notes)
    assert not (tmp_path / "in" / "LICENSE").exists()


@pytest.mark.parametrize("name", ["LICENSE", "USE_POLICY.md"])
def test_a_projects_own_licence_stays(files: Files, tmp_path: Path, name: str) -> None:
    """Whoever downloads into the folder of a project, as README says, keeps what is there."""
    place = tmp_path / "project"
    place.mkdir()
    (place / name).write_text("Copyright, all of it mine")
    report = distconv.download([MODEL], place, files.url)
    assert (place / name).read_text() == "Copyright, all of it mine"
    assert any(note.startswith(f"{place / name}: does not read like Meta's") for note in report.notes)


def test_metas_older_licence_gives_way_to_the_models(files: Files, tmp_path: Path) -> None:
    place = tmp_path / "in"
    place.mkdir()
    (place / "LICENSE").write_text("Llama 1 licence of Meta Platforms")
    distconv.download([MODEL], place, files.url)
    assert (place / "LICENSE").read_text() == "licence"


@pytest.mark.parametrize("where", [0.5, 1.0], ids=["flipped", "cut"])
def test_without_a_checklist_a_shards_own_checksums_tell(files: Files, tmp_path: Path, where: float) -> None:
    (files.folder / FOLDER / "checklist.chk").unlink()
    shard = files.folder / FOLDER / "consolidated.01.pth"
    right = shard.read_bytes()
    wrong = bytearray(right)
    if where < 1:
        wrong[int(len(wrong) * where)] ^= 1
    else:
        del wrong[-100:]
    shard.write_bytes(wrong)
    with pytest.raises(InputError, match=r"consolidated\.01\.pth: it.* twice in a row"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert not (tmp_path / "in" / FOLDER / shard.name).exists()
    shard.write_bytes(right)
    report = distconv.download([MODEL], tmp_path / "in", files.url)
    assert report.files_by_crc32 == 2
    assert equal(files.folder, tmp_path / "in")
    assert report.notes[0] == f"{FOLDER}/checklist.chk is not served: MD5 cannot be compared"
    (unproved,) = report.notes[1:]
    assert unproved == f"{tmp_path / 'in' / FOLDER}: {UNPROVED}: params.json"


def test_files_that_nothing_proves_are_named(files: Files, tmp_path: Path) -> None:
    shard = files.folder / FOLDER / "consolidated.01.pth"
    state = torch.load(shard)
    torch.save(state, shard, _use_new_zipfile_serialization=False)
    (files.folder / FOLDER / "checklist.chk").write_text(f"{'0' * 32}  another.pth\n")
    (files.folder / "tokenizer_checklist.chk").write_text("")
    report = distconv.download([MODEL], tmp_path / "in", files.url)
    folder = tmp_path / "in"
    assert set(report.notes) == {
        f"{folder / FOLDER}: {UNPROVED}: consolidated.01.pth, params.json",
        f"{folder}: {UNPROVED}: tokenizer.model",
        "tokenizer_checklist.chk: left out, as what the server gives is an empty file",
    }
    assert report.checked_files == 0
    assert report.files_by_crc32 == 1


LIES = {
    "a part without its place": lambda body: answer(body[:1], "Content-Length: 1", status="206 OK"),
    "a part of an unknown whole": lambda body: answer(
        body[:1], "Content-Length: 1", "Content-Range: bytes 0-0/*", status="206 OK"
    ),
    "several parts": lambda body: answer(
        b"--x\r\nContent-Range: bytes 0-0/9\r\n\r\nP\r\n--x--\r\n",
        "Content-Type: multipart/byteranges; boundary=x",
        "Content-Length: 44",
        status="206 OK",
    ),
    "a whole of nothing": lambda body: answer(
        b"", "Content-Length: 0", "Content-Range: bytes */0", status="416 No"
    ),
    "a shorter whole": lambda body: answer(body[: len(body) // 2]),
    "a longer whole": lambda body: answer(body, f"Content-Length: {len(body) * 2}"),
    "a size of 5,000 digits": lambda body: answer(body, "Content-Length: " + "9" * 5000),
    "a range of 5,000 digits": lambda body: answer(
        body[:1], "Content-Range: bytes 0-0/" + "9" * 5000, status="206 OK"
    ),
    "a size of words": lambda body: answer(body, "Content-Length: many"),
    "two sizes": lambda body: answer(body, "Content-Length: 1", f"Content-Length: {len(body)}"),
    "a size below nothing": lambda body: answer(body, "Content-Length: -1"),
    "compressed": lambda body: answer(
        gzip.compress(body),
        "Content-Encoding: gzip",
        f"Content-Length: {len(gzip.compress(body))}",
    ),
    "a redirect to no address": lambda body: answer(b"", "Location: http://[::1", status="302 Found"),
    "a redirect to itself": lambda body: answer(b"", "Location: /x", status="302 Found"),
    "a status of escapes": lambda body: answer(b"", status="503 \x1b[2J\x1b[31mfine"),
    "no status": lambda body: b"hello\r\n\r\n",
    "an endless header": lambda body: b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    "nothing at all": lambda body: b"",
    "no content": lambda body: answer(b"", status="204 No Content"),
}


@pytest.mark.product
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("base", ["consolidated.01.pth", "params.json"])
def test_a_server_that_lies_about_sizes_and_ranges_gives_no_file(
    files: Files, tmp_path: Path, lie: Callable[[bytes], bytes], base: str
) -> None:
    """No checklist names the file; every answer about it is the same lie."""
    (files.folder / FOLDER / "checklist.chk").unlink()
    name = f"{FOLDER}/{base}"
    sent = lie(served(files, name))
    files.raw = lambda asked, _wanted: sent if asked in {name, "x"} else None
    try:
        distconv.download([MODEL], tmp_path / "in", files.url)
    except (InputError, ConversionError) as error:
        assert "S1gn4tUr3" not in str(error)  # noqa: PT017
    target = tmp_path / "in" / name
    # Where HTTP itself leaves no doubt, what comes may be right.
    assert not target.exists() or target.read_bytes() == served(files, name)


@pytest.mark.parametrize("shift", [1, -1, 1000])
def test_a_server_that_gives_other_ranges_than_it_says_gives_no_file(
    files: Files, tmp_path: Path, monkeypatch, shift: int
) -> None:
    """Each part has the right headers, and bytes from elsewhere in the file."""
    monkeypatch.setattr(downloading, "PART_BYTES", 50_000)
    (files.folder / FOLDER / "checklist.chk").unlink()
    name = f"{FOLDER}/consolidated.01.pth"
    whole = served(files, name)

    def give(asked: str, wanted: str) -> bytes | None:
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        if asked != name or not end or int(end) == 0:
            return None
        turned = whole[shift:] + whole[:shift]
        body = (turned if int(start) else whole)[int(start) : int(end) + 1]
        place = f"Content-Range: bytes {start}-{end}/{len(whole)}"
        return answer(body, place, f"Content-Length: {len(body)}", status="206 Partial Content")

    files.raw = give
    with pytest.raises(InputError, match=r"consolidated\.01\.pth: it.* twice in a row"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert not (tmp_path / "in" / name).exists()


def test_a_size_that_changes_from_range_to_range_is_said(files: Files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloading, "PART_BYTES", 50_000)
    name = f"{FOLDER}/consolidated.01.pth"
    whole = served(files, name)

    def give(asked: str, wanted: str) -> bytes | None:
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        if asked != name or not end or int(end) == 0:
            return None
        place = f"Content-Range: bytes {start}-{end}/{len(whole) + int(start)}"
        body = whole[int(start) : int(end) + 1]
        return answer(body, place, f"Content-Length: {len(body)}", status="206 Partial Content")

    files.raw = give
    with pytest.raises(ConversionError, match="while it came"):
        distconv.download([MODEL], tmp_path / "in", files.url)


def test_a_complete_download_stays_as_it_is_while_it_is_compared(files: Files, tmp_path: Path) -> None:
    """As wget or a browser leaves it; the process is killed when it reads the last shard."""
    target = tmp_path / "in"
    shutil.copytree(files.folder, target)
    before = {path: path.stat().st_ino for path in target.rglob("*") if path.is_file()}
    kept = str(target / FOLDER / "consolidated.01.pth")
    killed = run_killed(files, target, f"event == 'open' and arguments[0] == {kept!r}", signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {path: path.stat().st_ino for path in target.rglob("*.pth")}.items() <= before.items()
    assert not list(target.rglob("*.pth.partial*"))
    files.served_bytes = 0
    report = distconv.download([MODEL], target, files.url)
    assert report.checked_files == 4
    assert files.served_bytes < 50_000
    assert equal(files.folder, target)


KILLED = """
import os, sys
from distconv.verbs import download as downloading
from distconv.cli import main
downloading.PART_BYTES = 50_000
seen = 0
def hook(event, arguments):
    global seen
    if {condition}:
        seen += 1
        if seen == {turn}:
            os.kill(os.getpid(), {number})
sys.addaudithook(hook)
main(sys.argv[1:])
"""


def run_killed(
    files: Files, to: Path, condition: str, number: signal.Signals, turn: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run the command; at one of the calls of the system that fulfil the condition it gets a signal."""
    code = KILLED.format(condition=condition, turn=turn, number=int(number))
    command = [sys.executable, "-c", code, *COMMAND[3:], "--to", str(to), "--connections", "1", "--quiet"]
    return subprocess.run(
        command, input=files.url + "\n", capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


EACH = (pytest.mark.slow, pytest.mark.timeout(900))
TOUCHED = (
    "event in ('open', 'os.rename', 'os.remove', 'os.link', 'os.truncate') "
    "and '.pth' in str(arguments[0]) and str(arguments[0]).startswith({folder!r})"
)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(signal.SIGKILL, 11, id="killed"),
        pytest.param(signal.SIGINT, 17, id="interrupted"),
        pytest.param(signal.SIGKILL, 1, id="killed at each step", marks=EACH),
        pytest.param(signal.SIGINT, 1, id="interrupted at each step", marks=EACH),
    ],
)
@pytest.mark.parametrize(
    "left",
    [pytest.param(0.0, id="from nothing", marks=pytest.mark.slow), pytest.param(0.6, id="from a cut file")],
)
def test_stopped_at_any_step_it_fetches_little_again(
    files: Files, tmp_path: Path, number: signal.Signals, step: int, left: float
) -> None:
    """Each run is stopped one step of the file system later than the last, then run to its end."""
    shard = files.folder / FOLDER / "consolidated.00.pth"
    sizes = sum(path.stat().st_size for path in files.folder.rglob("*.pth"))
    cut = int(shard.stat().st_size * left)
    for turn in range(1, 1000, step):
        target = tmp_path / f"in{turn}"
        (target / FOLDER).mkdir(parents=True)
        if cut:
            (target / FOLDER / shard.name).write_bytes(shard.read_bytes()[:cut])
        files.served_bytes = 0
        files.asked.clear()
        ended = run_killed(files, target, TOUCHED.format(folder=str(target)), number, turn)
        if ended.returncode == 0:
            break
        assert ended.returncode == (-9 if number == signal.SIGKILL else 130), ended.stderr
        assert "Traceback" not in ended.stderr
        distconv.download([MODEL], target, files.url)
        assert equal(files.folder, target)
        small = sum(path.stat().st_size for path in files.folder.rglob("*") if path.suffix != ".pth")
        # One part that was not yet marked, and the bytes that tell sizes, come again.
        assert files.served_bytes <= sizes - cut + 50_000 + 2 * small + 100, turn
        shutil.rmtree(target)
    assert turn > 15


def test_what_wget_left_is_kept_through_a_refusal(files: Files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloading, "PART_BYTES", 10_000)
    name = f"{FOLDER}/consolidated.00.pth"
    content = served(files, name)
    target = tmp_path / "in" / name
    target.parent.mkdir(parents=True)
    target.write_bytes(content[: len(content) * 8 // 10])
    for allowed in (0, 1, 2):
        counted = iter(range(1000))
        files.refused = lambda asked, a=allowed, c=counted: asked == name and next(c) > a
        with pytest.raises(InputError, match="ask for a new one"):
            distconv.download([MODEL], tmp_path / "in", files.url, connections=1)
    files.refused = lambda _name: False
    files.served_bytes = 0
    files.asked.clear()
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")
    again = [wanted for asked, wanted in files.asked if asked == name and wanted != "bytes=0-0"]
    assert min(int(wanted[6:].partition("-")[0]) for wanted in again) >= len(content) * 8 // 10


@pytest.mark.parametrize("others", [False, True], ids=["its own", "another's"])
def test_a_cut_file_that_no_checklist_names_is_completed_where_it_can_prove_itself(
    files: Files, tmp_path: Path, others: bool
) -> None:
    name = f"{FOLDER}/consolidated.00.pth"
    (files.folder / FOLDER / "checklist.chk").unlink()
    content = served(files, name.replace("00", "01") if others else name)
    target = tmp_path / "in" / name
    target.parent.mkdir(parents=True)
    target.write_bytes(content[: len(content) * 8 // 10])
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")
    sizes = sum(path.stat().st_size for path in files.folder.rglob("*") if path.is_file())
    assert (files.served_bytes > sizes) == others


def test_a_wrong_whole_file_keeps_its_name_until_the_right_one_is_there(files: Files, tmp_path: Path) -> None:
    name = f"{FOLDER}/consolidated.00.pth"
    target = tmp_path / "in" / name
    target.parent.mkdir(parents=True)
    wrong = bytearray(served(files, name))
    wrong[-1] ^= 1
    target.write_bytes(wrong)
    counted = iter(range(1000))
    files.refused = lambda asked: asked == name and next(counted) > 0
    with pytest.raises(InputError, match="ask for a new one"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert target.read_bytes() == wrong
    files.refused = lambda _name: False
    files.corrupted = {name: 1}
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")


@pytest.mark.parametrize(
    "state", ['{"have": ' + "[" * 100_000, "[]", '{"have": [[0, 1e999]]}', "x" * 5_000_000]
)
def test_a_state_that_says_nothing_begins_anew(files: Files, tmp_path: Path, state: str) -> None:
    folder = tmp_path / "in" / FOLDER
    folder.mkdir(parents=True)
    (folder / "consolidated.00.pth.partial").write_bytes(b"x" * 1000)
    (folder / "consolidated.00.pth.partial.json").write_text(state)
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "in")


def test_few_files_are_open_at_once_and_none_is_left_open(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files.folder / FOLDER
    folder = files.folder / "Llama-3.1-405B-MP16"
    folder.mkdir()
    for number in range(16):
        shutil.copyfile(source / "consolidated.00.pth", folder / f"consolidated.{number:02}.pth")
    shutil.copyfile(source / "params.json", folder / "params.json")
    shutil.copyfile(files.folder / "tokenizer.model", folder / "tokenizer.model")
    counts = []
    write_at = PartialFile.write_at

    def count(file: PartialFile, offset_bytes: int, content: bytes) -> None:
        write_at(file, offset_bytes, content)
        counts.append(len(open_below(tmp_path / "in")))

    monkeypatch.setattr(PartialFile, "write_at", count)
    files.refused = lambda name: name.endswith("15.pth")
    for _ in range(3):
        with pytest.raises(InputError, match="ask for a new one"):
            distconv.download(["Llama-3.1-405B-MP16"], tmp_path / "in", files.url, connections=2)
        assert not open_below(tmp_path / "in")
    files.refused = lambda _name: False
    distconv.download(["Llama-3.1-405B-MP16"], tmp_path / "in", files.url, connections=2)
    assert not open_below(tmp_path / "in")
    assert 0 < max(counts) <= 8


def test_a_connection_that_answers_after_the_end_opens_nothing_again(tmp_path: Path) -> None:
    remote = Remote(size_bytes=8, tag="one", has_ranges=True)
    file = PartialFile(str(tmp_path / "shard"), remote, takes_cut=False)
    file.write_at(0, b"abcd")
    file.mark(0, 4)
    file.close()
    with pytest.raises(Interrupted):
        file.write_at(4, b"efgh")
    assert not open_below(tmp_path)
    again = PartialFile(str(tmp_path / "shard"), remote, takes_cut=False)
    assert again.missing(8) == [(4, 8)]


def open_below(folder: Path) -> list[str]:
    """Give the files below a folder that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(descriptor.readlink()))
    return [path for path in found if path.startswith(f"{folder}/")]


LINKED = [
    f"{FOLDER}/consolidated.01.pth",
    f"{FOLDER}/consolidated.01.pth.partial",
    f"{FOLDER}/consolidated.01.pth.partial.json",
    f"{FOLDER}/params.json",
    f"{FOLDER}/checklist.chk",
    "tokenizer.model",
    "tokenizer_checklist.chk",
    "LICENSE",
    FOLDER,
]


@pytest.mark.product
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nowhere"])
@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_through_links(files: Files, tmp_path: Path, name: str, there: bool) -> None:
    outside = tmp_path / "outside"
    if there and name == FOLDER:
        outside.mkdir()
    elif there:
        outside.write_bytes(b"precious")
    link = tmp_path / "in" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(OutputError) as caught:
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert str(caught.value).startswith(f"{link}: a link to {outside}; nothing is written through links")
    assert link.is_symlink()
    assert outside.exists() == there
    if there and name != FOLDER:
        assert outside.read_bytes() == b"precious"
    assert not files.asked


def test_all_that_is_in_the_way_is_told_of_at_once(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "in" / FOLDER
    (folder / "consolidated.00.pth").mkdir(parents=True)
    os.mkfifo(folder / "params.json")
    (folder / "consolidated.01.pth.partial").symlink_to("/dev/null")
    with pytest.raises(OutputError) as caught:
        distconv.download([MODEL], tmp_path / "in", files.url)
    lines = str(caught.value).splitlines()
    assert [line.partition("; nothing")[0] for line in lines] == [
        f"{folder}/params.json: a pipe or device is in the way, expected a file",
        f"{folder}/consolidated.00.pth: a folder is in the way, expected a file",
        f"{folder}/consolidated.01.pth.partial: a link to /dev/null",
    ]


def test_a_second_name_of_a_file_never_changes(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "in" / FOLDER
    folder.mkdir(parents=True)
    content = served(files, f"{FOLDER}/consolidated.00.pth")
    kept = tmp_path / "kept"
    for begun in (content[:1000], b"x" * len(content), content + b"x"):
        kept.write_bytes(begun)
        os.link(kept, folder / "consolidated.00.pth")
        distconv.download([MODEL], tmp_path / "in", files.url)
        assert kept.read_bytes() == begun
        assert equal(files.folder, tmp_path / "in")
        (folder / "consolidated.00.pth").unlink()
    kept.write_bytes(content[:1000])
    os.link(kept, folder / "consolidated.00.pth.partial")
    with pytest.raises(OutputError, match=r"consolidated\.00\.pth\.partial: one of 2 names of one file"):
        distconv.download([MODEL], tmp_path / "in", files.url)


def test_the_folder_that_is_named_may_be_a_link(files: Files, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "disk")
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert equal(files.folder, tmp_path / "disk")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", ".."])
def test_a_checklist_that_names_what_lies_outside_is_refused(files: Files, tmp_path: Path, name: str) -> None:
    with (files.folder / FOLDER / "checklist.chk").open("a") as file:
        file.write(f"{'0' * 32}  {name}\n")
    with pytest.raises(InputError, match="lies outside of its folder"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert not (tmp_path / "in" / FOLDER / "params.json").exists()


def test_only_what_a_killed_run_left_is_swept(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "in" / FOLDER
    folder.mkdir(parents=True)
    mine = [".thesis.tex.partial", ".params.json.mine.partial", ".notes.host-1-0123abcd.partial", "x.partial"]
    for name in (*mine, ".params.json.a-host.net-17-0123abcd.partial"):
        (folder / name).write_text("x")
    distconv.download([MODEL], tmp_path / "in", files.url)
    assert {path.name for path in folder.iterdir() if path.name.endswith(".partial")} == set(mine)


HEADERS = (
    "Content-Length", "Content-Range", "Content-Type", "Content-Encoding", "Transfer-Encoding", "ETag",
    "Last-Modified", "Location", "Retry-After", "Connection", "Set-Cookie", "\x1b[31mX", "",
)  # fmt: skip
VALUES = (
    "0", "1", "-1", "1e9", "99999999999999999999999", "٣", "bytes 0-0/1", "bytes 5-1/3", "bytes */0",
    "bytes 0-0/99999999999999999", "gzip", "br, deflate", "chunked", "identity", "text/html", "\x1b[2J",
    "http://[", "//", "file:///etc/passwd", "Thu, 01 Jan 1970 00:00:00 GMT", "x" * 5000, "\xff\xfe", "",
)  # fmt: skip


@pytest.mark.first(10)
@pytest.mark.parametrize(
    "seed", [*range(30), *(pytest.param(n, marks=pytest.mark.slow) for n in range(30, 300))]
)
def test_whatever_a_server_answers_ends_in_one_message(
    files: Files, tmp_path: Path, caplog, seed: int
) -> None:
    """Each answer about one file is a random one; nothing but what can be the file gets its name."""
    caplog.set_level(logging.DEBUG)
    noise = random.Random(seed)
    (files.folder / FOLDER / "checklist.chk").unlink()
    name = f"{FOLDER}/{noise.choice(['consolidated.00.pth', 'params.json', 'checklist.chk'])}"
    body = served(files, name.replace("checklist.chk", "params.json"))

    def give(asked: str, _wanted: str) -> bytes | None:
        if asked != name:
            return None
        status = noise.choice(
            ["200 OK", "206 Part", "206 \x1b[2J", "302 No", "304 No", "416 No", "299 ?", "500 No", "999 No"]
        )
        lines = [f"{noise.choice(HEADERS)}: {noise.choice(VALUES)}" for _ in range(noise.randrange(5))]
        head = "\r\n".join([f"HTTP/1.1 {status}", *lines]).encode("utf-8", "replace")
        content = noise.choice([b"", body, body[: len(body) // 2], gzip.compress(body), noise.randbytes(300)])
        return head + b"\r\n\r\n" + content

    files.raw = give
    with contextlib.suppress(InputError, ConversionError, OutputError):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert "S1gn4tUr3" not in caplog.text
    target = tmp_path / "in" / name
    assert not target.exists() or target.read_bytes() == body
