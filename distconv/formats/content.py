"""What a file is, told from its first bytes: for messages that name the real trouble."""

from collections.abc import Callable
from functools import partial

_HTML = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")


def _starts(prefixes: tuple[bytes, ...], head: bytes) -> bool:
    return head.lstrip().lower().startswith(prefixes)


def _is_text(head: bytes) -> bool:
    # The last character may be cut.
    text = head.decode(errors="ignore")
    return (
        bool(text)
        and len(head) - len(text.encode()) < 4
        and all(sign.isprintable() or sign.isspace() for sign in text)
    )


_KINDS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda head: not head, "an empty file"),
    (lambda head: not head.strip(b"\0"), "a file of zeros, as a broken download leaves"),
    (partial(_starts, _HTML), "an HTML or XML page, as an expired download link gives"),
    (
        partial(_starts, (b"version https://git-lfs",)),
        "a git-LFS pointer; run `git lfs pull` to get the file",
    ),
    (lambda head: head.startswith(b"\x1f\x8b"), "a gzip archive; unpack it first"),
    (lambda head: head[257:262] == b"ustar", "a tar archive; unpack it first"),
    (lambda head: head[8:9] == b"{" and head[:1] != b"{", "a safetensors file"),
    (lambda head: head.startswith(b"GGUF"), "a GGUF file"),
    (lambda head: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), "a zip archive"),
    (lambda head: head[:1] == b"\x80", "a pickle"),
    (partial(_starts, (b"{", b"[")), "JSON text"),
    (_is_text, "text"),
)

HEAD_BYTES = 512
"""How many first bytes tell."""


def describe_content(head: bytes) -> str:
    """Say what a file with these first bytes is, as the end of a sentence."""
    for matches, description in _KINDS:
        if matches(head):
            return description
    return f"unknown content (first bytes {head[:8].hex(' ')})"
