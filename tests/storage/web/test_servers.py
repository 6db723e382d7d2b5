"""INPUT on a web server that lists nothing: names are tried, and only what cannot change unseen is read."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import distconv
from distconv.errors import ConversionError, InputError, UsageError
from distconv.storage.base import read_range
from distconv.storage.places import open_places, read_local, read_output, read_place
from distconv.storage.web.client import get_client
from tests.checkpoints import write_checkpoint
from tests.downloads import Files, serving
from tests.faults import read_data
from tests.fp8_checkpoints import quantize_checkpoint
from tests.storage.web.conftest import SPEC
from tests.storage.web.test_hub import sum_tensors
from tests.transformers_models import ModelSpec

Serve = Callable[[Path], tuple[Files, str]]


@pytest.fixture
def web() -> Iterator[Serve]:
    """Give a function that serves a folder, and gives its URL."""
    with ExitStack() as running:
        get_client()._found.clear()

        def start(folder: Path) -> tuple[Files, str]:
            files = running.enter_context(serving(Files(folder, secret="")))
            return files, f"http://127.0.0.1:{files.port}"

        yield start
        get_client().close()


@pytest.fixture
def model(tmp_path: Path, sentencepiece_file: Path) -> Path:
    return write_checkpoint(tmp_path / "model", SPEC, sentencepiece_file)


def test_a_servers_files_become_the_same_folder_as_local_ones(
    web: Serve, model: Path, tmp_path: Path
) -> None:
    files, url = web(tmp_path)
    distconv.convert(model, tmp_path / "local")
    read = files.served_bytes
    distconv.convert(f"{url}/model", tmp_path / "out")
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")
    assert files.served_bytes - read <= 1.02 * sum_tensors(tmp_path / "out")
    assert distconv.verify(tmp_path / "out", against=f"{url}/model").ok
    assert distconv.check(f"{url}/model/").ok


def test_scales_beside_the_shards_are_found_and_read_in_few_requests(
    web: Serve, tmp_path: Path, sentencepiece_file: Path
) -> None:
    spec = replace(SPEC, layers=4)
    quantize_checkpoint(write_checkpoint(tmp_path / "model", spec, sentencepiece_file), spec.layers)
    files, url = web(tmp_path)
    distconv.convert(tmp_path / "model", tmp_path / "local", dtype="bfloat16")
    distconv.convert(f"{url}/model", tmp_path / "out", dtype="bfloat16")
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")
    asked = sum(name.startswith("model/fp8_scales_0") for name, _range in files.asked)
    assert 0 < asked <= 12, "looks, headers twice, and a window"


def test_a_server_may_be_the_folder_itself(web: Serve, model: Path, tmp_path: Path) -> None:
    files, url = web(model)
    assert distconv.inspect(url).found == distconv.inspect(f"{url}/consolidated.00.pth").found | {
        "folder": url
    }
    assert ("consolidated.00.pth", "bytes=0-0") in files.asked


def test_files_that_an_index_names_are_found(
    web: Serve, transformers_model: Callable[[ModelSpec], Path], tmp_path: Path
) -> None:
    model = transformers_model(ModelSpec(files="chunks"))
    _files, url = web(model)
    distconv.convert(model, tmp_path / "local", to="meta", shards=2)
    distconv.convert(url, tmp_path / "out", to="meta", shards=2)
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")


@pytest.mark.parametrize("there", [1, 7, 8, 9, 16])
def test_shards_are_tried_to_the_first_that_is_missing(web: Serve, tmp_path: Path, there: int) -> None:
    for number in (*range(there), there + 1):
        (tmp_path / f"consolidated.{number:02d}.pth").write_bytes(b"x")
    _files, url = web(tmp_path)
    expected = tuple(f"consolidated.{number:02d}.pth" for number in range(there))
    assert open_places(url).list_names(url) == expected


def test_a_server_with_a_page_for_every_name_is_told(web: Serve, tmp_path: Path) -> None:
    files, url = web(tmp_path)
    page = b'HTTP/1.1 206 Here\r\nETag: "page"\r\nContent-Range: bytes 0-0/9\r\nContent-Length: 1\r\n\r\n<'
    # A test must end.
    files.raw = lambda name, _wanted: (
        page if "consolidated.999" not in name else b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
    )
    with pytest.raises(InputError, match="does the server answer with a page for every name"):
        open_places(url).list_folder(f"{url}/model")


def test_a_folder_that_holds_nothing_known_is_none(web: Serve, tmp_path: Path) -> None:
    _files, url = web(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        distconv.inspect(f"{url}/model")


@pytest.mark.first(1)
@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_a_file_without_a_strong_etag_is_refused(web: Serve, model: Path, tmp_path: Path, tag: str) -> None:
    files, url = web(tmp_path)
    header = f"ETag: {tag}\r\n" if tag else ""
    answer = f"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\nContent-Range: bytes 0-0/9\r\n{header}\r\nx"
    files.raw = lambda _name, _wanted: answer.encode()
    with pytest.raises(InputError, match="expected a strong ETag"):
        distconv.inspect(f"{url}/model")


@pytest.mark.first(1)
@pytest.mark.parametrize("after", [2, 15])
def test_a_file_that_changes_is_refused(web: Serve, model: Path, tmp_path: Path, after: int) -> None:
    """While headers are read, or later."""
    files, url = web(tmp_path)
    name = "model/consolidated.01.pth"

    def change(asked: str, wanted: str) -> None:
        """Write the file anew once some of it was read; the stand-in makes its ETag of the time."""
        read = [one for one in files.asked if one[0] == name and one[1] != "bytes=0-0"]
        if asked == name and wanted != "bytes=0-0" and len(read) == after:
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes())

    files.raw = change
    with pytest.raises(InputError, match=r"consolidated\.01\.pth: written, replaced or touched"):
        distconv.convert(f"{url}/model", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_large_file_is_not_read_whole_for_a_range(web: Serve, tmp_path: Path) -> None:
    (tmp_path / "small.json").write_bytes(bytes(range(200)))
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(17 << 20)
    files, url = web(tmp_path)
    files.has_ranges = False
    storage = open_places(url)
    with_whole = storage.open(f"{url}/small.json")
    assert read_range(with_whole, 10, 20) == bytes(range(10, 30))
    with pytest.raises(InputError, match="comes whole where a range of it was asked for"):
        read_range(storage.open(f"{url}/large.pth"), 10, 20)


def test_a_server_that_wants_a_login_says_so(web: Serve, model: Path) -> None:
    files, url = web(model)
    files.raw = lambda _name, _wanted: b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(InputError, match=r"wants a login \(401\)"):
        distconv.inspect(url)


def test_a_redirect_is_followed_and_remembered(web: Serve, model: Path, tmp_path: Path) -> None:
    there, target = web(model)
    here, url = web(tmp_path / "nothing")

    def lead(name: str, _wanted: str) -> bytes:
        return f"HTTP/1.1 302 Found\r\nLocation: {target}/{name}\r\nContent-Length: 0\r\n\r\n".encode()

    here.raw = lead
    reader = open_places(url).open(f"{url}/consolidated.00.pth")
    asked = len(here.asked)
    for _time in range(5):
        assert read_range(reader, 0, 4) == b"PK\3\4"
    assert len(here.asked) - asked == 1
    assert len(there.asked) == 6


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://user:secret@host/model", "without a user, a password or a query"),
        ("https://host/model?Signature=secret", "without a user, a password or a query"),
        ("https://huggingface.co/meta-llama/Llama-2-7b/tree/main", "give hf://meta-llama/Llama-2-7b"),
        ("https://[host/model", "a URL that is none"),
    ],
)
def test_urls_that_cannot_be_read_are_refused_and_not_repeated(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        read_place(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["s3://", "S3://models/out", "s3:/models/out", "hf:me/model", "gs:///", "HF://me/model"]
)
@pytest.mark.parametrize("read", [read_place, read_output, read_local])
def test_what_was_meant_as_a_url_is_no_folder_of_this_host(read: Callable[[str], str], name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: expected {name.partition(':')[0].lower()}:// in small"):
        read(name)
    assert read(f"./{name}") == f"./{name}"


def test_a_url_is_asked_for_as_it_is_given_but_for_what_no_url_has(web: Serve, tmp_path: Path) -> None:
    files, url = web(tmp_path)
    open_places(url).find(f"{url}/a b%20\u00e4.json")
    assert files.asked[-1][0] == "a%20b%20%C3%A4.json"


@pytest.mark.parametrize("location", ["ftp://host/x", "http://[x", "http://host:port/", "http://ho st/x", ""])
def test_a_redirect_to_what_is_no_address_is_told_and_not_shown(
    web: Serve, tmp_path: Path, location: str
) -> None:
    files, url = web(tmp_path)
    files.raw = lambda _name, _wanted: (
        f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    with pytest.raises(
        (ConversionError, InputError), match=r"leads (to what is no address|from one place)"
    ) as refused:
        open_places(url).open(f"{url}/params.json")
    assert not location or location not in str(refused.value)
