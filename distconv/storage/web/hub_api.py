"""What the Hugging Face Hub tells of repositories, asked by its own library: as it finds endpoint and token, so do we."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from distconv.errors import UsageError
from distconv.storage.base import Entry
from distconv.storage.http.address import split_address
from distconv.storage.http.retry import persist
from distconv.storage.web.client import FIRST_PATIENCE_SECONDS, PATIENCE_SECONDS
from distconv.storage.web.hub_errors import explain, find_token
from distconv.storage.web.hub_paths import HubPath, make_path, split

LIBRARY = "distconv"
_SECONDS = 15.0

Result = TypeVar("Result")
Tree = Mapping[str, Mapping[str, Entry]]
"""What each folder of a repository holds, by names; "" is the repository."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a file's bytes are asked for now."""

    url: str
    """A secret where it is signed."""
    size_bytes: int | None
    version: str
    """The SHA-256 of a large file, the git blob's id of a small one."""


def find_endpoint() -> str:
    """Give the hub's address, from HF_ENDPOINT where that is set; UsageError where it is none, or has a password in it."""
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    parts = split_address(endpoint)
    if parts is None or "@" in parts.netloc:
        raise UsageError("HF_ENDPOINT: expected http(s)://HOST[:PORT] without a user or a password")
    return endpoint


def pin(path: str) -> str:
    """Name the commit that a path's revision is now; UsageError where it is no path of a model's repository."""
    if split(path) is not None:
        return path
    # Before its library is imported, which does not bear another one.
    endpoint = find_endpoint()
    from huggingface_hub import HfApi, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    try:
        given = parse_hf_uri(path)
    except HfUriError as error:
        raise UsageError(f"{path}: expected hf://ORG/REPO[@REVISION][/FOLDER] ({error})") from None
    if given.type != "model":
        raise UsageError(
            f"{path}: a {given.type}, expected a model's repository: hf://ORG/REPO[@REVISION][/FOLDER]"
        )
    api = HfApi(endpoint=endpoint, library_name=LIBRARY)
    found = ask(
        path,
        endpoint,
        lambda: api.model_info(given.id, revision=given.revision or "main", expand=["sha"], timeout=_SECONDS),
    )
    return make_path(given.id, str(found.sha), given.path_in_repo.strip("/"))


def read_tree(endpoint: str, place: HubPath) -> Tree:
    """List all of a commit, which stays as it is, once a process."""
    key = endpoint, place.repo, place.commit
    with _lock:
        if key not in _trees:
            _trees[key] = _list(endpoint, place)
        return _trees[key]


_trees: dict[tuple[str, str, str], Tree] = {}
_lock = threading.Lock()


def _list(endpoint: str, place: HubPath) -> Tree:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint, library_name=LIBRARY)
    listed = ask(
        make_path(place.repo, place.commit, ""),
        endpoint,
        lambda: list(api.list_repo_tree(place.repo, recursive=True, revision=place.commit)),
    )
    tree: dict[str, dict[str, Entry]] = {"": {}}
    for one in listed:
        found = HubPath(place.repo, place.commit, one.path)
        if isinstance(one, RepoFile):
            version = one.blob_id if one.lfs is None else one.lfs.sha256
            entry = Entry(found.name, False, one.size, version, f"{one.size} {version}")
        else:
            entry = Entry(found.name, True, 0, "")
            tree.setdefault(one.path, {})
        tree.setdefault(found.parent, {})[found.name] = entry
    return tree


def resolve(endpoint: str, path: str, place: HubPath) -> Resolved:
    """Ask where a file's bytes are now."""
    from huggingface_hub import get_hf_file_metadata

    url = f"{endpoint}/{place.repo}/resolve/{place.commit}/{quote(place.inner)}"
    found = ask(
        path,
        endpoint,
        lambda: get_hf_file_metadata(url, timeout=_SECONDS, library_name=LIBRARY, endpoint=endpoint),
    )
    return Resolved(found.location, found.size, found.etag or "")


def make_own_headers() -> Mapping[str, str]:
    """Give the headers with which the hub itself, and nobody else, is asked; they are a secret."""
    token = find_token()
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def ask(path: str, endpoint: str, call: Callable[[], Result]) -> Result:
    """Ask the hub by its library, again where what fails may pass; raises what ``hub_errors`` makes of it."""

    def attempt() -> Result:
        try:
            found = call()
        except Exception as error:  # noqa: BLE001  its transport is its own affair
            raise explain(path, endpoint, error) from None
        _answered.add(endpoint)
        return found

    return persist(attempt, PATIENCE_SECONDS if endpoint in _answered else FIRST_PATIENCE_SECONDS)


_answered: set[str] = set()
