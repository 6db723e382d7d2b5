"""The families are those that Meta published, with what their config, tokenizer and chat need."""

import re
import runpy
from dataclasses import asdict
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.families import llama
from distconv.families.cuts import COLUMNS, ROWS
from distconv.families.known import ALL_FAMILIES
from distconv.families.llama import EMBEDDING, FAMILIES, IGNORED, RULES, TIKTOKEN_SIZE
from distconv.sidecars.chat import CHAT_TEMPLATES
from distconv.sidecars.special_tokens import TOKEN_SETS
from tests import reference
from tests.checkpoints import COLUMN_EMBEDDING, Spec, shapes


class Published(NamedTuple):
    """What config.json and generation_config.json of the published models say, and which tokens they have."""

    title: str
    context: int
    theta: float
    factor: float | None
    eos: tuple[int, ...]
    instruct_eos: tuple[int, ...]
    chat: str | None = None
    guard: bool = False
    tied: bool = False
    tokens: str | None = None


TWO, END_OF_TURN, END_OF_MESSAGE = (2,), (128001, 128009), (128001, 128008, 128009)
END = (128001,)
PUBLISHED = {
    "llama-1": Published("Llama 1", 2048, 1e4, None, TWO, TWO),
    "llama-2": Published("Llama 2", 4096, 1e4, None, TWO, TWO, "llama-2"),
    "code-llama": Published("Code Llama", 16384, 1e6, None, TWO, TWO, "llama-2"),
    "code-llama-70b-python": Published(
        "Code Llama 70B Python or Instruct", 4096, 1e4, None, TWO, (2, 32015), "code-llama-70b"
    ),
    "llama-3": Published("Llama 3", 8192, 5e5, None, END, END_OF_TURN, "llama-3", tokens="llama-3"),
    "llama-3.1": Published(
        "Llama 3.1", 131072, 5e5, 8.0, END, END_OF_MESSAGE, "llama-3.1", tokens="llama-3.1"
    ),
    "llama-3.2": Published(
        "Llama 3.2", 131072, 5e5, 32.0, END, END_OF_MESSAGE, "llama-3.1", tied=True, tokens="llama-3.1"
    ),
    "llama-3.3": Published(
        "Llama 3.3", 131072, 5e5, 8.0, END, END_OF_MESSAGE, "llama-3.1", tokens="llama-3.1"
    ),
    "llama-guard-1": Published("Llama Guard 1", 4096, 1e4, None, TWO, TWO),
    "llama-guard-2": Published(
        "Llama Guard 2", 8192, 5e5, None, END, END_OF_TURN, guard=True, tokens="llama-3"
    ),
    "llama-guard-3": Published(
        "Llama Guard 3", 131072, 5e5, 8.0, END, END_OF_MESSAGE, guard=True, tokens="llama-3.1"
    ),
    "llama-guard-3-1b": Published(
        "Llama Guard 3 1B", 131072, 5e5, 32.0, END, END_OF_MESSAGE, guard=True, tied=True, tokens="llama-3.1"
    ),
}  # fmt: skip


def test_the_families_are_those_that_were_published() -> None:
    # Loaded anew: the table is made when the module is, which may have been long before this test.
    loaded = runpy.run_path(llama.__file__, run_name=llama.__name__)["FAMILIES"]
    assert {name: asdict(family) for name, family in loaded.items()} == {
        name: {
            "name": name,
            "title": row.title,
            "tokenizer": "sentencepiece" if row.tokens is None else "tiktoken",
            "context": row.context,
            "theta": row.theta,
            "factor": row.factor,
            "bos": 1 if row.tokens is None else 128000,
            "eos": row.eos[0],
            "instruct_eos": row.instruct_eos,
            "chat": row.chat,
            "may_tie": row.tied,
            "special_tokens": row.tokens,
            "sampled": row.chat is not None,
            "guard": row.guard,
            "architecture": "llama",
            "published_tokens": TIKTOKEN_SIZE,
        }
        for name, row in PUBLISHED.items()
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_of_a_published_tokenizer_are_the_published_ones(name: str) -> None:
    family, row = FAMILIES[name], PUBLISHED[name]
    for size in (None, TIKTOKEN_SIZE if row.tokens else 32_000):
        assert family.token_ids(size, instruct=False) == (family.bos, row.eos)
        assert family.token_ids(size, instruct=True) == (family.bos, row.instruct_eos)


@given(
    version=st.sampled_from(["llama-3", "llama-3.1"]), ranks=st.integers(1, 200_000), instruct=st.booleans()
)
def test_special_tokens_follow_the_ranks_of_a_tiktoken_file(
    version: str, ranks: int, *, instruct: bool
) -> None:
    special = TOKEN_SETS[version].texts  # type: ignore[arg-type]
    begin, ends = FAMILIES[version].token_ids(ranks + len(special), instruct=instruct)
    assert special[begin - ranks] == "<|begin_of_text|>"
    wanted = {"<|end_of_text|>"}
    if instruct:
        wanted |= {"<|eot_id|>"} | ({"<|eom_id|>"} & set(special))
    assert {special[end - ranks] for end in ends} == wanted


@pytest.mark.parametrize("size", [1, 320, 32_016, 200_000])
def test_ids_of_a_sentencepiece_file_are_its_first_ones_whatever_its_size(size: int) -> None:
    assert FAMILIES["llama-2"].token_ids(size, instruct=True) == (1, (2,))


def test_families_are_alike_where_published_configs_are() -> None:
    for name, row in PUBLISHED.items():
        for other, theirs in PUBLISHED.items():
            same = [
                (each.context, each.theta, each.factor, each.tied, each.tokens is None)
                for each in (row, theirs)
            ]
            assert FAMILIES[name].is_like(FAMILIES[other]) == (same[0] == same[1])


def test_every_chat_has_a_template_and_only_the_first_llamas_cut_columns_of_the_embedding() -> None:
    assert {family.chat for family in ALL_FAMILIES.values()} - {None} == set(CHAT_TEMPLATES)
    assert {name for name, family in FAMILIES.items() if family.embedding_cut == COLUMNS} == COLUMN_EMBEDDING
    assert {family.embedding_cut for family in FAMILIES.values()} == {COLUMNS, ROWS}


def test_rules_and_cuts_are_those_of_metas_model() -> None:
    spec = Spec(layers=1)
    sizes = {"dim": 64, "q": 64, "kv": 64, "ffn": spec.ffn_dim, "vocab": spec.vocab_size}
    found = {
        rule.source.replace("{i}", "0"): (
            rule.target.replace("{i}", "0"),
            tuple(sizes[size] for size in rule.shape),
        )
        for rule in RULES
    }
    assert found == {name: (reference.rename(name), shape) for name, shape, _axis in shapes(spec)}
    assert {rule.source.replace("{i}", "0"): rule.cut.axis for rule in RULES if rule.cut is not None} == {
        name: axis for name, _shape, axis in shapes(spec) if name != EMBEDDING
    }


@pytest.mark.parametrize(
    "name",
    [
        "rope.freqs",
        "layers.10.attention.inner_attention.rope.freqs",
        "freqs_cis",
        "model.freqs_cos",
        "layers.0.attention.inv_freq",
        "layers.0.attention.cache_k",
        "layers.0.attention.kv_cache_v",
        "causal_mask",
        "layers.0.attention.rope.cache",
    ],
)
def test_what_follows_from_the_configuration_is_no_weight(name: str) -> None:
    assert any(re.fullmatch(pattern, name) for pattern in IGNORED)
    assert not any(
        re.fullmatch(pattern, weight) for pattern in IGNORED for weight, _shape, _axis in shapes(Spec())
    )
