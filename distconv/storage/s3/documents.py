"""The XML that S3 speaks in its answers, and wants of a completion."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of an unfinished upload."""

    number: int
    etag: str
    size_bytes: int
    crc64nvme: str | None
    """In base64, where the store keeps it."""


def parse(body: bytes) -> ET.Element | None:
    """Parse an answer, without its namespaces; None where it is no XML. Blanks may stand before it."""
    try:
        root = ET.fromstring(body.strip())  # noqa: S314  expat bounds what entities may grow to
    except ET.ParseError:
        return None
    for element in root.iter():
        element.tag = re.sub(r"^\{.*\}", "", element.tag)
    return root


def find_error(body: bytes) -> str | None:
    """Give the code of an error, if it is one."""
    root = parse(body) if body else None
    if root is None or root.tag != "Error":
        return None
    return text(root, "Code") or "unknown"


def text(element: ET.Element, name: str) -> str:
    """Give the text of a child; nothing where it has none."""
    return (element.findtext(name) or "").strip()


def keys(root: ET.Element, path: str) -> Iterator[tuple[str, ET.Element]]:
    """Give each element with the key that it names; prefixes too."""
    is_quoted = text(root, "EncodingType") == "url"
    for element in root.iterfind(path):
        key = element.findtext("Key") or element.findtext("Prefix") or ""
        yield unquote_plus(key) if is_quoted else key, element


def read_key(root: ET.Element, name: str) -> str:
    """Give a key that stands in an answer by itself."""
    found = root.findtext(name) or ""
    return unquote_plus(found) if text(root, "EncodingType") == "url" else found


def parse_parts(root: ET.Element) -> Iterator[StoredPart]:
    """Read a page of a list of parts."""
    for part in root.iterfind("Part"):
        yield StoredPart(
            int(text(part, "PartNumber")),
            text(part, "ETag"),
            int(text(part, "Size") or 0),
            text(part, "ChecksumCRC64NVME") or None,
        )


def make_completion(parts: Sequence[StoredPart]) -> bytes:
    """Say of which parts an object consists."""
    rows = (
        f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>"
        + (f"<ChecksumCRC64NVME>{part.crc64nvme}</ChecksumCRC64NVME>" if part.crc64nvme else "")
        + "</Part>"
        for part in parts
    )
    return (
        '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{''.join(rows)}</CompleteMultipartUpload>"
    ).encode()
