"""What OUTPUT's tensors are compared with where that has them by Transformers' names: a folder, or a manifest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from distconv.formats.written import Headers
from distconv.layout.dtypes import DType, name_dtypes
from distconv.layout.files import OutputTensor
from distconv.moving.compare import find_difference
from distconv.moving.executor import Cluster
from distconv.moving.progress import Progress
from distconv.output.contents import take_written
from distconv.output.findings import Finding
from distconv.output.manifest import is_manifest_head, make_manifest, read_manifest
from distconv.output.proof import Proof
from distconv.output.targets import TRANSFORMERS, Target
from distconv.storage.base import Storage
from distconv.storage.given import read_head
from distconv.verbs.compare_manifests import compare_manifests
from distconv.verbs.options import Options
from distconv.verbs.whole_tensors import cast_tensors, digest_tensors, open_tensors


@dataclass(frozen=True, slots=True)
class Comparison:
    """How OUTPUT is compared with INPUT, whose headers are read."""

    compare: Callable[[Proof, Progress], list[Finding]]
    """Lists what of OUTPUT's tensors, as they were looked at, is missing, foreign, or differs from INPUT's."""
    stored: Mapping[str, DType] = field(default_factory=dict)
    """INPUT's types, by OUTPUT's names; what is not among them is never cast."""

    def list_casts(self, headers: Headers) -> list[str]:
        """Name the types of OUTPUT's to which INPUT's tensors are cast before they are compared."""
        written = (pair for held in headers.values() for pair in held.items())
        return name_dtypes(
            one.dtype for name, one in written if self.stored.get(name, one.dtype) != one.dtype
        )


def is_manifest_file(storage: Storage, path: str) -> bool:
    """Whether a file is a manifest, told by its first bytes."""
    return is_manifest_head(read_head(storage, path))


def against_manifest(
    storage: Storage, options: Options, target: Target, cluster: Cluster | None
) -> Comparison:
    """Compare with a manifest; shards of Meta's are read as the tensors that a conversion would make of them."""
    expected = read_manifest(storage, options.source)
    whole = None
    if target is not TRANSFORMERS:
        whole = open_tensors(storage, replace(options, source=options.output), cluster)

    def compare(proof: Proof, progress: Progress) -> list[Finding]:
        if whole is None:
            found = make_manifest(proof.list_tensors())
        else:
            found = digest_tensors(storage, whole.tensors, progress, cluster)
        return list(compare_manifests(found, expected, options.source, lambda _name: None))

    return Comparison(compare)


def against_tensors(storage: Storage, options: Options, cluster: Cluster | None) -> Comparison:
    """Compare with another folder's tensors, in whatever files they are, cast to OUTPUT's types."""
    source = open_tensors(storage, options, cluster)

    def compare(proof: Proof, progress: Progress) -> list[Finding]:
        found = make_manifest(proof.list_tensors())
        tensors = cast_tensors(source.tensors, found)
        expected = digest_tensors(storage, tensors, progress, cluster)
        theirs = {tensor.name: tensor for tensor in tensors}
        seen = {name: one.written for (_file, name), one in (proof.data.tensors or {}).items()}

        def locate(name: str) -> str | None:
            return _locate(storage, take_written(name, seen[name]), theirs[name])

        return list(compare_manifests(found, expected, options.source, locate))

    return Comparison(compare, {tensor.name: tensor.dtype for tensor in source.tensors})


def _locate(storage: Storage, ours: OutputTensor, theirs: OutputTensor) -> str | None:
    """Say where the first element is that differs, by its coordinates."""
    place = find_difference(storage, ours, theirs)
    if place is None:
        return None
    coordinates = []
    for extent in reversed(ours.shape):
        place, at = divmod(place, extent)
        coordinates.append(at)
    return f"element ({', '.join(map(str, reversed(coordinates)))})"
