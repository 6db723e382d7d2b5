"""A recorder of what is done to files, and what a power cut after each step could leave of a folder.

Calls go through to the real system. A file's content is safe from its ``fsync`` on, a name, or that it
is gone, from its folder's; before that a power cut may leave either.
"""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

Call = tuple[str, str]
"""What was called and on which path: the new one where there are two."""


@dataclass(eq=False)
class Content:
    """A file's bytes, whatever its names."""

    age: str
    unsafe_bytes: int = 0


@dataclass
class Name:
    """What may stand under a name: what did when its folder was last made safe, and what did since."""

    states: list[Content | None]

    @property
    def may_be_there(self) -> bool:
        """Whether a power cut could leave a file of this name."""
        return any(state is not None for state in self.states)

    @property
    def safe_age(self) -> str | None:
        """The age of the content that surely stands here, whole; None where it may be another or none."""
        ages = {state.age if state is not None and not state.unsafe_bytes else None for state in self.states}
        return ages.pop() if len(ages) == 1 else None


@dataclass
class Recorder:
    """Passes on calls of ``os`` one at a time, remembers them, and calls ``watch`` after each."""

    calls: list[Call] = field(default_factory=list)
    names: dict[str, Name] = field(default_factory=dict)
    watch: Callable[["Recorder"], None] = lambda _recorder: None
    _open: dict[int, str] = field(default_factory=dict)
    _written: dict[int, Content] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def install(self, patch: pytest.MonkeyPatch, present: Iterable[Path] = ()) -> None:
        """Record from now on; ``present`` are files that are there, and safe."""
        for path in present:
            self.names[str(path)] = Name([Content("before")])
        for name in ("open", "close", "pwrite", "fsync", "link", "replace", "rename", "unlink"):
            patch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def paths(self, call: str) -> list[str]:
        """Give the paths of all calls of one kind, in order."""
        return [path for name, path in self.calls if name == call]

    def _recorded(self, name: str, real: Callable[..., int | None]) -> Callable[..., int | None]:
        def call(*arguments: object, **options: object) -> int | None:
            with self._lock:
                result = real(*arguments, **options)
                path = self._note(name, arguments, result)
                self.calls.append((name, path))
                self.watch(self)
            return result

        return call

    def _note(self, name: str, arguments: tuple[object, ...], result: int | None) -> str:
        """Carry what was called over into names and contents; gives the path."""
        first = arguments[0]
        if name == "open":
            return self._note_open(str(first), int(arguments[1]), int(result or 0))  # type: ignore[call-overload]
        if isinstance(first, int):
            path = self._open.pop(first, "") if name == "close" else self._open.get(first, "")
            self._note_descriptor(name, first, path, result)
            return path
        if name == "unlink":
            self._set(str(first), None)
            return str(first)
        old, new = str(first), str(arguments[1])
        self._set(new, self.names[old].states[-1] if old in self.names else None)
        if name != "link":
            self._set(old, None)
        return new

    def _note_open(self, path: str, flags: int, descriptor: int) -> str:
        self._open[descriptor] = path
        if flags & os.O_CREAT:
            self._written[descriptor] = Content("new")
            self._set(path, self._written[descriptor])
        else:
            self._written.pop(descriptor, None)
        return path

    def _note_descriptor(self, name: str, descriptor: int, path: str, result: int | None) -> None:
        content = self._written.get(descriptor)
        if name == "pwrite" and content is not None:
            content.unsafe_bytes += result or 0
        elif name == "fsync" and content is not None:
            content.unsafe_bytes = 0
        elif name == "fsync":
            for other, found in self.names.items():
                if os.path.dirname(other) == path.rstrip("/"):
                    found.states = found.states[-1:]

    def _set(self, path: str, content: Content | None) -> None:
        self.names.setdefault(path, Name([None])).states.append(content)
