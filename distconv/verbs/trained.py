"""A trainer's checkpoint, and the model that it is: which of its tensors make which of Transformers'."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError, escape
from distconv.families.llama import IGNORED
from distconv.families.trained import Dialect, HeadCounts, Recipe, choose_dialect, refuse_unreadable
from distconv.formats.boxes import Box, BoxedTensor, TrainedFiles
from distconv.formats.expected_names import ExpectedNames, find_expected_names, list_ends
from distconv.formats.meta.names import describe_names
from distconv.humanize import list_some, shorten
from distconv.layout.dtypes import STORABLE, DType
from distconv.layout.files import OutputTensor
from distconv.layout.tensors import Digit, Tensor, cut, regroup
from distconv.sidecars.architecture import Architecture, Saved
from distconv.storage.base import Storage
from distconv.verbs.like import Like

_MOST_FINDINGS = 20
_MOST_SHOWN = 8
_OTHER_NAMES = "give by `like=` the model that was trained, by `dialect=` how its tensors are named, or save that model alone"
_EXPECTED_TYPE = "expected a floating-point type of 16 bits or more"
_TRAINED_ONE = "give by `like=` the model that was trained, or a copy whose config.json says what it became"
_BUFFERS = (*IGNORED, r"(.*\.)?rotary_emb\.\w+", r"(.*\.)?_extra_state")


@dataclass(frozen=True, slots=True)
class Made:
    """How one tensor of OUTPUT is made of one of INPUT."""

    name: str
    source: BoxedTensor
    recipe: Recipe
    saved: Saved

    def whole(self, counts: HeadCounts | None) -> Tensor:
        """Make it."""
        tensor = self.source.whole()
        if counts is not None:
            tensor = self.recipe.make(tensor, counts)
        return _take_slab(replace(tensor, name=self.name), self.saved)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """All that is known of INPUT without reading a tensor's data."""

    files: TrainedFiles
    like: Like
    architecture: Architecture
    dialect: Dialect | None
    """None for Transformers' own names."""
    counts: HeadCounts | None
    made: tuple[Made, ...]
    twins: tuple[tuple[BoxedTensor, BoxedTensor], ...]
    """What is stored by itself and left out, as it is another tensor's twin, with that one."""
    notes: tuple[str, ...]

    @property
    def dialect_name(self) -> str:
        """Name the dialect."""
        return "transformers" if self.dialect is None else self.dialect.name

    def make_targets(self, dtype: DType | None) -> tuple[OutputTensor, ...]:
        """Give OUTPUT's tensors; InputError with all that their boxes do not fill."""
        targets, findings = [], []
        for source, tensor in ((made.source.name, made.whole(self.counts)) for made in self.made):
            written = dtype if dtype is not None and tensor.dtype.is_float else tensor.dtype
            try:
                targets.append(
                    OutputTensor(tensor.name, source, tensor.shape, tensor.dtype, written, tensor.copies)
                )
            except InputError as error:
                findings.append(f"{self.files.folder}: {error}")
        if findings:
            way_out = f"{self.files.folder}: copy the files of all ranks, and of one step only; each rank saves its part once"
            raise InputError.of([*shorten(findings, _MOST_FINDINGS), way_out])
        return tuple(targets)


def _take_slab(tensor: Tensor, saved: Saved) -> Tensor:
    """Take a slab of a tensor in memory, with its axes in the order in which it is saved."""
    sizes = saved.sizes
    for axis, first in enumerate(saved.first):
        size = sizes.get(axis, 1)
        if size != tensor.shape[axis]:
            tensor = cut(tensor, axis, first, first + size)
    axes = list(range(len(tensor.shape)))
    for axis in reversed([axis for axis in axes if axis not in sizes]):
        tensor = _drop_axis(tensor, axis)
        del axes[axis]
    order = tuple(saved.axes.index(axis) for axis in axes)
    if order == tuple(range(len(order))):
        return tensor
    return regroup(tensor, 0, (Digit(tensor.shape[0], order[0], 1),), order, saved.shape)


def _drop_axis(tensor: Tensor, axis: int) -> Tensor:
    """Leave out an axis of one place."""
    others = tuple(place - (place > axis) for place in range(len(tensor.shape)))
    shape = (*tensor.shape[:axis], *tensor.shape[axis + 1 :])
    # Of one value, it counts nothing wherever it goes.
    return regroup(tensor, axis, (Digit(1, 0, 1),), others, shape)


def read_trained(
    storage: Storage, files: TrainedFiles, like: Like, architecture: Architecture, dialect: str | None
) -> TrainedModel:
    """Find the model's tensors among INPUT's, and hold them against what a model of ``like``'s config takes.

    Tensors that INPUT lacks are taken from ``like`` where its weights were asked for. Raises InputError with all that is wrong
    of one kind.
    """
    strange = list(_list_strange(files, architecture))
    refuse_unreadable(files.folder, strange)
    chosen = choose_dialect(strange, dialect)
    counts = None if chosen is None else _count_heads(chosen, like, architecture)
    form = _find_form(files, chosen, like, architecture)
    found = find_expected_names(files.tensors, {recipe.source for recipe in form.recipes})
    held = {name: own for own, name in found.names.kept.items()}
    misfits = list(_find_misfits(files, form, held, counts, like))
    if not held or misfits:
        raise InputError.of(
            shorten(misfits or [_describe_nothing(files, form, architecture)], _MOST_FINDINGS)
        )
    boxed = files.read(storage, list(held.values()))
    made = tuple(_list_made(form, {name: boxed[own] for name, own in held.items()}))
    absent = [name for name in form.saved if name not in {one.name for one in made}]
    filled = tuple(_fill(like, absent, form))
    left = set(absent) - {one.name for one in filled}
    foreign = list(_find_foreign(found, files, architecture))
    missing = list(_find_missing([name for name in absent if name in left], files, architecture, like))
    if foreign or missing:
        way_out = [*files.notes, *([f"{files.folder}: {_OTHER_NAMES}"] if foreign else [])]
        raise InputError.of([*shorten([*foreign, *missing], _MOST_FINDINGS), *way_out])
    twins = tuple(_find_twins(form, {name: boxed[own] for name, own in held.items()}))
    notes = (*files.notes, *like.notes, *_describe(found, files, chosen), *_describe_filled(filled, like))
    return TrainedModel(files, like, architecture, chosen, counts, (*made, *filled), twins, notes)


def _list_strange(files: TrainedFiles, architecture: Architecture) -> Iterator[str]:
    """Give the names of which no end is one of the model's: what others call so is their own."""
    known = architecture.memory.keys() | architecture.saved.keys()
    return (name for name in files.tensors if known.isdisjoint(list_ends([name])))


def _count_heads(dialect: Dialect, like: Like, architecture: Architecture) -> HeadCounts:
    """Read from config.json what no tensor tells: how many rows a head has."""
    if architecture.title != "LlamaForCausalLM":
        raise InputError(
            f"{like.config_path}: of {architecture.title}, and INPUT has {dialect.title}, of which distconv knows "
            "Llama's only; export it from there, or give the model that was trained"
        )
    dim, heads = (_take_count(like, key) for key in ("hidden_size", "num_attention_heads"))
    kv_heads = (
        heads if like.config.get("num_key_value_heads") is None else _take_count(like, "num_key_value_heads")
    )
    rows = dim // heads if like.config.get("head_dim") is None else _take_count(like, "head_dim")
    return HeadCounts(heads, kv_heads, rows)


def _take_count(like: Like, key: str) -> int:
    value = like.config.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"{like.config_path}: {key} is {value!r:.40}, expected a positive number")
    return value


@dataclass(frozen=True, slots=True)
class _Form:
    """What INPUT's tensors are called, and what is saved of each."""

    recipes: tuple[Recipe, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Of what recipes make, by their targets."""
    saved: Mapping[str, Saved]
    """By the names under which OUTPUT has them; ``memory`` is a recipe's target."""
    tied: Mapping[str, str]
    integers: frozenset[str]
    """Targets of whole numbers."""

    def takes(self, target: str, dtype: DType) -> bool:
        """Whether a target may be of a type: whole numbers only those that count, all others no quantised ones."""
        return dtype in STORABLE or (not dtype.is_float and target in self.integers)


def _find_form(files: TrainedFiles, dialect: Dialect | None, like: Like, architecture: Architecture) -> _Form:
    """Take a trainer's own names, or Transformers' in memory or as saved, whichever more tensors have."""
    ends, memory, tied = list_ends(files.tensors), architecture.memory, architecture.tied
    if dialect is not None:
        layers = _take_count(like, "num_hidden_layers")
        recipes = tuple(dialect.list_recipes(layers, ends))
        return _Form(recipes, memory, architecture.saved, tied, architecture.integers)
    saved = {name: one.shape for name, one in architecture.saved.items()}
    saved |= {name: memory[name] for name in tied}
    if len(ends & saved.keys()) <= len(ends & memory.keys()):
        recipes = tuple(Recipe(name, name) for name in memory)
        return _Form(recipes, memory, architecture.saved, tied, architecture.integers)
    whole = {name: Saved.whole(name, one.shape) for name, one in architecture.saved.items()}
    integers = {name for name, one in architecture.saved.items() if one.memory in architecture.integers}
    return _Form(tuple(Recipe(name, name) for name in saved), saved, whole, tied, frozenset(integers))


def _list_made(form: _Form, boxed: Mapping[str, BoxedTensor]) -> Iterator[Made]:
    by_target = {recipe.target: recipe for recipe in form.recipes if recipe.source in boxed}
    for twin, kept in form.tied.items():
        if twin in by_target:
            by_target.setdefault(kept, replace(by_target[twin], target=kept))
    for name, saved in form.saved.items():
        recipe = by_target.get(saved.memory)
        if recipe is not None:
            yield Made(name, boxed[recipe.source], recipe, saved)


def _find_twins(form: _Form, boxed: Mapping[str, BoxedTensor]) -> Iterator[tuple[BoxedTensor, BoxedTensor]]:
    sources = {recipe.target: recipe.source for recipe in form.recipes}
    for twin, kept in form.tied.items():
        pair = sources.get(twin, ""), sources.get(kept, "")
        if pair[0] in boxed and pair[1] in boxed:
            yield boxed[pair[0]], boxed[pair[1]]


def _find_misfits(
    files: TrainedFiles, form: _Form, held: Mapping[str, str], counts: HeadCounts | None, like: Like
) -> Iterator[str]:
    """Tell of tensors that are not of the shape that the config gives, or of no type that weights have."""
    for recipe in form.recipes:
        own, shape = held.get(recipe.source), form.shapes.get(recipe.target)
        if own is None or shape is None:
            continue
        found = files.tensors[own]
        if recipe.fused is not None and counts is not None:
            shape = (counts.kv_heads * (counts.group + 2) * counts.head_dim, *shape[1:])
        if found.shape != shape:
            yield f"{files.folder}: {own} has shape {found.shape}, {like.config_path} gives {shape}; {_TRAINED_ONE}"
        if not form.takes(recipe.target, found.dtype):
            yield f"{files.folder}: {own} is stored as {found.dtype}, {_EXPECTED_TYPE}"


def _describe_nothing(files: TrainedFiles, form: _Form, architecture: Architecture) -> str:
    return (
        f"{files.folder}: no tensor of {architecture.title} in it; it holds {list_some(list(files.tensors), _MOST_SHOWN)}, "
        f"expected {form.recipes[0].source} and others; if that is an optimizer's alone, give the folder that holds the "
        f"model, otherwise {_OTHER_NAMES}"
    )


def _find_foreign(found: ExpectedNames, files: TrainedFiles, architecture: Architecture) -> Iterator[str]:
    for name in found.foreign:
        if not any(re.fullmatch(pattern, name) for pattern in _BUFFERS):
            yield f"{files.folder}: {name} is no tensor of the {architecture.title} that `like=` describes"


def _find_missing(
    names: Iterable[str], files: TrainedFiles, architecture: Architecture, like: Like
) -> Iterator[str]:
    for name in names:
        yield (
            f"{files.folder}: {name} is missing, {architecture.title} of {like.config_path} takes it; where it was not "
            "trained, `fill_from_like=True` takes it from there"
        )


def _fill(like: Like, absent: Iterable[str], form: _Form) -> Iterator[Made]:
    """Take what INPUT lacks from the weights of the model that it is like."""
    held = {} if like.weights is None else like.weights.tensors
    for name in absent:
        if name not in held:
            continue
        view = held[name]
        if view.shape != form.saved[name].shape:
            raise InputError(
                f"{name} in {view.region.path}: shape {view.shape}, {like.config_path} gives {form.saved[name].shape}"
            )
        if not form.takes(form.saved[name].memory, view.dtype):
            raise InputError(f"{name} in {view.region.path}: stored as {view.dtype}, {_EXPECTED_TYPE}")
        boxes = () if 0 in view.shape else (Box((0,) * len(view.shape), view),)
        boxed = BoxedTensor(name, view.dtype, view.shape, boxes)
        yield Made(name, boxed, Recipe(name, name), Saved.whole(name, view.shape))


def _describe(found: ExpectedNames, files: TrainedFiles, dialect: Dialect | None) -> Iterator[str]:
    if dialect is not None:
        yield f"{files.folder}: it has {dialect.title}; rotated rows are taken as being in Meta's order"
    yield from describe_names(found.names.stripped, found.names.aside, files.folder)
    if files.others:
        yield f"{files.folder}: left out, as no tensors: {_list(files.others)}"
    if found.foreign:
        yield f"{files.folder}: buffers that follow from the config are left out: {_list(found.foreign)}"


def _list(names: Sequence[str]) -> str:
    return list_some([f"{escape(name):.80}" for name in names], _MOST_SHOWN)


def _describe_filled(filled: tuple[Made, ...], like: Like) -> Iterator[str]:
    for made in filled:
        yield f"{made.name} is not in INPUT and is taken from {like.folder}"
