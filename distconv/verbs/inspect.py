"""Tell what a checkpoint is; reads headers only."""

from dataclasses import dataclass

from distconv.families.translate import make_targets
from distconv.humanize import format_size
from distconv.layout.dtypes import STORABLE, DType
from distconv.storage.base import PathLike
from distconv.verbs.checkpoint import Checkpoint, decide, open_checkpoint
from distconv.verbs.tables import Table


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
    return Inspection(open_checkpoint(source, family, instruct=instruct, tokenizer=tokenizer, params=params))
