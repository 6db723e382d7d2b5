"""What tests tell a running store, and ask of it: JSON under ``/-/``, a name that no bucket can have."""

import dataclasses
import glob
import hashlib
import json
import os
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from tests.object_store.bodies import Body, made_up, of_file
from tests.object_store.connection import Answer, Head
from tests.object_store.faults import Fault, Faults
from tests.object_store.records import Records
from tests.object_store.state import State, Stored

PREFIX = "/-/"


def put(state: State, bucket: str, key: str, body: Body) -> None:
    """Put an object that no client has put: without checksum, its ETag a name of its own."""
    state.buckets.setdefault(bucket, {})
    etag = hashlib.md5(f"{bucket}/{key} {body.size_bytes}".encode(), usedforsecurity=False).hexdigest()
    with state.locked(bucket, key) as objects:
        state.put(objects, key, Stored(body, f'"{etag}"', state.now(), {}, None))


def share(state: State, folder: str, bucket: str, prefix: str) -> int:
    """Put the files of a folder and of those below as objects without copying them; give how many."""
    names = glob.iglob("**", root_dir=folder, recursive=True, include_hidden=True)
    files = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    for name in files:
        put(state, bucket, prefix + name, of_file(os.path.join(folder, name)))
    return len(files)


def change(state: State, told: dict[str, Any]) -> None:
    """Change settings, and leave the others as they are."""
    if "denied" in told:
        told["denied"] = tuple(tuple(rule) for rule in told["denied"])
    state.settings = dataclasses.replace(state.settings, **told)


def obey(state: State, faults: Faults, records: Records, head: Head, text: bytes) -> Answer:
    """Do what a control request says: its path names it, its body has the arguments."""
    told = json.loads(text or b"{}")
    verbs: dict[str, Callable[[], object]] = {
        "bucket": lambda: state.buckets.setdefault(told["name"], {}) and None,
        "change": lambda: change(state, told),
        "clear_faults": faults.clear,
        "cpu_s": time.process_time,
        "fault": lambda: faults.add(Fault(**told)),
        "make_up": lambda: put(state, told["bucket"], told["key"], made_up(told["size_bytes"])),
        "release": lambda: faults.release(told["gate"]),
        "requests": lambda: records.give(clear=told["clear"]),
        "settings": lambda: dataclasses.asdict(state.settings),
        "share": lambda: share(state, told["folder"], told["bucket"], told["prefix"]),
        "wait_held": lambda: faults.wait_held(told["gate"], told["count"], told["limit_s"]),
    }
    name = urllib.parse.urlsplit(head.target).path.removeprefix(PREFIX)
    try:
        answer, status = verbs[name](), 200
    except (KeyError, TypeError, ValueError) as error:
        answer, status = f"{name}: {error!r}", 400
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())
