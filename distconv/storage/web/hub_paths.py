"""Names of places on the Hugging Face Hub: ``hf://ORG/REPO@COMMIT/FOLDER/FILE``.

What a person gives may name a branch, a tag or nothing after the ``@``; ``hub_api.pin`` makes it a commit's, so
that all that is read is of one commit, whoever reads it.
"""

import posixpath
import re
from dataclasses import dataclass

SCHEME = "hf://"
_PINNED = re.compile(r"hf://([^/@]+/[^/@]+)@([0-9a-f]{40})(?:/(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HubPath:
    """A file or folder in a commit of a model's repository."""

    repo: str
    commit: str
    inner: str
    """The path in the repository; empty for all of it."""

    @property
    def parent(self) -> str:
        """The folder that it is in, in the repository."""
        return posixpath.dirname(self.inner)

    @property
    def name(self) -> str:
        """Its last part."""
        return posixpath.basename(self.inner)


def split(path: str) -> HubPath | None:
    """Take a path apart; None where it names no commit of a repository."""
    match = _PINNED.fullmatch(path)
    if match is None:
        return None
    return HubPath(match[1], match[2], (match[3] or "").strip("/"))


def make_path(repo: str, commit: str, inner: str) -> str:
    """Put a path together."""
    return f"{SCHEME}{repo}@{commit}" + (f"/{inner}" if inner else "")


def normalise(path: str) -> str:
    """Give one spelling to all paths that mean the same; above a repository there is nothing."""
    found = split(path)
    if found is None:
        return path
    inner = posixpath.normpath(f"/{found.inner}").lstrip("/")
    return make_path(found.repo, found.commit, inner) + ("" if inner else "/")
