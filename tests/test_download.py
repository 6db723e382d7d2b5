"""``distconv download`` against a real server that cuts, corrupts, refuses and dawdles."""

import base64
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
from llama_models import sku_list

import distconv
from distconv import downloading
from distconv.errors import ConversionError, InputError, OutputError, UsageError
from distconv.remote.link import read_link
from distconv.remote.partial import merge
from distconv.remote.releases import RELEASES, find_release
from tests.checkpoints import Spec, write_checklist
from tests.downloads import SECRET, Files, serving

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
    monkeypatch.setattr("distconv.remote.server.READ_SECONDS", 0.3)
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


def test_a_file_that_changed_on_the_server_is_not_mixed(files: Files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloading, "PART_BYTES", 50_000)
    (files.folder / FOLDER / "checklist.chk").unlink()
    files.cuts = [20_000] + [0] * 100
    with pytest.raises(ConversionError):
        distconv.download([MODEL], tmp_path / "in", files.url, connections=1)
    files.cuts = []
    shard = files.folder / FOLDER / "consolidated.00.pth"
    shard.write_bytes(bytes(reversed(shard.read_bytes())))
    report = distconv.download([MODEL], tmp_path / "in", files.url)
    assert (tmp_path / "in" / FOLDER / shard.name).read_bytes() == shard.read_bytes()
    assert report.notes == (f"{FOLDER}/checklist.chk is not served: sizes are compared, MD5 cannot be",)


def test_a_full_disk_is_told_before_anything_large_is_fetched(
    files: Files, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("distconv.storage.LocalStorage.free_bytes", lambda *_: 1000)
    with pytest.raises(OutputError, match=r"are to come, 1.0 kB are free; free some space"):
        distconv.download([MODEL], tmp_path / "in", files.url)
    assert {wanted for name, wanted in files.asked if name.endswith(".pth")} == {"bytes=0-0"}


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
    for name in ("8B", "30B", "", "llama"):
        with pytest.raises(UsageError, match=r"model .*: expected one of "):
            find_release(name)
    every = [name.lower() for release in RELEASES for name in {release.name, release.short or release.name}]
    assert len(every) == len(set(every))


def test_folders_and_shards_are_those_of_metas_own_list() -> None:
    theirs = {}
    for model in sku_list.all_registered_models():
        if model.model_family.value in {"llama3", "llama3_1", "llama3_2", "llama3_3", "safety"}:
            served = sku_list.llama_meta_net_info(model)
            theirs[served.folder] = set(served.files)
    newer = [release for release in RELEASES if release.name.startswith(("Llama-3", "Meta-", "Llama-Guard"))]
    assert len(newer) > 15
    for release in newer:
        folder = next(remote for remote in release.remotes if remote in theirs)
        assert theirs[folder] == {"checklist.chk", "params.json", "tokenizer.model", *release.shard_names}


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
