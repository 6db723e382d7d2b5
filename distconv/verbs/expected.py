"""What Meta's shards should hold of INPUT, told without the plan by which they are written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from distconv.errors import InputError
from distconv.families.cuts import ROWS, Cut
from distconv.families.operations import SAME, Operation, TileTable
from distconv.families.rules import expand_rules
from distconv.families.translate import shape_of_target
from distconv.formats.views import TensorView
from distconv.formats.written import Written
from distconv.layout.dtypes import DType, contiguous_strides
from distconv.moving.sources import Sources
from distconv.verbs.checkpoint import Checkpoint
from distconv.verbs.rows import count_copies, group_copies, join_shapes, read_bands
from distconv.verbs.transformers_model import TransformersModel
from distconv.verbs.turning import list_head_rows, turn_back

if TYPE_CHECKING:
    from distconv.verbs.rows import Rows


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
    shape: tuple[int, ...]
    """Of the whole, of which INPUT may have more rows; each key head is counted once."""
    head_dim: int
    copies: int = 1
    """How often INPUT's parts hold each key head."""
    stored: str = ""
    """Under which name ranks have it, where others lie before or behind it; its own where nothing is said."""

    @property
    def held_as(self) -> str:
        """The name of the tensor of a rank's file in which it lies."""
        return self.stored or self.name

    @property
    def parts(self) -> list[tuple[TensorView, ...]]:
        """In order along the cut that INPUT has, each with others that hold the same."""
        return group_copies(self.views, self.joined, self.copies)

    @property
    def stored_dtype(self) -> DType:
        """The type that INPUT has it in."""
        return self.views[0].dtype

    @property
    def dtype(self) -> DType:
        """The type in which it is read."""
        return self.views[0].value

    def as_in(self, targets: Sequence[Written], ranks: int) -> "Expected":
        """Count key heads as shards of so many ranks do: those that INPUT has twice may be there once."""
        sizes = [target.shape[0] for target in targets if target.shape]
        if self.cut.heads != "key" or not sizes:
            return self
        # One damaged part says nothing of the others.
        usual = max(sizes, key=lambda size: (sizes.count(size), size))
        copies = count_copies(self.views, usual * ranks)
        return replace(self, shape=(self.shape[0] // copies, *self.shape[1:]), copies=copies)

    def read(self, sources: Sources) -> Iterator[tuple[int, "Rows"]]:
        """Give it as (first row, rows), in Meta's order, each row one run of all its elements."""
        rows, *others = join_shapes([part for part, *_twins in self.parts], self.joined.axis)
        # Of a vocabulary only the first rows are kept.
        stored = (rows if self.operation is not SAME else self.shape[0], *others)
        head = list_head_rows(self.operation, self.head_dim)
        bands = read_bands(self.joined, self.parts, stored, sources, head)
        return turn_back(self.operation, bands, self.head_dim)


def expect_checkpoint(checkpoint: Checkpoint) -> list[Expected]:
    """Expect the tensors of Meta's own shards, in whatever number they are."""
    head_dim, found, names = checkpoint.dimensions.head_dim, [], checkpoint.architecture
    for match in checkpoint.matches:
        cut = match.cut
        # Nothing in one shard alone tells how its embedding would be cut.
        if match.source == names.embedding and len(match.views) == 1:
            cut = checkpoint.choice.family.embedding_cut
        shape = join_shapes(match.views, match.cut.axis)
        whole = Expected(
            match.source,
            match.source,
            match.views,
            match.cut,
            SAME,
            cut,
            shape,
            head_dim,
            stored=match.stored or "",
        )
        found.append(whole)
    if all(whole.name != names.output for whole in found):
        # It is tied, and INPUT has it under one name only.
        embedding = next(whole for whole in found if whole.name == names.embedding)
        found.append(replace(embedding, name=names.output, stored="", cut=ROWS))
    return found


def expect_model(model: TransformersModel) -> list[Expected]:
    """Expect the tensors that Transformers' files have whole; an output that is the embedding is expected too."""
    sizes, tensors, names = model.dimensions, model.catalog.tensors, model.architecture
    named = list(expand_rules(model.rules, sizes))
    targets = {one.source: one.target for one in named}
    found, ends = [], dict[str, int]()
    for one in named:
        own = targets[names.embedding] if one.source == names.output and model.tied else one.target
        shape, axis = one.shape(sizes), one.rule.axis
        first = ends.get(one.target, 0)
        ends[one.target] = first + shape_of_target(one, sizes)[axis]
        if one.source in {names.embedding, names.output}:
            shape = (model.rows, *shape[1:])
        view = _take(tensors[own], shape, first, by_columns=axis > 0, operation=one.rule.operation)
        cut = one.rule.cut or model.choice.family.embedding_cut
        found.append(
            Expected(
                one.source,
                own,
                (view,),
                ROWS,
                one.rule.operation,
                cut,
                shape,
                sizes.head_dim,
                stored=one.stored,
            )
        )
    return found


def _take(
    view: TensorView, shape: tuple[int, ...], first: int, *, by_columns: bool, operation: Operation
) -> TensorView:
    """Take of a tensor what is to become one of Meta's, as rows and columns where it has more axes than those.

    ``first`` says where it begins, in columns or rows.
    """
    if len(view.shape) < 3 and not first:
        return view
    if view.strides != contiguous_strides(view.shape):
        raise InputError(
            f"{view.name} in {view.region.path}: its axes are stored in another order; save it contiguous"
        )
    width = view.shape[-1] if by_columns else shape[-1]
    if isinstance(operation, TileTable):
        return view
    offset = view.offset + (first if by_columns else first * width)
    return view._replace(offset=offset, shape=(shape[0], shape[-1]), strides=(width, 1))
