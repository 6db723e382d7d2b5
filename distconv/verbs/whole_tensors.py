"""A model's whole tensors by Transformers' names, whichever format has them, and what their data is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from distconv.formats.safetensors.catalog import read_transformers_catalog
from distconv.formats.safetensors.folder import find_transformers_files
from distconv.formats.safetensors.names import keep_names
from distconv.layout.files import OutputTensor
from distconv.layout.units import Examination, Unit, split_examination
from distconv.moving.compare import target_of_view
from distconv.moving.executor import Cluster, forget
from distconv.moving.job import Found, Job, Receipt
from distconv.moving.progress import Progress, SilentProgress
from distconv.moving.running import run_units
from distconv.output.descriptions import telling_unfinished
from distconv.output.manifest import Listed, Manifest, make_manifest
from distconv.storage.base import Storage
from distconv.verbs.checkpoint import decide, plan_conversion
from distconv.verbs.from_trained import note_twins
from distconv.verbs.kinds import Kind, tell_kind
from distconv.verbs.options import Options
from distconv.verbs.questions import Asked
from distconv.verbs.sources import open_meta
from distconv.verbs.trained_input import find_trained


@dataclass(frozen=True, slots=True)
class WholeTensors:
    """What a model holds, from its headers alone."""

    source: str
    tensors: Sequence[OutputTensor]
    notes: tuple[str, ...]


def open_tensors(storage: Storage, options: Options, cluster: Cluster | None = None) -> WholeTensors:
    """Read INPUT's headers: a Transformers folder of any architecture, a trainer's checkpoint, or one of Meta's.

    What only data can tell of a checkpoint is looked up. InputError where there is no whole model.
    """
    with telling_unfinished(storage, options.source):
        return _open_tensors(storage, options, cluster)


def _open_tensors(storage: Storage, options: Options, cluster: Cluster | None) -> WholeTensors:
    kind = tell_kind(storage, options)
    if kind is Kind.TRAINED:
        trained = find_trained(storage, options).read(storage)
        return WholeTensors(
            options.source, trained.make_targets(None), (*trained.notes, *note_twins(trained))
        )
    if kind is Kind.TRANSFORMERS:
        files = find_transformers_files(storage, options.source)
        catalog = read_transformers_catalog(storage, files, keep_names)
        tensors = tuple(target_of_view(view) for view in catalog.tensors.values())
        return WholeTensors(options.source, tensors, (*files.notes, *catalog.notes))
    checkpoint = open_meta(storage, options)
    decisions, decided = decide(checkpoint, Asked(partial(_ask, storage, cluster)))
    plan = plan_conversion(checkpoint, decisions)
    return WholeTensors(options.source, plan.tensors, (*checkpoint.notes, *decided))


def _ask(storage: Storage, cluster: Cluster | None, units: Sequence[Unit]) -> Sequence[Receipt]:
    return run_units(Job(storage, "", "cpu"), units, cluster, SilentProgress(), forget)


def digest_tensors(
    storage: Storage, tensors: Sequence[OutputTensor], progress: Progress, cluster: Cluster | None = None
) -> Manifest:
    """Read all tensors once, by lanes or by a cluster's workers, and list what their data is."""
    # Neighbours in a file are read by one worker, so that it goes through the file.
    ordered = sorted(tensors, key=_find_place)
    units = split_examination(Examination("tensors", tuple(ordered)))
    receipts = run_units(Job(storage, "", "cpu"), units, cluster, progress, forget)
    listed: list[Listed] = []
    for unit, receipt in zip(units, receipts, strict=True):
        found = receipt.found or Found()
        found.check()
        rows = zip(unit.tensors, found.tensors, found.tallies, strict=True)
        listed += (Listed(one.name, one.shape, one.dtype, digest, tally) for one, digest, tally in rows)
    return make_manifest(listed)


def _find_place(tensor: OutputTensor) -> tuple[str, int]:
    first = min(tensor.copies, key=lambda copy: (copy.region.path, copy.region.offset_bytes), default=None)
    return ("", 0) if first is None else (first.region.path, first.region.offset_bytes)


def cast_tensors(tensors: Sequence[OutputTensor], manifest: Manifest) -> tuple[OutputTensor, ...]:
    """Let tensors be read as the floating-point types that others of their names have."""

    def cast(tensor: OutputTensor) -> OutputTensor:
        other = manifest.tensors.get(tensor.name)
        if other is None or not (other.dtype.is_float and tensor.dtype.is_float):
            return tensor
        return replace(tensor, dtype=other.dtype)

    return tuple(map(cast, tensors))
