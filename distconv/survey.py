"""What a checkpoint is and what its conversion would be: the verbs that move no data."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from distconv.errors import InputError, UsageError
from distconv.families.choose import Choice, choose_family
from distconv.families.evidence import Facts
from distconv.families.llama import EMBEDDING, IGNORED, OUTPUT, RULES
from distconv.families.rules import Dimensions, Match, describe_foreign_tensors, match_rules, read_dimensions
from distconv.local import LocalStorage
from distconv.planning.plan import (
    Decisions,
    Plan,
    TargetTensor,
    describe_large_tensors,
    make_plan,
    make_targets,
)
from distconv.progress import format_count, format_size
from distconv.remarks import note_buffers, note_copies, note_differences, note_params
from distconv.source.catalog import Catalog, TensorView, read_catalog
from distconv.source.files import SourceFiles, find_files
from distconv.source.layouts import ShardFiles
from distconv.source.params import Params, read_params
from distconv.storage import Storage
from distconv.tables import Table
from distconv.target.tokenizer import Vocabulary, read_vocabulary
from distconv.tensors import DTYPES, STORABLE, DType

PathLike = str | os.PathLike[str]
DTYPE_CHOICES = ("auto", "float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that is known of INPUT without reading a tensor's data."""

    files: SourceFiles
    params: Params
    catalog: Catalog
    dimensions: Dimensions
    vocabulary: Vocabulary | None
    choice: Choice
    matches: tuple[Match, ...]
    notes: tuple[str, ...]

    def match(self, source: str) -> Match | None:
        """Find the match of a source tensor, if it is there."""
        return next((match for match in self.matches if match.source == source), None)


def read_checkpoint(
    storage: Storage,
    source: str,
    *,
    family: str | None = None,
    instruct: bool = False,
    tokenizer: str | None = None,
    params_path: str | None = None,
) -> Checkpoint:
    """Find the files, read all headers, tell the family and match every tensor.

    Raises InputError with all that is wrong of one kind at once.
    """
    files = find_files(storage, source, tokenizer, params_path)
    params = read_params(storage, files.params)
    catalog = read_catalog(storage, files.shards)
    shards = (ShardFiles(number, shard.paths) for number, shard in enumerate(catalog))
    files = replace(files, shards=tuple(shards))
    foreign = describe_foreign_tensors(catalog)
    if foreign is not None:
        raise InputError(f"{files.folder}: {foreign}")
    dimensions = read_dimensions(catalog, params, RULES)
    vocabulary = None if files.tokenizer is None else read_vocabulary(storage, files.tokenizer)
    facts = Facts(
        params=params,
        dimensions=dimensions,
        dtype=catalog.views(EMBEDDING)[0].dtype,
        tokenizer=None if vocabulary is None else vocabulary.kind,
        folder=files.folder,
        tied_storage=_share_storage(catalog),
        tokenizer_size=None if vocabulary is None else vocabulary.size,
    )
    choice = choose_family(facts, family, instruct=instruct)
    optional = frozenset({OUTPUT}) if choice.may_tie else frozenset()
    matches = match_rules(RULES, IGNORED, catalog, dimensions, optional, _ABSENCE)
    notes = (
        *files.notes,
        *catalog.notes,
        *note_buffers(catalog),
        *note_copies(catalog),
        *choice.assumptions,
        *note_differences(params, dimensions, vocabulary),
        *note_params(params, choice),
    )
    return Checkpoint(files, params, catalog, dimensions, vocabulary, choice, matches, notes)


_ABSENCE = {OUTPUT: 'where the output is the embedding, let params.json say "weight_tying": true'}


def _share_storage(catalog: Catalog) -> bool:
    views = [catalog.views(name) for name in (EMBEDDING, OUTPUT)]
    return bool(views[1]) and all(is_same_storage(*pair) for pair in zip(*views, strict=False))


def is_same_storage(left: TensorView, right: TensorView) -> bool:
    """Whether two names stand for one view of one storage: proof that they are equal."""
    keys = ((view.record, view.dtype, view.offset, view.shape, view.strides) for view in (left, right))
    return next(keys) == next(keys)


def is_disproved(left: TensorView, right: TensorView) -> bool:
    """Whether checksums of two whole records show that the tensors differ, with no data read."""
    whole = all(
        view.record.crc32
        and view.offset == 0
        and math.prod(view.shape) * view.dtype.size_bytes == view.record.size_bytes
        for view in (left, right)
    )
    return whole and left.strides == right.strides and left.record.crc32 != right.record.crc32


def kv_pairs(checkpoint: Checkpoint) -> tuple[tuple[TensorView, TensorView], ...]:
    """Pairs of ranks that may hold one key head twice, as the 405B in 16 parts does."""
    heads, rows = checkpoint.dimensions.kv_heads, checkpoint.dimensions.head_dim
    keys = [match.views for match in checkpoint.matches if match.gather.heads == "key"]
    if heads != _DOUBLED or any(view.shape[0] != rows for views in keys for view in views):
        return ()
    return tuple((views[rank], views[rank + 1]) for views in keys for rank in range(0, _DOUBLED, 2))


_DOUBLED = 16

EqualTargets = Callable[[TargetTensor, TargetTensor], bool]
EqualViews = Callable[[TensorView, TensorView], bool]


def decide(
    checkpoint: Checkpoint, equal_targets: EqualTargets | None = None, equal_views: EqualViews | None = None
) -> tuple[Decisions, tuple[str, ...]]:
    """Decide what only data can tell.

    With the two comparisons it is proved; without them what is published is assumed, unless
    the headers alone tell, and the notes say so.
    """
    tied, tied_notes = _decide_tied(checkpoint, equal_targets)
    replication, kv_notes = _decide_replication(checkpoint, equal_views)
    return Decisions(tied, replication), (*tied_notes, *kv_notes)


def _decide_tied(checkpoint: Checkpoint, equal_targets: EqualTargets | None) -> tuple[bool, tuple[str, ...]]:
    embedding, output = checkpoint.match(EMBEDDING), checkpoint.match(OUTPUT)
    if not checkpoint.choice.may_tie or embedding is None:
        return False, ()
    if output is None or _share_storage(checkpoint.catalog):
        return True, ()
    same_cut = embedding.gather == output.gather
    if same_cut and any(map(is_disproved, embedding.views, output.views)):
        return False, (_UNTIED,)
    if equal_targets is None:
        return True, ("embedding and output are taken as equal (tied), as published; convert compares them",)
    untied = Decisions(tied=False, kv_replication=1)
    targets = make_targets((embedding, output), checkpoint.dimensions.head_dim, untied)
    if equal_targets(*targets):
        return True, ()
    return False, (_UNTIED,)


_UNTIED = "embedding and output differ: lm_head.weight is kept, and the config is not tied"


def _decide_replication(
    checkpoint: Checkpoint, equal_views: EqualViews | None
) -> tuple[int, tuple[str, ...]]:
    pairs = kv_pairs(checkpoint)
    if not pairs:
        return 1, ()
    kept = f"all {_DOUBLED} key heads are kept: they are not stored in pairs"
    if any(is_disproved(*pair) for pair in pairs):
        return 1, (kept,)
    if equal_views is None:
        return 2, (
            f"each key head is taken as stored twice ({_DOUBLED // 2} are written), as published; convert compares them",
        )
    if all(equal_views(*pair) for pair in pairs):
        return 2, (f"each key head is stored twice; {_DOUBLED // 2} are written",)
    return 1, (kept,)


def plan_conversion(
    checkpoint: Checkpoint, decisions: Decisions, dtype: str = "auto", max_shard_size: int | None = None
) -> Plan:
    """Plan a checkpoint's conversion; UsageError for options that make no sense."""
    if dtype not in DTYPE_CHOICES:
        raise UsageError(f"dtype {dtype}: expected one of {', '.join(DTYPE_CHOICES)}")
    if max_shard_size is not None and max_shard_size <= 0:
        raise UsageError(f"max shard size {max_shard_size}: expected a positive number of bytes")
    wanted = None if dtype == "auto" else DTYPES[dtype]
    targets = make_targets(checkpoint.matches, checkpoint.dimensions.head_dim, decisions, wanted)
    return make_plan(targets, decisions, max_shard_size)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint is, and how that is known."""

    checkpoint: Checkpoint

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, and what looks odd."""
        return self.checkpoint.notes

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        checkpoint = self.checkpoint
        choice, sizes = checkpoint.choice, checkpoint.dimensions
        return {
            "family": choice.family.name,
            "title": choice.family.title,
            "instruct": choice.instruct,
            "evidence": list(choice.evidence),
            "assumptions": list(choice.assumptions),
            "folder": checkpoint.files.folder,
            "shards": [list(shard.paths) for shard in checkpoint.files.shards],
            "tokenizer": checkpoint.files.tokenizer,
            "tokenizer_kind": None if checkpoint.vocabulary is None else checkpoint.vocabulary.kind,
            "size_bytes": checkpoint.catalog.size_bytes,
            "parameters": count_parameters(checkpoint),
            "dtypes": [dtype.name for dtype in stored_dtypes(checkpoint)],
            "dim": sizes.dim,
            "layers": sizes.layers,
            "heads": sizes.heads,
            "kv_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "ffn_dim": sizes.ffn_dim,
            "vocabulary": sizes.vocab,
            "context": choice.family.context,
        }

    def lines(self) -> tuple[Table, ...]:
        """Give the same for people."""
        found = self.to_json()
        checkpoint = self.checkpoint
        rows = (
            ("family", f"{found['title']}{' (instruct)' if found['instruct'] else ''}"),
            ("known by", "; ".join(checkpoint.choice.evidence)),
            ("folder", checkpoint.files.folder),
            ("shards", f"{len(checkpoint.files.shards)} ({format_size(checkpoint.catalog.size_bytes)})"),
            ("tokenizer", f"{checkpoint.files.tokenizer or 'none found'}"),
            ("parameters", f"{count_parameters(checkpoint):,}"),
            ("stored as", " and ".join(dtype.name for dtype in stored_dtypes(checkpoint))),
            ("layers", f"{found['layers']}"),
            ("dim", f"{found['dim']}, feed-forward {found['ffn_dim']}"),
            ("heads", f"{found['heads']}, key heads {found['kv_heads']}, head size {found['head_dim']}"),
            ("vocabulary", f"{found['vocabulary']:,}"),
            ("context", f"{found['context']:,}"),
        )
        return (Table(("", ""), rows, (False, False)),)


def count_parameters(checkpoint: Checkpoint) -> int:
    """Count the elements of the whole model as it would be written."""
    decisions, _notes = decide(checkpoint)
    return sum(
        target.elements
        for target in make_targets(checkpoint.matches, checkpoint.dimensions.head_dim, decisions)
    )


def stored_dtypes(checkpoint: Checkpoint) -> tuple[DType, ...]:
    """Give the types that the tensors are stored in, the widest first."""
    found = {match.views[0].dtype for match in checkpoint.matches}
    return tuple(sorted(found & set(STORABLE), key=lambda dtype: -dtype.rank))


def inspect(
    source: PathLike,
    *,
    family: str | None = None,
    instruct: bool = False,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
) -> Inspection:
    """Tell what a checkpoint is; reads headers only."""
    return Inspection(_open(source, family, instruct=instruct, tokenizer=tokenizer, params=params))


def _open(
    source: PathLike,
    family: str | None,
    *,
    instruct: bool,
    tokenizer: PathLike | None,
    params: PathLike | None,
) -> Checkpoint:
    return read_checkpoint(
        LocalStorage(),
        os.fspath(source),
        family=family,
        instruct=instruct,
        tokenizer=None if tokenizer is None else os.fspath(tokenizer),
        params_path=None if params is None else os.fspath(params),
    )


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a conversion would do."""

    plan: Plan
    checkpoint: Checkpoint
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values; copies are counted, not listed."""
        plan = self.plan
        return {
            "family": self.checkpoint.choice.family.name,
            "dtype": plan.dtype.name,
            "tied": plan.decisions.tied,
            "kv_replication": plan.decisions.kv_replication,
            "max_shard_size": plan.chunk_limit_bytes,
            "read_bytes": read_bytes(plan),
            "write_bytes": plan.size_bytes,
            "largest_chunk_bytes": max(chunk.size_bytes for chunk in plan.chunks),
            "useful_workers": len(plan.chunks),
            "memory_bytes_per_worker": _WORKER_MEMORY_BYTES,
            "chunks": [
                {
                    "name": chunk.name,
                    "layers": chunk.layers,
                    "tensors": len(chunk.tensors),
                    "copies": sum(len(tensor.copies) for tensor in chunk.tensors),
                    "size_bytes": chunk.size_bytes,
                }
                for chunk in plan.chunks
            ],
        }

    def lines(self) -> tuple[str | Table, ...]:
        """Give the same for people."""
        plan = self.plan
        table = Table(
            ("chunk", "layers", "tensors", "MB"),
            [
                (chunk.name, chunk.layers, str(len(chunk.tensors)), f"{chunk.size_bytes / 1e6:,.1f}")
                for chunk in plan.chunks
            ],
            (False, True, True, True),
        )
        larger = len(plan.large_tensors)
        but = f", but for {larger}" if larger else ""
        return (
            table,
            "",
            f"family   {self.checkpoint.choice.family.title}, {plan.dtype}{', tied' if plan.decisions.tied else ''}",
            (
                f"reads    {format_size(read_bytes(plan))} from "
                f"{format_count(len(self.checkpoint.files.shards), 'shard')}"
            ),
            (
                f"writes   {format_size(plan.size_bytes)} in {format_count(len(plan.chunks), 'chunk')} of at most "
                f"{format_size(plan.chunk_limit_bytes)} of tensors{but}"
            ),
            (
                f"workers  up to {len(plan.chunks)}, each with at most "
                f"{_WORKER_MEMORY_BYTES / (1 << 20):,.0f} MiB of buffers"
            ),
        )


_WORKER_MEMORY_BYTES = 64 << 20


def read_bytes(plan: Plan) -> int:
    """Count the bytes of INPUT's data that the copies take."""
    return sum(copy.elements * tensor.stored.size_bytes for tensor in plan.tensors for copy in tensor.copies)


def plan(
    source: PathLike,
    *,
    dtype: str = "auto",
    max_shard_size: int | None = None,
    family: str | None = None,
    instruct: bool = False,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
) -> PlanReport:
    """Plan a conversion from headers alone; what only data can tell is assumed as published."""
    checkpoint = _open(source, family, instruct=instruct, tokenizer=tokenizer, params=params)
    decisions, notes = decide(checkpoint)
    made = plan_conversion(checkpoint, decisions, dtype, max_shard_size)
    return PlanReport(made, checkpoint, (*checkpoint.notes, *notes, *describe_large_tensors(made)))
