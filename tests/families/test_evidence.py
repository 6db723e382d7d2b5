"""An option that contents contradict is refused or answered, and so is a tokenizer of another model."""

import re
from pathlib import Path

import pytest

from distconv.errors import MismatchError
from distconv.families.llama import FAMILIES
from distconv.layout.dtypes import BFLOAT16, FLOAT16
from tests.families.test_choose import LLAMA_1_7B, LLAMA_1_30B, Fields, choose, fields, newer

LLAMA_2_7B = LLAMA_1_7B.replace("1e-06", "1e-05") + "\n"
ORDER = (
    "llama-1", "llama-2", "code-llama", "code-llama-70b-python", "llama-guard-1",
    "llama-3", "llama-3.1", "llama-3.2", "llama-3.3", "llama-guard-2", "llama-guard-3", "llama-guard-3-1b",
)  # fmt: skip

# What each family does with --family: "." taken without a word, "n" with a note, "R" refused.
TABLE: dict[str, tuple[Fields | str, int, str]] = {
    "Llama 1 7B, but for a newline Llama 2 7B-chat": (LLAMA_1_7B, 32000, ".nRnn RRRRRRR"),
    "Llama 1 30B": (LLAMA_1_30B, 32000, ".RRRR RRRRRRR"),
    "Llama 1 65B": (fields(8192, 80, 64, 1e-5), 32000, ".nRnn RRRRRRR"),
    "Llama 2 7B": (LLAMA_2_7B, 32000, "R.R.. RRRRRRR"),
    "Llama 2 70B": (fields(8192, 80, 64, 1e-5, n_kv_heads=8), 32000, "n.R.. RRRRRRR"),
    "Code Llama 7B": (fields(4096, 32, 32, 1e-5, rope_theta=1e6), 32016, "RR.RR RRRRRRR"),
    "Code Llama 70B": (fields(8192, 80, 64, 1e-5, n_kv_heads=8, rope_theta=1e6), 32016, "RR.RR RRRRRRR"),
    "Code Llama 70B Python": (
        fields(8192, 80, 64, 1e-5, n_kv_heads=8, rope_theta=1e4),
        32016,
        "n.R.. RRRRRRR",
    ),
    "a small Llama of norm 1e-5": (fields(512, 8, 8, 1e-5), 32000, "..R.. RRRRRRR"),
    "a long Llama 2": (fields(4096, 32, 32, 1e-5, rope_theta=26e6), 32000, "nnnnn RRRRRRR"),
    "scaled rope and sentencepiece": (fields(512, 8, 8, 1e-5, use_scaled_rope=True), 32000, "RRRRR RRRRRRR"),
    "Llama 3 8B": (newer(4096, 32, 32), 128256, "RRRRR .RRR.RR"),
    "Llama 3 8B, said not to be scaled": (newer(4096, 32, 32, use_scaled_rope=False), 128256, "RRRRR .RRR.RR"),
    "a long Llama 3": (newer(4096, 32, 32, rope_theta=283461213.0), 128256, "RRRRR nRRRnRR"),
    "Llama 3 without theta": (newer(4096, 32, 32, rope_theta=None), 128256, "RRRRR nRRRnRR"),
    "Llama 3.1 8B": (newer(4096, 32, 32, use_scaled_rope=True), 128256, "RRRRR R.R.R.R"),
    "Llama 3.1 70B": (newer(8192, 80, 64, use_scaled_rope=True), 128256, "RRRRR R.R.R.R"),
    "Llama 3.1 405B": (newer(16384, 126, 128, use_scaled_rope=True), 128256, "RRRRR R.R.R.R"),
    "Llama 3.2 1B": (newer(2048, 16, 32, use_scaled_rope=True), 128256, "RRRRR RR.RRR."),
    "Llama 3.2 3B": (newer(3072, 28, 24, use_scaled_rope=True), 128256, "RRRRR RR.RRR."),
    "four layers of Llama 3.2 1B": (newer(2048, 4, 32, use_scaled_rope=True), 128256, "RRRRR Rn.nRn."),
    "a scaled size never published": (newer(1024, 16, 16, use_scaled_rope=True), 128256, "RRRRR R...R.."),
}  # fmt: skip
OVERRULED = ("overrules what contents speak for", "is kept; ", "has no rope_theta; ")


@pytest.mark.parametrize("model", TABLE)
def test_a_family_that_contents_contradict_is_refused_or_answered(tmp_path: Path, model: str) -> None:
    params, vocab, answers = TABLE[model]
    kind = "tiktoken" if vocab == 128256 else "sentencepiece"
    dtype = FLOAT16 if model == "Llama 1 65B" else BFLOAT16

    def take(family: str) -> str:
        try:
            chosen = choose(
                tmp_path,
                params,
                vocab=vocab,
                tokenizer=kind,
                tokenizer_size=vocab,
                family=family,
                dtype=dtype,
            )
        except MismatchError as error:
            return "R" if "leave `family=` out" in str(error) else str(error)
        assert chosen.family.name == family
        said = any(word in note for note in chosen.assumptions for word in OVERRULED)
        return "n" if said else "."

    assert "".join(take(family) for family in ORDER) == answers.replace(" ", "")


def test_every_family_is_in_the_table() -> None:
    assert set(ORDER) == set(FAMILIES)


def test_the_way_out_names_the_families_that_fit(tmp_path: Path) -> None:
    params = fields(4096, 32, 32, 1e-5, rope_theta=1e6)
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, params, vocab=32016, family="llama-2")
    assert "`family='llama-2'` (Llama 2), but params.json has rope_theta 1e+06" in str(raised.value)
    assert str(raised.value).endswith("leave `family=` out or give one that fits (code-llama)")


@pytest.mark.parametrize(
    ("params", "family", "said"),
    [
        (fields(512, 8, 8, 1e-5), "code-llama", "params.json has no rope_theta"),
        (newer(4096, 32, 32), "llama-3.1", "params.json has no use_scaled_rope"),
        (newer(1024, 16, 16, use_scaled_rope=True), "llama-3", "params.json has use_scaled_rope"),
        (newer(2048, 16, 32, use_scaled_rope=True), "llama-3.1", "with dim 2048 and 16 layers rope is scaled by 32"),
        (LLAMA_1_30B, "llama-2", "params.json is Meta's own of Llama 1 30B"),
        (LLAMA_2_7B, "llama-1", "params.json is Meta's own of Llama 2 7B"),
    ],
)  # fmt: skip
def test_what_contradicts_a_family_is_said(
    tmp_path: Path, params: Fields | str, family: str, said: str
) -> None:
    title, kind = FAMILIES[family].title, FAMILIES[family].tokenizer
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, params, vocab=128256 if kind == "tiktoken" else 32000, tokenizer=kind, family=family)
    assert f": `family='{family}'` ({title}), but {said}; leave `family=` out or give one that fits (" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("params", "tokenizer", "family", "ending"),
    [
        (
            fields(512, 8, 8, 1e-5), "sentencepiece", "code-llama",
            "code-llama-70b-python, llama-guard-1)",
        ),
        (fields(512, 8, 8, 1e-5), None, "code-llama", "llama-3, llama-guard-1, llama-guard-2)"),
        (
            fields(512, 8, 8, 1e-5, use_scaled_rope=True), "sentencepiece", "code-llama",
            "but params.json has use_scaled_rope, params.json has no rope_theta; leave `family=` out",
        ),
    ],
)  # fmt: skip
def test_only_families_of_the_tokenizer_that_is_there_are_a_way_out(
    tmp_path: Path, params: Fields, tokenizer: str | None, family: str, ending: str
) -> None:
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, params, tokenizer=tokenizer, family=family)
    assert str(raised.value).endswith(ending)


def test_what_no_family_has_is_not_taken_for_one(tmp_path: Path) -> None:
    params = fields(4096, 32, 32, 1e-5, use_scaled_rope=True, rope_theta=5e5)
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, params, vocab=32000, tokenizer="sentencepiece")
    assert re.fullmatch(
        r".*: \S.* by its sentencepiece tokenizer, .*, but params\.json has use_scaled_rope(, [^,;]+)*; no family has both; "
        r"if the tokenizer is another model's, give the right file by `tokenizer=`",
        str(raised.value),
    )


@pytest.mark.parametrize("family", ["llama-2", "llama-guard-1"])
def test_a_vocabulary_of_llama_3_is_not_llama_2s_though_no_tokenizer_is_there(
    tmp_path: Path, family: str
) -> None:
    params = fields(4096, 32, 32, 1e-5)
    with pytest.raises(MismatchError, match="the embedding has 128,256 rows"):
        choose(tmp_path, params, vocab=128256, tokenizer=None, family=family)


@pytest.mark.parametrize(
    ("params", "rows", "tokenizer", "size", "words"),
    [
        (fields(4096, 32, 32, 1e-5), 32000, "tiktoken", 128256, "128,256 tokens, the embedding 32,000 rows"),
        (fields(4096, 32, 32, 1e-5), 32000, "sentencepiece", 32016, "32,016 tokens, the embedding 32,000 rows"),
        (newer(4096, 32, 32), 128256, "sentencepiece", 32000, "as many as Llama 3's tokenizer tokens"),
        (newer(4096, 32, 32), 128256, "tiktoken", 64256, "as many as Llama 3's tokenizer tokens"),
        (newer(4096, 32, 32), 128320, "sentencepiece", 32000, "128,320 rows of vocabulary"),
        (newer(512, 4, 8), 576, "sentencepiece", 320, "has rope_theta 500000: the model has a tiktoken tokenizer"),
        (newer(512, 4, 8, use_scaled_rope=True), 576, "sentencepiece", 320, "has use_scaled_rope: the model has a tiktoken"),
        (fields(512, 4, 8, 1e-5), 32000, "tiktoken", 576, "has no rope_theta: the model has a sentencepiece tokenizer"),
        (fields(512, 4, 8, 1e-5, rope_theta=1e6), 32016, "tiktoken", 576, "has rope_theta 1e+06: the model has a sentencepiece"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_not_the_weights_own_is_refused_with_the_way_out(
    tmp_path: Path, params: Fields, rows: int, tokenizer: str, size: int, words: str
) -> None:
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, params, vocab=rows, tokenizer=tokenizer, tokenizer_size=size)
    assert words in str(raised.value)
    assert "give the right file by `tokenizer=`" in str(raised.value)
    assert f"{size:,} tokens" in str(raised.value)
    assert tokenizer in str(raised.value) or size > rows
    may_be_padded = size < rows != 128256 and "use_scaled_rope" not in params
    assert ("padding, the model's family by `family=`" in str(raised.value)) == may_be_padded


@pytest.mark.parametrize(
    ("params", "tokenizer", "family"),
    [
        (newer(512, 4, 8), "sentencepiece", "llama-2"),
        (fields(512, 4, 8, 1e-5), "tiktoken", "llama-3"),
        (fields(512, 4, 8, 1e-5, rope_theta=1e6), "tiktoken", "llama-3"),
    ],
)
def test_a_padded_embedding_that_looks_like_anothers_is_taken_where_the_family_is_named(
    tmp_path: Path, params: Fields, tokenizer: str, family: str
) -> None:
    with pytest.raises(MismatchError, match="padding, the model's family by `family=`"):
        choose(tmp_path, params, vocab=640, tokenizer=tokenizer, tokenizer_size=576)
    found = choose(tmp_path, params, vocab=640, tokenizer=tokenizer, tokenizer_size=576, family=family)
    assert found.family.name == family


@pytest.mark.parametrize(
    ("params", "rows", "tokenizer", "size"),
    [
        (fields(4096, 32, 32, 1e-5), 32064, "sentencepiece", 32000),
        (fields(4096, 32, 32, 1e-5), 55296, "sentencepiece", 55296),
        (fields(4096, 32, 32, 1e-5), 151680, "sentencepiece", 151680),
        (fields(512, 4, 8, 1e-5, rope_theta=5e5), 32000, "sentencepiece", 32000),
        (newer(4096, 32, 32), 128320, "tiktoken", 128256),
        (newer(512, 4, 8), 640, "tiktoken", 576),
        (fields(512, 4, 8, 1e-5, rope_theta=1e4), 100352, "tiktoken", 100277),
    ],
)
def test_padded_merged_and_small_vocabularies_are_taken(
    tmp_path: Path, params: Fields, rows: int, tokenizer: str, size: int
) -> None:
    chosen = choose(tmp_path, params, vocab=rows, tokenizer=tokenizer, tokenizer_size=size)
    assert chosen.family.tokenizer == tokenizer


def test_ids_that_the_embedding_has_not_are_refused_where_a_tokenizer_would_name_them(tmp_path: Path) -> None:
    python, family = fields(8192, 80, 64, 1e-5, n_kv_heads=8, rope_theta=1e4), "code-llama-70b-python"
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, python, vocab=32015, tokenizer_size=32000, family=family, instruct=True)
    assert str(raised.value) == (
        f"{tmp_path}: Code Llama 70B Python or Instruct (instruct) has the special tokens 32015, the embedding "
        "32,015 rows; give another `family=`, or none, or leave `instruct=True` out"
    )
    for rows, tokenizer, instruct in (
        (32016, "sentencepiece", True),
        (32015, "sentencepiece", False),
        (32015, None, True),
    ):
        found = choose(tmp_path, python, vocab=rows, tokenizer=tokenizer, family=family, instruct=instruct)
        assert (found.family.name, found.instruct) == (family, instruct)
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, newer(512, 4, 8), vocab=128000, tokenizer="tiktoken")
    assert str(raised.value) == (
        f"{tmp_path}: Llama 3 has the special tokens 128000, 128001, the embedding 128,000 rows; "
        "give another `family=`, or none"
    )
