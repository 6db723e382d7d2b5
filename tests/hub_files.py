"""A stand-in on the loopback for what the Hugging Face Hub does when files are read, bytes' server included.

The hub lists a commit in pages, answers for a large file with a redirect to another server, signed for so many
answers, and gives small files itself, after a redirect of its own.
"""

import abc
import contextlib
import functools
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import Handler, serving_with

TOKEN = "hf_" + "r" * 34
REPO = "meta-llama/Llama-2-7b"
PAGE = 3
"""So many entries a page of a tree has."""


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    server: str
    method: str
    path: str
    wanted: str
    """The header Range."""
    token: str | None


@dataclass
class HubFiles:
    """One repository, and what goes wrong."""

    folder: Path
    private: bool = False
    gated: bool = False
    commit: str = "a" * 40
    has_ranges: bool = True
    """Whether the hub itself knows ranges of the small files."""
    uses: int = 1 << 30
    """So many answers a signed URL is good for."""
    answers: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    """Given in place of the next answers of the server "hub" or "bytes"."""
    cuts: list[int] = field(default_factory=list)
    """After so many bytes of a body the connection is cut, one entry for each answer about weights."""
    changed: set[str] = field(default_factory=set)
    """Files whose content is another by now, in the same commit."""
    on_bytes: Callable[[], object] = lambda: None
    """Called before each answer of the bytes' server."""
    asked: list[Asked] = field(default_factory=list)
    signatures: dict[str, int] = field(default_factory=dict)
    """How many answers each is still good for."""
    served_bytes: int = 0
    hub_port: int = 0
    bytes_port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.hub_port}"

    def is_large(self, name: str) -> bool:
        return name.endswith((".pth", ".safetensors", ".model"))

    def read(self, name: str) -> bytes:
        return _read(self.folder / name, is_changed=name in self.changed)

    def version(self, name: str) -> str:
        return _version(self.folder / name, is_changed=name in self.changed, is_large=self.is_large(name))

    def sign(self, name: str) -> str:
        with self.lock:
            signature = f"secret{len(self.signatures)}"
            self.signatures[signature] = self.uses
        return f"http://127.0.0.1:{self.bytes_port}/repos/{name}?Signature={signature}"

    def list_tree(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir():
                rows.append({"type": "directory", "path": name, "oid": "b" * 40, "size": 0})
                continue
            row: dict[str, object] = {"type": "file", "path": name, "size": path.stat().st_size}
            if self.is_large(name):
                version = self.version(name)
                row |= {"oid": "c" * 40, "lfs": {"oid": version, "size": row["size"], "pointerSize": 134}}
            else:
                row["oid"] = self.version(name)
            rows.append(row)
        return rows


@functools.lru_cache(maxsize=64)
def _read(path: Path, *, is_changed: bool) -> bytes:
    content = path.read_bytes()
    return content[:-1] + bytes([content[-1] ^ 1]) if is_changed else content


@functools.lru_cache(maxsize=64)
def _version(path: Path, *, is_changed: bool, is_large: bool) -> str:
    content = _read(path, is_changed=is_changed)
    if is_large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(Handler, BaseHTTPRequestHandler, abc.ABC):
    server_name_here = ""
    hub: HubFiles

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        name = self.server_name_here
        with self.hub.lock:
            wanted = self.headers.get("Range", "")
            self.hub.asked.append(Asked(name, self.command, self.path, wanted, token))
            found = next((place for place, row in enumerate(self.hub.answers) if row[0] == name), None)
            answer = None if found is None else self.hub.answers.pop(found)
        if answer is not None:
            self.give(b"{}", answer[1], answer[2])
        else:
            self.serve()

    @abc.abstractmethod
    def serve(self) -> None:
        """Answer as the server does that this is."""

    def give(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def give_file(self, name: str, tag: str, *, has_ranges: bool) -> None:
        content = self.hub.read(name)
        start, end = self.begin_file(len(content), tag, has_ranges=has_ranges)
        if self.command == "HEAD":
            return
        body = memoryview(content)[start:end]
        with self.hub.lock:
            cut = self.hub.cuts.pop(0) if self.hub.cuts and name.endswith(".pth") and len(body) > 1 else None
            self.hub.served_bytes += len(body[:cut]) if self.hub.is_large(name) else 0
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)


class _HubHandler(_Handler):
    server_name_here = "hub"

    def serve(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        may_see = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        known = {f"/api/models/{REPO}", f"/{REPO}", f"/api/resolve-cache/models/{REPO}"}
        if not any(path.startswith(f"{place}/") for place in known) or (self.hub.private and not may_see):
            self.give(b"{}", 404 if may_see else 401, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self.give_revision(path.rpartition("/")[2])
        elif path.startswith(f"/api/models/{REPO}/tree/{self.hub.commit}"):
            self.give_page(int(parse_qs(parts.query).get("cursor", ["0"])[0]))
        elif path.startswith(f"/{REPO}/resolve/{self.hub.commit}/"):
            if self.hub.gated and not may_see:
                headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}
                self.give(b"", 401, headers)
            else:
                self.resolve(path.partition(f"{self.hub.commit}/")[2])
        elif path.startswith(f"/api/resolve-cache/models/{REPO}/"):
            name = path.partition(f"{self.hub.commit}/")[2]
            self.give_file(name, self.hub.version(name), has_ranges=self.hub.has_ranges)
        else:
            self.give(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})

    def give_revision(self, revision: str) -> None:
        if revision not in {"main", self.hub.commit}:
            self.give(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
            return
        self.give(json.dumps({"id": REPO, "sha": self.hub.commit}).encode())

    def give_page(self, first: int) -> None:
        rows = self.hub.list_tree()
        headers = {"Content-Type": "application/json"}
        if first + PAGE < len(rows):
            place = f"{self.hub.endpoint}/api/models/{REPO}/tree/{self.hub.commit}"
            headers["Link"] = f'<{place}?recursive=True&cursor={first + PAGE}>; rel="next"'
        self.give(json.dumps(rows[first : first + PAGE]).encode(), 200, headers)

    def resolve(self, name: str) -> None:
        if not (self.hub.folder / name).is_file():
            self.give(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        version = self.hub.version(name)
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{version}"'}
        if self.hub.is_large(name):
            size = str((self.hub.folder / name).stat().st_size)
            headers |= {"X-Linked-Etag": f'"{version}"', "X-Linked-Size": size}
            self.give(b"", 302, headers | {"Location": self.hub.sign(name)})
        else:
            place = f"/api/resolve-cache/models/{REPO}/{self.hub.commit}/{name}"
            self.give(b"", 307, headers | {"Location": place})


class _BytesHandler(_Handler):
    server_name_here = "bytes"

    def serve(self) -> None:
        self.hub.on_bytes()
        parts = urlsplit(self.path)
        name = unquote(parts.path).removeprefix("/repos/")
        signature = parse_qs(parts.query).get("Signature", [""])[0]
        with self.hub.lock:
            left = self.hub.signatures.get(signature, 0)
            self.hub.signatures[signature] = left - 1
        if left <= 0 or "Authorization" in self.headers:
            self.give(b"<Error><Code>AccessDenied</Code></Error>", 403)
            return
        self.give_file(name, f"bytes-{self.hub.version(name)}", has_ranges=True)


@contextlib.contextmanager
def serving(hub: HubFiles) -> Iterator[HubFiles]:
    """Serve for the block, by two servers."""
    with (
        serving_with(_HubHandler, hub=hub) as hub.hub_port,
        serving_with(_BytesHandler, hub=hub) as hub.bytes_port,
    ):
        yield hub
