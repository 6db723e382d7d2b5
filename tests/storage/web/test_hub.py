"""INPUT on the Hugging Face Hub: the same folders as from local files, few requests, no secret anywhere."""

import json
import pickle
import posixpath
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from distconv.errors import ConversionError, InputError, UsageError
from distconv.storage.base import Storage, read_range
from distconv.storage.places import open_places, read_place
from tests.faults import read_data
from tests.hub_files import REPO, TOKEN, HubFiles
from tests.transformers_models import ModelSpec

URL = f"hf://{REPO}"
SECRETS = (TOKEN.encode(), b"Signature=")


def walk(storage: Storage, folder: str, below: str = "") -> dict[str, int | None]:
    """List all that is below a folder: sizes of files, None for folders."""
    found: dict[str, int | None] = {}
    for entry in storage.list_folder(posixpath.join(folder, below)):
        name = posixpath.join(below, entry.name)
        found[name] = None if entry.is_folder else entry.size_bytes
        if entry.is_folder:
            found |= walk(storage, folder, name)
    return found


def sum_tensors(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_the_hubs_files_become_the_same_folder_as_local_ones(
    hub: HubFiles, repository: Path, tmp_path: Path
) -> None:
    distconv.convert(repository, tmp_path / "local")
    hub.asked.clear()
    distconv.convert(URL, tmp_path / "out")
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")
    assert hub.served_bytes <= 1.02 * sum_tensors(tmp_path / "out")
    assert distconv.verify(tmp_path / "out", against=URL).ok
    assert distconv.check(URL).ok


def test_a_transformers_model_on_the_hub_goes_back_to_metas_layout(
    serve: Callable[[Path], HubFiles], transformers_model: Callable[[ModelSpec], Path], tmp_path: Path
) -> None:
    model = transformers_model(ModelSpec(files="chunks"))
    serve(model)
    distconv.convert(model, tmp_path / "local", to="meta", shards=2)
    distconv.convert(URL, tmp_path / "out", to="meta", shards=2)
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")


def test_the_token_goes_to_the_hub_alone_and_no_secret_is_kept(hub: HubFiles, tmp_path: Path) -> None:
    hub.private = True
    report = distconv.convert(URL, tmp_path / "out")
    own = [
        one for one in hub.asked if one.server == "hub" and not one.path.startswith("/api/agent-harnesses")
    ]
    assert {one.token for one in own} == {f"Bearer {TOKEN}"}
    assert {one.token for one in hub.asked if one.server == "bytes"} == {None}
    written = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    written += [repr(report).encode(), json.dumps(report.to_json()).encode()]
    assert not [secret for secret in SECRETS for content in written if secret in content]


def test_what_goes_to_other_processes_has_no_secret(hub: HubFiles) -> None:
    path = read_place(f"{URL}/original/params.json")
    storage = open_places(path)
    entry = storage.find(path)
    assert entry is not None
    pinned = storage.pinned({path: entry.stamp})
    assert pinned.find(path) == entry
    sent = pickle.dumps(pinned) + repr(pinned).encode()
    assert not [secret for secret in SECRETS if secret in sent]
    there = pickle.loads(sent)
    hub.asked.clear()
    with_pins = there.open(path)
    assert read_range(with_pins, 0, with_pins.size_bytes) == hub.read("original/params.json")


def test_a_file_is_looked_for_once_and_a_commit_is_listed_once(hub: HubFiles, tmp_path: Path) -> None:
    hub.commit = "d" * 40
    distconv.convert(URL, tmp_path / "out")
    heads = Counter(one.path for one in hub.asked if one.method == "HEAD")
    assert set(heads.values()) == {1}
    lists = [one.path for one in hub.asked if "/tree/" in one.path]
    assert len(lists) == len(set(lists)) > 1


def test_a_commits_folders_are_those_of_the_files(hub: HubFiles, repository: Path) -> None:
    place = read_place(URL)
    assert place == f"{URL}@{hub.commit}"
    found = walk(open_places(place), place)
    there = {
        path.relative_to(repository).as_posix(): None if path.is_dir() else path.stat().st_size
        for path in repository.rglob("*")
    }
    assert found == there


def test_a_branch_that_moves_on_changes_nothing(hub: HubFiles, repository: Path) -> None:
    place = read_place(URL)
    before, hub.commit = hub.commit, "e" * 40
    assert place == read_place(place) == f"{URL}@{before}"
    assert read_place(URL) == f"{URL}@{hub.commit}"


@pytest.mark.first(1)
@pytest.mark.parametrize("uses", [7, 30])
def test_a_url_that_ends_is_asked_for_again(
    hub: HubFiles, repository: Path, tmp_path: Path, uses: int
) -> None:
    distconv.convert(repository, tmp_path / "local")
    hub.uses = uses
    distconv.convert(URL, tmp_path / "out")
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")


def test_a_url_that_is_refused_at_once_is_not_asked_for_for_ever(hub: HubFiles, tmp_path: Path) -> None:
    hub.uses = 0
    with pytest.raises(ConversionError, match="refuses it \\(403\\)") as refused:
        distconv.convert(URL, tmp_path / "out")
    assert "Signature" not in str(refused.value)


def test_what_is_cut_goes_on_where_it_ended(
    hub: HubFiles, repository: Path, tmp_path: Path, sleeps: list[float]
) -> None:
    distconv.convert(repository, tmp_path / "local")
    hub.cuts = [1, 10, 100, 1000, 10_000, 7, 5000] * 4
    distconv.convert(URL, tmp_path / "out")
    assert not hub.cuts
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")
    assert hub.served_bytes <= 1.02 * sum_tensors(tmp_path / "out")


def test_a_hub_without_ranges_of_small_files_gives_them_whole(
    hub: HubFiles, repository: Path, tmp_path: Path
) -> None:
    distconv.convert(repository, tmp_path / "local")
    hub.has_ranges = False
    distconv.convert(URL, tmp_path / "out")
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")
    place = read_place(URL)
    reader = open_places(place).open(f"{place}/original/params.json")
    assert read_range(reader, 3, 20) == hub.read("original/params.json")[3:23]


@pytest.mark.first(1)
@pytest.mark.parametrize("headers", [{"Retry-After": "37"}, {"RateLimit": '"resolvers";r=0;t=37'}])
@pytest.mark.parametrize("server", ["hub", "bytes"])
def test_a_server_that_wants_to_be_left_alone_is(
    hub: HubFiles, tmp_path: Path, sleeps: list[float], server: str, headers: dict[str, str]
) -> None:
    hub.commit = "f" * 40
    hub.answers = [(server, 429, headers)]
    distconv.convert(URL, tmp_path / "out")
    assert not hub.answers
    assert 37 <= max(sleeps) < 39


def test_a_file_that_changes_in_the_same_commit_is_refused(hub: HubFiles, tmp_path: Path) -> None:
    name = "original/consolidated.01.pth"

    def change() -> None:
        # Its headers were read by then.
        if hub.served_bytes > 1_000_000:
            hub.changed.add(name)

    hub.on_bytes = change
    with pytest.raises(InputError, match=r"consolidated\.01\.pth: written, replaced or touched"):
        distconv.convert(URL, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_file_that_is_another_where_its_url_is_asked_for_again_is_refused(hub: HubFiles) -> None:
    place = read_place(f"{URL}/original/consolidated.00.pth")
    reader = open_places(place).open(place)
    hub.uses = 1
    assert read_range(reader, 0, 4) == b"PK\3\4"
    hub.changed.add("original/consolidated.00.pth")
    with pytest.raises(InputError, match="written, replaced or touched"):
        read_range(reader, 0, 4)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"{URL}@nobody", "no such branch, tag or commit"),
        ("hf://meta-llama/Llama-9", r"shows no meta-llama/Llama-9 \(404\)"),
        (f"{URL}/elsewhere", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_said(hub: HubFiles, url: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as found:
        distconv.inspect(url)
    assert TOKEN not in str(found.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://Llama-2-7b", "expected hf://ORG/REPO"),
        ("hf://datasets/some/thing", "a dataset, expected a model's repository"),
        ("hf://buckets/some/thing", "a bucket, expected a model's repository"),
        ("ftp://host/model", "no place that distconv knows"),
    ],
)
def test_what_is_no_repository_of_a_model_is_wrong_usage(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        distconv.inspect(url)


def test_a_gated_repository_says_where_to_ask_and_what_to_send(
    hub: HubFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(InputError, match=f"gated.*ask for access at {hub.endpoint}/{REPO}.*hf auth login"):
        distconv.inspect(URL)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(InputError, match="account of this token, which has no access"):
        distconv.inspect(URL)


def test_a_private_repository_is_not_told_from_none(hub: HubFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private = True
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(InputError, match=r"shows no .* \(401\); .*the token may not see it"):
        distconv.inspect(URL)


def test_the_token_is_also_found_where_hf_auth_login_leaves_it(
    hub: HubFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private = True
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert distconv.inspect(URL).found["family"]


def test_who_is_offline_is_told_so(
    hub: HubFiles, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConversionError, match=r"HF_HUB_OFFLINE .* is set"):
        distconv.inspect(URL)


@pytest.mark.parametrize("endpoint", ["localhost:8080", "http://host:port", "http://me:secret@host", ""])
def test_an_address_of_a_hub_that_is_none_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    with pytest.raises(UsageError, match="HF_ENDPOINT: expected http"):
        distconv.inspect(URL)


def test_a_token_that_no_header_can_hold_is_told(hub: HubFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_\u00e4secret")
    with pytest.raises(ConversionError, match=r"HF_TOKEN.* has a sign that no token has") as caught:
        distconv.inspect(URL)
    assert "secret" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_named(hub: HubFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("distconv.storage.web.hub_api.FIRST_PATIENCE_SECONDS", 0.0)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9 cannot be reached.*HF_ENDPOINT"):
        distconv.inspect(URL)


@pytest.mark.parametrize("output", [URL, f"{URL}@main/x", "https://example.com/model"])
def test_a_url_that_is_only_read_is_no_output(repository: Path, output: str) -> None:
    with pytest.raises(UsageError, match=r"is only read; .*distconv push"):
        distconv.convert(repository, output)
