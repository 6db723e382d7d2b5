"""Write down what a model's tensors are, so that others are compared with them without having both at hand."""

from dataclasses import dataclass

from distconv.humanize import format_count, format_size
from distconv.moving.executor import Cluster
from distconv.moving.progress import Progress
from distconv.moving.progress_default import take_progress
from distconv.output.manifest import Manifest, is_manifest_head
from distconv.storage.base import PathLike, write_small
from distconv.storage.given import refuse_other
from distconv.storage.places import read_place, read_small_output
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.reports import Report
from distconv.verbs.running import choose_cluster, name_for_workers
from distconv.verbs.whole_tensors import digest_tensors, open_tensors


@dataclass(frozen=True, slots=True, repr=False)
class ManifestReport(Report):
    """What was written where."""

    source: str
    path: str
    manifest: Manifest
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "source": self.source,
            "manifest": self.path,
            "tensors": len(self.manifest.tensors),
            "elements": self.manifest.elements,
            "size_bytes": self.manifest.size_bytes,
            "sha256": self.manifest.digest,
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        found = self.manifest
        tensors = format_count(len(found.tensors), "tensor")
        sizes = f"{found.elements:,} values, {format_size(found.size_bytes)}"
        return (f"{self.path}: {tensors}, {sizes}, {found.digest}",)


def manifest(
    source: PathLike,
    path: PathLike,
    *,
    workers: int | None = None,
    address: str | None = None,
    family: str | None = None,
    instruct: bool | None = None,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
    like: PathLike | None = None,
    dialect: str | None = None,
    fill_from_like: bool = False,
    endpoint_url: str | None = None,
    progress: Progress | None = None,
) -> ManifestReport:
    """Read all of ``source`` once, and write the digests of its tensors, by Transformers' names, to the file ``path``.

    ``source`` is a Transformers folder of any architecture, or a trainer's checkpoint or one of Meta's, of which the
    tensors are told that a conversion would write. The file is the same for any number of ``workers`` and size of
    files; its schema is distconv/output/schemas/manifest.json. Takes ``workers`` and ``address`` of Ray, what is said
    of ``source``, and ``progress``, as ``convert`` does. Raises InputError where it is no whole model, UsageError for
    what was asked, ConversionError for a cluster that failed.
    """
    options = Options(
        source=read_place(source), output=read_small_output(path), family=family, instruct=instruct,
        tokenizer=read_place_or_none(tokenizer), params=read_place_or_none(params),
        like=read_place_or_none(like), dialect=dialect, fill_from_like=fill_from_like, endpoint_url=endpoint_url,
        cluster=Cluster(address, workers),
    )  # fmt: skip
    options = name_for_workers(options)
    storage = open_storage(options)
    refuse_other(storage, options.output, is_manifest_head, "manifest")
    cluster = choose_cluster(options)
    found = open_tensors(storage, options, cluster)
    made = digest_tensors(storage, found.tensors, take_progress(progress), cluster)
    write_small(storage, options.output, made.to_bytes())
    return ManifestReport(options.source, options.output, made, found.notes)
