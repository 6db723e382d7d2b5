"""A card of what was verified, for people (Markdown) and for programs (JSON, see ``output/schemas/card.json``)."""

import json
import platform
import shlex
from collections.abc import Iterator
from importlib import metadata

from distconv.formats.plain_json import is_document
from distconv.humanize import format_count, format_size
from distconv.verbs.verification import Verification
from distconv.version import VERSION

_FORMAT = "distconv-card"
_TITLE = "# Verification of "
_LIBRARIES = ("numpy", "safetensors", "torch", "transformers", "xxhash")


def make_verification_card(report: Verification, path: str) -> bytes:
    """Make the card: Markdown where the path ends so, else JSON."""
    if path.lower().endswith((".md", ".markdown")):
        return ("\n".join(_write(report)) + "\n").encode()
    return (json.dumps(_collect(report), indent=1) + "\n").encode()


def is_card(head: bytes) -> bool:
    """Whether a file that begins so is a card."""
    return head.startswith(_TITLE.encode()) or is_document(head, _FORMAT)


def _collect(report: Verification) -> dict[str, object]:
    found = report.manifest
    return {
        "format": _FORMAT,
        "version": 1,
        **{key: value for key, value in report.to_json().items() if key != "sha256"},
        "command": _name_command(report),
        "versions": _find_versions(),
        "manifest": None if found is None else found.to_json(),
    }


def _find_versions() -> dict[str, str]:
    """Give the versions of all that had a part in it."""
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    return {"distconv": VERSION, "python": platform.python_version(), **libraries}


def _name_command(report: Verification) -> str:
    """Give what looks at the same again."""
    against = () if report.source is None else ("--against", report.source)
    return shlex.join(("distconv", "verify", report.output, *against))


def _write(report: Verification) -> Iterator[str]:
    found = report.manifest
    yield f"{_TITLE}{_escape(report.output)}"
    yield ""
    found_wrong = format_count(len(report.differences), "finding")
    yield f"**{'Whole' if report.ok else found_wrong}**: {report.examined}."
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield f"| tensors | {report.tensors:,} |"
    if found is not None:
        odd = [listed.tally for listed in found.tensors.values()]
        yield f"| values | {found.elements:,} |"
        yield f"| bytes | {found.size_bytes:,} ({format_size(found.size_bytes)}) |"
        yield f"| NaN | {sum(tally.nan for tally in odd):,} |"
        yield f"| infinite | {sum(tally.infinite for tally in odd):,} |"
        yield f"| tensors that are zero | {sum(tally.zero for tally in odd):,} |"
        yield f"| SHA-256 of the manifest's tensors | `{found.digest}` |"
    if report.source is not None:
        cast = f", cast to {' and '.join(report.cast_to)}" if report.cast_to else ""
        yield f"| compared with | {_escape(report.source)}{cast} |"
    versions = (f"{name} {version}" for name, version in _find_versions().items())
    yield f"| versions | {', '.join(versions)} |"
    yield ""
    yield from (f"- {_escape(words)}" for words in report.differences)
    yield from (f"- note: {_escape(words)}" for words in report.notes)
    yield ""
    yield "```"
    yield _name_command(report)
    yield "```"


def _escape(text: str) -> str:
    """Keep text, which a stranger may have written, from being more than text in Markdown."""
    return "".join(sign if sign.isalnum() or sign in " .,:;()-_/'" else f"&#{ord(sign)};" for sign in text)
