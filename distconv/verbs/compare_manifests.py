"""Whether two models are the same, tensor by tensor, by digests that know nothing of files."""

from collections.abc import Callable, Iterator

from distconv.output.findings import Finding
from distconv.output.manifest import Listed, Manifest

Locate = Callable[[str], str | None]
"""Says where the first element of a tensor lies that differs, if somebody can look."""


def compare_manifests(found: Manifest, expected: Manifest, source: str, locate: Locate) -> Iterator[Finding]:
    """List every tensor that is missing, foreign, or differs from the source's.

    One that is stored in one of the two only is right where the other one has its data under another name, as
    tied embeddings have.
    """
    for name in sorted(expected.tensors.keys() | found.tensors.keys()):
        own, other = found.tensors.get(name), expected.tensors.get(name)
        if own is None or other is None:
            words = _describe_single(name, found, expected, source)
        else:
            words = _compare(own, other, source, locate)
        if words is not None:
            yield Finding(words, absent=own is None)


def _describe_single(name: str, found: Manifest, expected: Manifest, source: str) -> str | None:
    one = expected.tensors.get(name) or found.tensors[name]
    for manifest in (found, expected):
        if any(_is_copy(one, twin) for twin in manifest.tensors.values()):
            continue
        return f"{name}: missing, {source} has it" if name in expected.tensors else f"{name}: not in {source}"
    return None


def _is_copy(one: Listed, other: Listed) -> bool:
    return (one.shape, one.dtype, one.digest) == (other.shape, other.dtype, other.digest)


def _compare(own: Listed, other: Listed, source: str, locate: Locate) -> str | None:
    if own.shape != other.shape:
        return f"{own.name}: shape {own.shape}, {source} has {other.shape}"
    if own.dtype != other.dtype:
        return f"{own.name}: stored as {own.dtype}, {source} has {other.dtype}"
    if own.digest == other.digest:
        return None
    place = locate(own.name)
    return f"{own.name}: {f'{place} differs' if place else 'its data differs'} from {source}"
