"""A family as a table: which source tensors there are, and what each becomes."""

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from distconv.errors import InputError
from distconv.families.cuts import COLUMNS, ROWS, Cut
from distconv.families.dimensions import Dimensions, Sizes
from distconv.families.operations import Operation
from distconv.families.shapes import Shapes
from distconv.formats.meta.catalog import Catalog
from distconv.formats.meta.params import Params
from distconv.formats.meta.scales import LORA, QLORA, QUANTIZED
from distconv.formats.views import TensorView
from distconv.humanize import shorten
from distconv.layout.dtypes import STORABLE


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of tensor: Meta's name, Transformers' name, what makes one of the other, its whole shape, its cut.

    ``{i}`` in the names is the layer, of the kind ``layers``. What several rules make of one name of Transformers' lies
    one behind the other along ``axis``, in the order of the rules. ``stored`` is how Meta's files call it; what several
    rules store under one name lies one behind the other along the rows in each rank.
    """

    source: str
    target: str
    operation: Operation
    shape: tuple[str, ...]
    cut: Cut | None = None
    """None for a vocabulary's embedding, of which Llama 1 and 2 cut the columns, Llama 3 the rows."""
    layers: str = "text"
    axis: int = 0
    stored: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A rule applied: the target's name, how the source is cut, and its part in each shard."""

    source: str
    target: str
    operation: Operation
    cut: Cut
    views: tuple[TensorView, ...]
    axis: int = 0
    """Along which it lies beside others of the same target."""
    stored: str | None = None
    """How Meta's files call it, where others are stored with it."""


def read_dimensions(catalog: Catalog, params: Params, rules: tuple[Rule, ...]) -> Dimensions:
    """Take what params.json says; the vocabulary and the feed-forward size from the tensors.

    Raises InputError where the shards hold other layers than it says, before anything of its
    size is built, and where it writes out another feed-forward size.
    """
    embedding = _first_shape(catalog, rules[0].source, params.path)
    _first_shape(catalog, _GATE, params.path)
    shapes = Shapes(catalog, params.path)
    by_rows = embedding_cut(embedding, params.dim) is ROWS
    ffn_dim = shapes.sum_rows(_GATE)
    findings = [*_check_layers(catalog, params, rules)]
    if params.hidden_dim is not None and params.hidden_dim != ffn_dim:
        findings.append(
            f"{params.path}: hidden_dim {params.hidden_dim}, w1 has {ffn_dim} rows in {len(catalog.shards)} shards; "
            "the params.json of another model"
        )
    if findings:
        raise InputError.of(findings)
    vocab = shapes.sum_rows(rules[0].source) if by_rows else embedding[0]
    return Dimensions.of(params, ffn_dim=ffn_dim, vocab=vocab)


_GATE = "layers.0.feed_forward.w1.weight"


_LAYER = re.compile(r"layers\.([0-9]{1,9})\..*", re.DOTALL)


def _check_layers(catalog: Catalog, params: Params, rules: tuple[Rule, ...]) -> Iterator[str]:
    """A layer is held where most of its tensors are; single ones are told by their names later."""
    counts = Counter(int(match[1]) for name in catalog.names() if (match := _LAYER.fullmatch(name)))
    most = sum("{i}" in rule.source for rule in rules) / 2
    held = {layer for layer, count in counts.items() if count > most}
    missing = next(layer for layer in range(len(held) + 1) if layer not in held)
    if missing < params.n_layers:
        what = f"there is no layers.{missing}.*; download the missing files, or take the params.json of this model"
    elif max(held) >= params.n_layers:
        what = f"layers.{max(held)}.* is beyond; take the params.json of this model"
    else:
        return
    yield f"{params.path}: says {params.n_layers} layers, the shards hold {len(held)}: {what}"


def embedding_cut(shape: tuple[int, ...], dim: int) -> Cut:
    """Tell from a shard's shape whether the embedding's rows or its columns were cut."""
    return ROWS if shape[1] == dim else COLUMNS


def _first_shape(catalog: Catalog, name: str, beside: str) -> tuple[int, ...]:
    views = catalog.views(name)
    if not views:
        names = [catalog.stored_name(name) for name in catalog.names()]
        found = ", ".join(names[:4])
        longer = next((known for known in names if known.endswith(f".{name}")), None)
        prefix = (longer or "").removesuffix(name)
        hint = f"; the prefix {prefix!r} is not known: take it off the names" if longer else ""
        raise InputError(
            f"{beside}: no tensor {name} in its shards (they hold {found}, …); no Llama of Meta's and no Mistral{hint}"
        )
    if len(views[0].shape) != 2 or 0 in views[0].shape:
        raise InputError(
            f"{name} in {views[0].region.path}: shape {views[0].shape}, expected rows and columns"
        )
    return views[0].shape


def match_rules(
    rules: Sequence[Rule],
    ignored: tuple[str, ...],
    catalog: Catalog,
    dimensions: Sizes,
    optional: frozenset[str] = frozenset(),
    absence: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Match, ...]:
    """Give every target tensor its source parts.

    Every source tensor must match exactly one rule or an ignored pattern, and be in every shard; its parts, of
    whatever sizes, must make up the whole. A shard's shape tells how an embedding is cut that may be either way. All
    violations are collected and raised as one InputError; ``absence`` says what to do where no shard has a tensor.
    """
    wanted = {one.source: one for one in expand_rules(rules, dimensions)}
    findings = list(_name_unknown(wanted.keys(), ignored, catalog, dimensions))
    matches = []
    for name, one in wanted.items():
        views = catalog.views(name)
        if not views and name in optional:
            continue
        missing = [shard.name for shard in catalog if name not in shard.tensors]
        if missing:
            advice = f"; {absence[name]}" if not views and name in absence else ""
            findings.append(f"{name}: missing in {', '.join(missing)}{advice}")
            continue
        cut = one.rule.cut or embedding_cut(views[0].shape, dimensions.size("dim"))
        findings += _check_views(name, one.rule, cut, catalog, dimensions)
        matches.append(Match(name, one.target, one.rule.operation, cut, views, one.rule.axis, one.stored))
    if findings:
        raise InputError.of(shorten(findings, _MOST_FINDINGS))
    return tuple(matches)


_MOST_FINDINGS = 20


def _name_unknown(
    wanted: Container[str], ignored: tuple[str, ...], catalog: Catalog, dimensions: Sizes
) -> Iterator[str]:
    """Name what is no tensor of the model; those that share a beginning of their own together."""
    groups: dict[str, list[str]] = {}
    for name in catalog.names():
        if name not in wanted and not any(re.fullmatch(pattern, name) for pattern in ignored):
            first = name.partition(".")[0]
            groups.setdefault(name if first == "layers" else first, []).append(name)
    for first, names in groups.items():
        where = f"{_where(catalog, names[0])}: {catalog.stored_name(names[0])}"
        if len(names) > 1:
            where += f" and {len(names) - 1} more that begin with {first!r}"
        verb, them = ("are", "them") if len(names) > 1 else ("is", "it")
        yield (
            f"{where} {verb} no tensor of a {dimensions.layers}-layer model; save the model without {them}, or take the "
            "params.json that belongs to it"
        )


@dataclass(frozen=True, slots=True)
class Named:
    """A rule for one tensor, by its names in Meta's dialect, in Transformers', and in Meta's files."""

    source: str
    target: str
    stored: str
    rule: Rule

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Give the whole shape that Meta's code has it in."""
        return tuple(sizes.size(symbol) for symbol in self.rule.shape)


def expand_rules(rules: Sequence[Rule], sizes: Sizes) -> Iterator[Named]:
    """Give each tensor of a model of these sizes."""
    for rule in rules:
        for layer, number in sizes.numbers(rule.layers) if "{i}" in rule.source else ((0, 0),):
            source = rule.source.replace("{i}", str(layer))
            stored = source if rule.stored is None else rule.stored.replace("{i}", str(layer))
            yield Named(source, rule.target.replace("{i}", str(number)), stored, rule)


def _where(catalog: Catalog, name: str) -> str:
    return next(shard.name for shard in catalog if name in shard.tensors)


def _check_views(name: str, rule: Rule, cut: Cut, catalog: Catalog, dimensions: Sizes) -> Iterator[str]:
    whole = tuple(dimensions.size(symbol) for symbol in rule.shape)
    dtypes = {shard.tensors[name].dtype for shard in catalog}
    if len(dtypes) > 1:
        yield f"{name}: stored as {' and '.join(sorted(map(str, dtypes)))} in different shards"
    # Names of files are no key: ranks in folders of their own have the same ones.
    shapes = [(shard.name, shard.tensors[name].shape) for shard in catalog]
    if not _make_up([shape for _, shape in shapes], whole, cut):
        yield from _explain_shapes(name, shapes, whole, cut.axis)
        return
    for shard in catalog:
        dtype = shard.tensors[name].dtype
        if dtype not in STORABLE and shard.tensors[name].scale is None:
            yield f"{name} in {shard.name}: stored as {dtype}, expected a floating-point type of 16 bits or more"


def _make_up(parts: Sequence[tuple[int, ...]], whole: tuple[int, ...], cut: Cut) -> bool:
    """Whether parts of these shapes, one after the other along the axis, are the whole."""
    axis = cut.axis
    if axis is None:
        return all(part == whole for part in parts)
    if any(len(part) != len(whole) or part[axis] % cut.groups for part in parts):
        return False
    joined = {(*part[:axis], whole[axis], *part[axis + 1 :]) for part in parts}
    return joined == {whole} and sum(part[axis] for part in parts) == whole[axis]


def _explain_shapes(
    name: str, shapes: Sequence[tuple[str, tuple[int, ...]]], whole: tuple[int, ...], axis: int | None
) -> Iterator[str]:
    """Name the parts that are not as an even cut has them, or all shapes where there is no even cut."""
    if axis is not None and whole[axis] % len(shapes):
        first = {shape: shard for shard, shape in reversed(shapes)}
        found = ", ".join(f"{shape} in {shard}" for shape, shard in reversed(first.items()))
        yield f"{name}: shape {found}; expected {whole} cut along axis {axis} into {len(shapes)} shards"
        return
    expected = tuple(size // len(shapes) if place == axis else size for place, size in enumerate(whole))
    for shard, shape in shapes:
        if shape != expected:
            yield f"{name} in {shard}: shape {shape}, expected {expected}"


_OTHERS_JSON = "whose params.json says nothing of it; take the params.json of this model"


def describe_foreign_tensors(catalog: Catalog) -> str | None:
    """Name the model that has such tensors, which is no text model of Meta's."""
    foreign = (
        (r"(text_model|vision_model)\..*", f"a Llama 3.2 Vision model, {_OTHERS_JSON}"),
        (r"vision_embeddings\..*", f"a Llama 4 model, {_OTHERS_JSON}"),
        (r"(.*\.)?_?flat_params?(_.*)?", "flat parameters of FSDP; save a full state dict (FULL_STATE_DICT)"),
        (
            r"layers\.\d+\.(attn|sa_norm|mlp_norm)\..*",
            "a checkpoint with torchtune's own names; save it by torchtune's FullModelMetaCheckpointer",
        ),
        (
            r"layers\.\d+\.attention\.(qkv_linear|wqkv)\..*",
            "a checkpoint with torchtitan's newer or gpt-fast's names; export it in Transformers' format from there",
        ),
        (
            r"(layers\.\d+\.(self_attn|mlp|input_layernorm|post_attention_layernorm)|embed_tokens)\..*",
            "a checkpoint with Transformers' names, which needs no conversion; a Llama for Meta's code is made of its folder by `to='meta'`",
        ),
        (
            r".*\.qscale_(weight|act)",
            "an FP8 checkpoint of Mistral's, with one scale for each matrix; take the repository's files in Transformers' format",
        ),
        (_SCALES, QUANTIZED),
        (_ADAPTORS, LORA),
        (
            r".*feed_forward\.(experts|router).*|.*\.block_sparse_moe\..*|.*\.moe_.*",
            f"a mixture-of-experts model (Llama 4 or Mixtral), {_OTHERS_JSON}",
        ),
    )
    for pattern, description in foreign:
        name = _find_name(pattern, catalog)
        if name is not None:
            adapted = description == QUANTIZED and _find_name(_ADAPTORS, catalog) is not None
            return f"{QLORA if adapted else description} (it has {catalog.stored_name(name)})"
    weights = (view for view in catalog.all_views if view.name.endswith(".weight"))
    integer = next((view for view in weights if view.dtype.name in _OF_INTEGERS), None)
    return None if integer is None else f"{QUANTIZED} ({integer.name} is stored as {integer.dtype})"


def _find_name(pattern: str, catalog: Catalog) -> str | None:
    return next((name for name in catalog.names() if re.fullmatch(pattern, name, re.IGNORECASE)), None)


_SCALES = r".*\.(scales?|zeros?|qweight|qscale)"
_ADAPTORS = r".*(lora_[ab]|adaptor|adapter).*"
_OF_INTEGERS = frozenset({"int8", "uint8"})
"""Types of quantized weights."""
