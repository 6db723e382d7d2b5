"""What Meta's shards should hold of INPUT, told without the plan by which they are written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distconv.families.cuts import ROWS, Cut
from distconv.families.llama import EMBEDDING, OUTPUT, RULES
from distconv.families.operations import SAME, Operation
from distconv.families.rules import expand_rules
from distconv.formats.views import TensorView
from distconv.formats.written import Written
from distconv.layout.dtypes import DType
from distconv.verbs.checkpoint import Checkpoint
from distconv.verbs.rows import count_copies, group_copies, join_shapes
from distconv.verbs.transformers_model import TransformersModel


@dataclass(frozen=True, slots=True)
class Expected:
    """A whole tensor as Meta's code has it: what INPUT holds of it, and how ranks share it."""

    name: str
    source: str
    """As INPUT calls it."""
    views: tuple[TensorView, ...]
    """INPUT's parts, in order."""
    joined: Cut
    """How they are cut."""
    operation: Operation
    """What was applied to it in INPUT."""
    cut: Cut
    """How ranks share it."""
    rows: int
    """How many of INPUT's are kept, each key head counted once."""
    head_dim: int
    copies: int = 1
    """How often INPUT's parts hold each key head."""

    @property
    def parts(self) -> list[tuple[TensorView, ...]]:
        """In order along the cut that INPUT has, each with others that hold the same."""
        return group_copies(self.views, self.joined, self.copies)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        _rows, *others = join_shapes([part for part, *_twins in self.parts], self.joined.axis)
        return (self.rows, *others)

    @property
    def stored(self) -> DType:
        """The type that INPUT has it in."""
        return self.views[0].dtype

    def as_in(self, targets: Sequence[Written], ranks: int) -> "Expected":
        """Count key heads as shards of so many ranks do: those that INPUT has twice may be there once."""
        sizes = [target.shape[0] for target in targets if target.shape]
        if self.cut.heads != "key" or not sizes:
            return self
        # One damaged part says nothing of the others.
        usual = max(sizes, key=lambda size: (sizes.count(size), size))
        copies = count_copies(self.views, usual * ranks)
        return replace(self, rows=self.rows // copies, copies=copies)


def expect_checkpoint(checkpoint: Checkpoint) -> list[Expected]:
    """Expect the tensors of Meta's own shards, in whatever number they are."""
    head_dim, found = checkpoint.dimensions.head_dim, []
    for match in checkpoint.matches:
        cut = match.cut
        # Nothing in one shard alone tells how its embedding would be cut.
        if match.source == EMBEDDING and len(match.views) == 1:
            cut = checkpoint.choice.family.embedding_cut
        rows = join_shapes(match.views, match.cut.axis)[0]
        whole = Expected(match.source, match.source, match.views, match.cut, SAME, cut, rows, head_dim)
        found.append(whole)
    if all(whole.name != OUTPUT for whole in found):
        # It is tied, and INPUT has it under one name only.
        embedding = next(whole for whole in found if whole.name == EMBEDDING)
        found.append(replace(embedding, name=OUTPUT, cut=ROWS))
    return found


def expect_model(model: TransformersModel) -> list[Expected]:
    """Expect the tensors that Transformers' files have whole; an output that is the embedding is expected too."""
    shape, tensors = model.config.shape, model.catalog.tensors
    targets = {one.source: one.target for one in expand_rules(RULES, model.dimensions)}
    found = []
    for one in expand_rules(RULES, model.dimensions):
        own = targets[EMBEDDING] if one.source == OUTPUT and model.tied else one.target
        view = tensors[own]
        rows = model.rows if one.source in {EMBEDDING, OUTPUT} else view.shape[0]
        cut = one.rule.cut or model.config.family.embedding_cut
        found.append(Expected(one.source, own, (view,), ROWS, one.rule.operation, cut, rows, shape.head_dim))
    return found
