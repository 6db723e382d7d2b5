"""The Llama families: their tensors, and what tells one from another when they are loaded."""

from dataclasses import dataclass
from typing import Literal

from distconv.families.cuts import COLUMNS, KEY_HEADS, QUERY_HEADS, REPLICATED, ROWS, Cut
from distconv.families.operations import ROTARY, SAME
from distconv.families.rules import Rule

EMBEDDING = "tok_embeddings.weight"
OUTPUT = "output.weight"

_BLOCK = "layers.{i}."
_THEIRS = "model.layers.{i}."

RULES = (
    Rule(EMBEDDING, "model.embed_tokens.weight", SAME, ("vocab", "dim")),
    Rule(
        f"{_BLOCK}attention.wq.weight", f"{_THEIRS}self_attn.q_proj.weight", ROTARY, ("q", "dim"), QUERY_HEADS
    ),
    Rule(
        f"{_BLOCK}attention.wk.weight", f"{_THEIRS}self_attn.k_proj.weight", ROTARY, ("kv", "dim"), KEY_HEADS
    ),
    Rule(f"{_BLOCK}attention.wv.weight", f"{_THEIRS}self_attn.v_proj.weight", SAME, ("kv", "dim"), KEY_HEADS),
    Rule(f"{_BLOCK}attention.wo.weight", f"{_THEIRS}self_attn.o_proj.weight", SAME, ("dim", "q"), COLUMNS),
    Rule(f"{_BLOCK}feed_forward.w1.weight", f"{_THEIRS}mlp.gate_proj.weight", SAME, ("ffn", "dim"), ROWS),
    Rule(f"{_BLOCK}feed_forward.w2.weight", f"{_THEIRS}mlp.down_proj.weight", SAME, ("dim", "ffn"), COLUMNS),
    Rule(f"{_BLOCK}feed_forward.w3.weight", f"{_THEIRS}mlp.up_proj.weight", SAME, ("ffn", "dim"), ROWS),
    Rule(f"{_BLOCK}attention_norm.weight", f"{_THEIRS}input_layernorm.weight", SAME, ("dim",), REPLICATED),
    Rule(f"{_BLOCK}ffn_norm.weight", f"{_THEIRS}post_attention_layernorm.weight", SAME, ("dim",), REPLICATED),
    Rule("norm.weight", "model.norm.weight", SAME, ("dim",), REPLICATED),
    Rule(OUTPUT, "lm_head.weight", SAME, ("vocab", "dim"), ROWS),
)
"""Without a cut, the embedding's is the family's: see ``Family.embedding_cut``."""

FREQUENCIES = (r"rope\.freqs", r"layers\.\d+\.attention\.inner_attention\.rope\.freqs")
"""Rotary frequencies follow from the configuration: Meta's own files hold them."""

BUFFERS = (
    r"(.*\.)?(freqs(_cis|_cos|_sin|_complex)?|(original_)?inv_freq|(cos|sin)(_cached)?|(rope_|cos_sin_)cache)",
    r"(.*\.)?((causal_|attn_|attention_)?mask|(kv_)?cache_[kv]|[kv]_cache|cache_pos|position_ids|_extra_state)",
    r"(.*\.)?rope\.cache",
)
"""What trainers save along: frequencies in other forms, masks, and caches of keys and values."""

IGNORED = (*FREQUENCIES, *BUFFERS)

TIKTOKEN_SIZE = 128_256
"""Tokens of Llama 3 and later, special ones included, and rows of their embeddings."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a family's config, tokenizer and chat need beyond params.json.

    ``factor`` is that of "llama3" rope scaling, None for plain rope. ``eos`` and
    ``instruct_eos`` are token ids, ``chat`` names the template of the instruct models.
    """

    name: str
    title: str
    tokenizer: Literal["sentencepiece", "tiktoken", "tekken"]
    context: int
    theta: float
    factor: float | None
    bos: int
    eos: int
    instruct_eos: tuple[int, ...]
    chat: str | None
    may_tie: bool = False
    special_tokens: Literal["llama-3", "llama-3.1", "llama-3.2-vision", "llama-4"] | None = None
    sampled: bool = False
    """Whether Meta's instruct models come with sampling on (generation_config.json)."""
    guard: bool = False
    """A moderation model: always instruction-tuned, and without a chat template."""
    architecture: Literal["llama", "mllama", "llama4", "mistral", "mixtral"] = "llama"
    """Whose tensors it has, by Transformers' ``model_type``."""
    published_tokens: int = TIKTOKEN_SIZE
    """Of a tiktoken file, special ones counted, for which the ids are given."""

    @property
    def is_of_mistral(self) -> bool:
        """Whether it is one of Mistral's, and not of Meta's."""
        return self.architecture in {"mistral", "mixtral"}

    @property
    def embedding_cut(self) -> Cut:
        """How Meta's ranks hold the embedding; Llama 3 and later cut its rows."""
        return COLUMNS if self.tokenizer == "sentencepiece" else ROWS

    def token_ids(self, tokenizer_size: int | None, *, instruct: bool) -> tuple[int, tuple[int, ...]]:
        """Give where text begins, and all ids at which it ends.

        They are the published ones; special tokens follow a tiktoken file's ranks, so another
        number of ranks moves them. ``tokenizer_size`` counts both, None where it is not known.
        """
        ends = self.instruct_eos if instruct else (self.eos,)
        if self.tokenizer != "tiktoken" or tokenizer_size is None:
            return self.bos, ends
        shift = tokenizer_size - self.published_tokens
        return self.bos + shift, tuple(end + shift for end in ends)

    def is_like(self, other: "Family") -> bool:
        """Whether the two differ in their prompts only, and are therefore not told apart by contents."""
        return _loaded(self) == _loaded(other)


def _loaded(family: Family) -> tuple[object, ...]:
    return family.tokenizer, family.context, family.theta, family.factor, family.may_tie


def _spm(
    name: str, title: str, context: int, chat: str | None, theta: float = 1e4, eos: tuple[int, ...] = (2,)
) -> Family:
    return Family(
        name, title, "sentencepiece", context, theta, None, 1, 2, eos, chat, sampled=chat is not None
    )


_L3_EOS = (128001, 128009)
_L31_EOS = (128001, 128008, 128009)


def _tiktoken(
    name: str, title: str, context: int, factor: float | None, *, may_tie: bool = False, guard: bool = False
) -> Family:
    newer = factor is not None
    special: Literal["llama-3", "llama-3.1"] = "llama-3.1" if newer else "llama-3"
    return Family(
        name, title, "tiktoken", context, 5e5, factor, 128000, 128001, _L31_EOS if newer else _L3_EOS,
        None if guard else special, may_tie=may_tie, special_tokens=special, sampled=not guard, guard=guard,
    )  # fmt: skip


FAMILIES = {
    family.name: family
    for family in (
        _spm("llama-1", "Llama 1", 2048, None),
        _spm("llama-2", "Llama 2", 4096, "llama-2"),
        _spm("code-llama", "Code Llama", 16384, "llama-2", theta=1e6),
        _spm(
            "code-llama-70b-python",
            "Code Llama 70B Python or Instruct",
            4096,
            "code-llama-70b",
            eos=(2, 32015),
        ),
        _tiktoken("llama-3", "Llama 3", 8192, None),
        _tiktoken("llama-3.1", "Llama 3.1", 131072, 8.0),
        _tiktoken("llama-3.2", "Llama 3.2", 131072, 32.0, may_tie=True),
        _tiktoken("llama-3.3", "Llama 3.3", 131072, 8.0),
        _spm("llama-guard-1", "Llama Guard 1", 4096, None),
        _tiktoken("llama-guard-2", "Llama Guard 2", 8192, None, guard=True),
        _tiktoken("llama-guard-3", "Llama Guard 3", 131072, 8.0, guard=True),
        _tiktoken("llama-guard-3-1b", "Llama Guard 3 1B", 131072, 32.0, may_tie=True, guard=True),
    )
}
