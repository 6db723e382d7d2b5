"""S3's XML: answers, errors, and the one document that clients send."""

from collections.abc import Iterable
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from tests.object_store.connection import Answer
from tests.object_store.errors import StoreError

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

# An element's name, and its text or its children
Element = tuple[str, "str | int | bool | Iterable[Element]"]


def grow(parent: ET.Element, children: Iterable[Element]) -> None:
    """Add children to an element."""
    for name, content in children:
        element = ET.SubElement(parent, name)
        if isinstance(content, bool):
            element.text = str(content).lower()
        elif isinstance(content, str | int):
            element.text = str(content)
        else:
            grow(element, content)


def document(name: str, children: Iterable[Element], *, namespace: str = NAMESPACE) -> bytes:
    """Write a document."""
    root = ET.Element(name, {"xmlns": namespace} if namespace else {})
    grow(root, children)
    written: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
    return written


def answer(name: str, children: Iterable[Element], headers: dict[str, str] | None = None) -> Answer:
    """Answer with a document."""
    return Answer(200, {"Content-Type": "application/xml"} | (headers or {}), document(name, children))


def refusal(error: StoreError, resource: str, status: int | None = None) -> Answer:
    """Answer with an error, which may stand under another status."""
    children = [("Code", error.code), ("Message", error.message), ("Resource", resource), ("RequestId", "0")]
    text = b"" if error.status == 304 else document("Error", children, namespace="")
    return Answer(status or error.status, {"Content-Type": "application/xml"}, text)


def timestamp(seconds: float) -> str:
    """Write a time as S3 does in XML."""
    return (
        datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(seconds % 1 * 1000):03}Z"
    )


def read_parts(text: bytes) -> list[dict[str, str]]:
    """Read what a completion consists of: for each part its elements' texts."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise StoreError("MalformedXML", f"the list of parts: {error}") from error
    parts = [
        {element.tag.rpartition("}")[2]: (element.text or "").strip() for element in part}
        for part in root
        if part.tag.rpartition("}")[2] == "Part"
    ]
    if not parts or any(not part.get("PartNumber", "").isdecimal() or "ETag" not in part for part in parts):
        raise StoreError("MalformedXML", "expected Part elements with PartNumber and ETag")
    return parts
