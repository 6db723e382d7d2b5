"""What trainers on Meta's model code call a Llama's tensors, and how Transformers' are made of them.

All keep Meta's order of the rotated rows; the names alone do not tell, as torchtune's projections are called as
Transformers' are. Sources: ``state_dict_adapter.py`` and ``attention.py`` of torchtitan 0.2.2 and 0.3.0,
``_convert_weights.py`` of torchtune 0.6.1.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from distconv.errors import InputError, UsageError
from distconv.families.llama import EMBEDDING, OUTPUT, RULES
from distconv.families.operations import ROTARY
from distconv.families.rules import Rule
from distconv.layout.tensors import Tensor, cut, join

Projection = Literal["query", "key", "value"]


@dataclass(frozen=True, slots=True)
class HeadCounts:
    """How many heads there are, and how many rows each has."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads to a key head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one of Transformers' tensors is made of one of a trainer's, by their names."""

    target: str
    source: str
    fused: Projection | None = None
    """Which rows of a fused projection are taken."""
    is_rotary: bool = False

    def make(self, tensor: Tensor, counts: HeadCounts) -> Tensor:
        """Make it; InputError where the rows are not those of whole heads."""
        if self.fused is not None:
            tensor = _take_fused(tensor, self.fused, counts)
        return ROTARY.apply(tensor, counts.head_dim) if self.is_rotary else tensor


def _take_fused(tensor: Tensor, fused: Projection, counts: HeadCounts) -> Tensor:
    """Take the rows of one projection: per key head its query heads, then the key's, then the value's."""
    rows, group = counts.head_dim, counts.group
    each = (group + 2) * rows
    if tensor.shape[:1] != (counts.kv_heads * each,):
        raise InputError(
            f"{tensor.name}: {tensor.shape[0]:,} rows, expected {counts.kv_heads:,} groups of {group} query heads, "
            f"a key head and a value head of {rows} rows each"
        )
    first, count = {"query": (0, group), "key": (group, 1), "value": (group + 1, 1)}[fused]
    starts = (head * each + first * rows for head in range(counts.kv_heads))
    return join([cut(tensor, 0, start, start + count * rows) for start in starts], 0)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of naming; ``names`` are by Meta's, several where versions differ."""

    name: str
    title: str
    sign: re.Pattern[str]
    """Found in the names of each model that is named so, and of no other."""
    names: Mapping[str, tuple[str, ...]]
    fused: str | None = None
    """What has query, key and value projections in one."""

    def list_recipes(self, layers: int, held: frozenset[str]) -> Iterator[Recipe]:
        """Give all recipes for a model of so many layers; of several names that which is there."""
        for rule in RULES:
            for number in range(layers) if "{i}" in rule.source else (0,):
                yield self._make_recipe(rule, str(number), held)

    def _make_recipe(self, rule: Rule, layer: str, held: frozenset[str]) -> Recipe:
        target, is_rotary = rule.target.replace("{i}", layer), rule.operation is ROTARY
        projection = _PROJECTIONS.get(rule.source)
        if self.fused is not None and projection is not None:
            return Recipe(target, self.fused.replace("{i}", layer), projection, is_rotary)
        names = [name.replace("{i}", layer) for name in self.names.get(rule.source, (rule.source,))]
        return Recipe(target, next((name for name in names if name in held), names[0]), None, is_rotary)


_WQ, _WK, _WV = (f"layers.{{i}}.attention.w{letter}.weight" for letter in "qkv")
_PROJECTIONS: Mapping[str, Projection] = {_WQ: "query", _WK: "key", _WV: "value"}
_OUTPUTS = ("lm_head.weight", OUTPUT)

META_ORDERED = (
    Dialect(
        "torchtitan",
        "Meta's names, as torchtitan up to 0.2.2 has them",
        re.compile(r"(^|\.)layers\.\d+\.attention\.wq\.weight$"),
        {},
    ),
    Dialect(
        "torchtitan-0.3",
        "the names of torchtitan 0.3",
        re.compile(r"(^|\.)layers\.\d+\.attention\.qkv_linear\.wq\.weight$"),
        {
            **{name: (name.replace(".w", ".qkv_linear.w", 1),) for name in (_WQ, _WK, _WV)},
            OUTPUT: _OUTPUTS,
        },
    ),
    Dialect(
        "torchtitan-fused",
        "the names of torchtitan with fused projections",
        re.compile(r"(^|\.)layers\.\d+\.attention\.qkv_linear\.wqkv\.weight$"),
        {OUTPUT: _OUTPUTS},
        fused="layers.{i}.attention.qkv_linear.wqkv.weight",
    ),
    Dialect(
        "torchtune",
        "torchtune's own names",
        re.compile(r"(^|\.)layers\.\d+\.attn\.q_proj\.weight$"),
        {
            EMBEDDING: (EMBEDDING,),
            _WQ: ("layers.{i}.attn.q_proj.weight",),
            _WK: ("layers.{i}.attn.k_proj.weight",),
            _WV: ("layers.{i}.attn.v_proj.weight",),
            "layers.{i}.attention.wo.weight": ("layers.{i}.attn.output_proj.weight",),
            "layers.{i}.feed_forward.w1.weight": ("layers.{i}.mlp.w1.weight",),
            "layers.{i}.feed_forward.w2.weight": ("layers.{i}.mlp.w2.weight",),
            "layers.{i}.feed_forward.w3.weight": ("layers.{i}.mlp.w3.weight",),
            "layers.{i}.attention_norm.weight": ("layers.{i}.sa_norm.scale",),
            "layers.{i}.ffn_norm.weight": ("layers.{i}.mlp_norm.scale",),
            "norm.weight": ("norm.scale",),
        },
    ),
)
TRANSFORMERS = "transformers"
DIALECTS = (TRANSFORMERS, *(dialect.name for dialect in META_ORDERED))


def choose_dialect(names: Iterable[str], asked: str | None = None) -> Dialect | None:
    """Tell by its names how a model is named, None for Transformers' own names; ``asked`` overrides that.

    InputError where names of two kinds are there, UsageError for an unknown dialect.
    """
    if asked is not None:
        if asked not in DIALECTS:
            raise UsageError(f"dialect {asked}: expected one of {', '.join(DIALECTS)}")
        return next((dialect for dialect in META_ORDERED if dialect.name == asked), None)
    names = list(names)
    found = [dialect for dialect in META_ORDERED if any(dialect.sign.search(name) for name in names)]
    if len(found) > 1:
        titles = " and ".join(dialect.title for dialect in found)
        raise InputError(f"it has both {titles}; say by `dialect=` which of its models to convert")
    return found[0] if found else None


_UNREADABLE = (
    (
        r"(.*\.)?_?flat_params?(_\d+)?",
        "flat parameters of FSDP (LOCAL_STATE_DICT), whose shapes nothing tells; save SHARDED_STATE_DICT or FULL_STATE_DICT",
    ),
    (
        r"(.*\.)?decoder\.layers\.(.*\.)?(linear_(qkv|proj|fc1|fc2)|self_attention)\..*",
        "Megatron's names, with fused projections; bring it into Transformers' format by Megatron-Bridge",
    ),
    (
        r".*\.lora_\w+(\..*)?|.*\.(modules_to_save|base_layer)\..*|.*\.lora_[abAB]\b.*",
        "a LoRA adapter that is not merged; merge it into the model first",
    ),
    (
        r".*\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_map)|.*\.quant_state\..*",
        "a quantised model; save it as it was trained",
    ),
)
"""By names alone."""


def refuse_unreadable(where: str, names: Iterable[str]) -> None:
    """Raise InputError where names tell that a model cannot be made of its tensors."""
    for name in names:
        for pattern, description in _UNREADABLE:
            if re.fullmatch(pattern, name):
                raise InputError(f"{where}: {name}: {description}")
