"""A stand-in on the loopback for what the Hugging Face Hub's HTTP API does when a model is uploaded."""

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback import Handler, serving_with

TOKEN = "hf_" + "t" * 34


@dataclass
class Repository:
    """What was uploaded."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """All repositories, and what goes wrong."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    failing_commits: int = 0
    on_put: Callable[[], object] = lambda: None
    """Called when a large file has arrived."""
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(Handler, BaseHTTPRequestHandler):
    hub: Hub

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def give(self, content: object, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self) -> bool:
        given = self.headers.get("Authorization", "")
        if given == f"Bearer {TOKEN}":
            return False
        self.body() if self.command != "HEAD" and "Content-Length" in self.headers else None
        self.give({"error": "Invalid username or password."}, 401)
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.refuse():
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            found = self.hub.repositories["/".join(parts[2:4])]
            self.give({"id": "/".join(parts[2:4]), "private": found.private, "siblings": [], "tags": []})
            return
        repository = self.hub.repositories["/".join(parts[:2])]
        there = "/".join(parts[4:]) in repository.files
        more = {"X_Repo_Commit": "0" * 40, "ETag": '"1"'} if there else {"X_Error_Code": "EntryNotFound"}
        self.give({}, 200 if there else 404, **more)

    def do_PUT(self) -> None:
        name = self.path.strip("/").split("/")[-1]
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == name
        self.hub.blobs[name] = content
        self.hub.puts.append(name)
        self.hub.on_put()
        self.give({})

    def do_POST(self) -> None:
        if self.refuse():
            return
        content = self.body()
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            self.create(json.loads(content))
        elif parts == ["api", "validate-yaml"]:
            self.give({"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            rows = json.loads(content)["files"]
            self.give(
                {
                    "files": [
                        {"path": row["path"], "uploadMode": self.mode(row["path"]), "shouldIgnore": False}
                        for row in rows
                    ]
                }
            )
        elif parts[-1] == "batch":
            rows = json.loads(content)["objects"]
            self.give({"transfer": "basic", "objects": [self.place(row) for row in rows]})
        elif parts[4:5] == ["commit"]:
            self.commit("/".join(parts[2:4]), content)
        else:
            self.give({"error": f"not known: {self.path}"}, 400)

    def create(self, wanted: dict[str, object]) -> None:
        name = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
        there = name in self.hub.repositories
        if not there:
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.hub.repositories[name] = Repository(private)
        self.give({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": "1"}, 409 if there else 200)

    def mode(self, path: str) -> str:
        return "lfs" if path.endswith(".safetensors") else "regular"

    def place(self, row: dict[str, object]) -> dict[str, object]:
        if row["oid"] in self.hub.blobs:
            return row
        return row | {"actions": {"upload": {"href": f"{self.hub.endpoint}/put/{row['oid']}"}}}

    def commit(self, name: str, content: bytes) -> None:
        if self.hub.failing_commits:
            self.hub.failing_commits -= 1
            self.give({"error": "busy"}, 400)
            return
        repository = self.hub.repositories[name]
        for line in content.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                repository.commits.append(value["summary"])
            elif row["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.blobs[value["oid"]]
        self.give(
            {
                "success": True,
                "commitOid": "1" * 40,
                "commitUrl": f"{self.hub.endpoint}/{name}/commit/{'1' * 40}",
            }
        )


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve for the block."""
    with serving_with(_Handler, hub=hub) as hub.port:
        yield hub
