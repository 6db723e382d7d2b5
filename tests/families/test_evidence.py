"""An option that contents contradict is refused or answered, and so is a tokenizer of another model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distconv
from distconv.errors import InputError, MismatchError
from distconv.families.choose import Choice
from distconv.families.llama import FAMILIES
from distconv.layout.dtypes import BFLOAT16, FLOAT16
from distconv.verbs.tokenizer import convert_tokenizer
from tests.checkpoints import Spec, write_checkpoint, write_sentencepiece, write_tiktoken
from tests.families.test_choose import LLAMA_1_7B, LLAMA_1_30B, Fields, choose, fields, newer

Write = Callable[[Spec], Path]

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


@pytest.mark.parametrize(
    ("model", "family", "answer"),
    [
        (model, family, answer)
        for model, (_params, _vocab, answers) in TABLE.items()
        for family, answer in zip(ORDER, answers.replace(" ", ""), strict=True)
    ],
)
def test_a_family_that_contents_contradict_is_refused_or_answered(
    tmp_path: Path, model: str, family: str, answer: str
) -> None:
    params, vocab, _answers = TABLE[model]
    kind = "tiktoken" if vocab == 128256 else "sentencepiece"
    dtype = FLOAT16 if model == "Llama 1 65B" else BFLOAT16

    def take() -> Choice:
        return choose(
            tmp_path, params, vocab=vocab, tokenizer=kind, tokenizer_size=vocab, family=family, dtype=dtype
        )

    if answer == "R":
        with pytest.raises(MismatchError, match="leave --family out"):
            take()
        return
    chosen = take()
    assert chosen.family.name == family
    said = any(word in note for note in chosen.assumptions for word in OVERRULED)
    assert said == (answer == "n")


def test_every_family_is_in_the_table() -> None:
    assert set(ORDER) == set(FAMILIES)


def test_the_way_out_names_the_families_that_fit(tmp_path: Path) -> None:
    params = fields(4096, 32, 32, 1e-5, rope_theta=1e6)
    with pytest.raises(MismatchError) as raised:
        choose(tmp_path, params, vocab=32016, family="llama-2")
    assert "--family llama-2 (Llama 2), but params.json has rope_theta 1e+06" in str(raised.value)
    assert str(raised.value).endswith("leave --family out or give one that fits (code-llama)")


def test_what_no_family_has_is_not_taken_for_one(tmp_path: Path) -> None:
    params = fields(4096, 32, 32, 1e-5, use_scaled_rope=True)
    with pytest.raises(
        MismatchError, match=r"Llama 2 by its sentencepiece tokenizer, but params\.json has use_scaled_rope"
    ):
        choose(tmp_path, params, tokenizer_size=32000)


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
    assert "give the right file by --tokenizer" in str(raised.value)


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
    with pytest.raises(MismatchError, match="padding, the model's family by --family"):
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


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small tokenizers, by the number of their tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        **{f"s{size}": write_sentencepiece(folder / f"s{size}", size) for size in (300, 320, 330)},
        **{f"t{256 + ranks}": write_tiktoken(folder / f"t{256 + ranks}", ranks) for ranks in (256, 320, 340)},
    }


def list_ids(folder: Path) -> set[int]:
    """Give every token id that a file beside the weights names."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        for key, value in content.items():
            if key.endswith("_token_id") and value is not None:
                found |= set(value) if isinstance(value, list) else {value}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    found |= set(tokenizer["model"]["vocab"].values()) | {token["id"] for token in tokenizer["added_tokens"]}
    steps = json.dumps(tokenizer["post_processor"])
    return found | {int(part.split("]")[0]) for part in steps.split('"ids": [')[1:]}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weights=st.sampled_from(sorted(FAMILIES)),
    rows=st.sampled_from([None, 300, 319, 320, 512, 575, 576, 640]),
    tokenizer=st.sampled_from(["s300", "s320", "s330", "t512", "t576", "t596"]),
    asked=st.none() | st.sampled_from(sorted(FAMILIES)),
    instruct=st.booleans(),
)
def test_no_file_names_a_token_that_the_embedding_has_not(
    tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Path], weights: str, rows: int | None,
    tokenizer: str, asked: str | None, *, instruct: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    spec = Spec(weights, dim=16, heads=2, layers=1, vocab=rows)
    source = write_checkpoint(folder / "in", spec, tokenizers[tokenizer])
    try:
        distconv.convert(source, folder / "out", family=asked, instruct=instruct)
    except MismatchError:
        assert not (folder / "out").exists()
        return
    assert max(list_ids(folder / "out")) < spec.vocab_size


@pytest.mark.parametrize(
    ("weights", "other"), [("llama-2", "llama-3"), ("llama-3", "llama-2"), ("llama-3.1", "code-llama")]
)
def test_every_verb_refuses_the_tokenizer_of_another_model(
    checkpoint: Write, tmp_path: Path, weights: str, other: str
) -> None:  # fmt: skip
    source = write_checkpoint(tmp_path / "in", Spec(weights), checkpoint(Spec(other)) / "tokenizer.model")
    for verb in (
        lambda: distconv.inspect(source),
        lambda: distconv.plan(source),
        lambda: distconv.convert(source, tmp_path / "out"),
        lambda: convert_tokenizer(source, tmp_path / "out"),
    ):
        with pytest.raises(InputError, match="give the right file by --tokenizer"):
            verb()
    assert not (tmp_path / "out").exists()
    right = checkpoint(Spec(weights)) / "tokenizer.model"
    assert distconv.convert(source, tmp_path / "out", tokenizer=right).chunks


def test_the_tokenizer_alone_heeds_the_checkpoint_beside_it(checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(Spec("llama-3.1"))
    with pytest.raises(MismatchError, match=r"but params\.json has use_scaled_rope; leave --family out"):
        convert_tokenizer(source, tmp_path / "out", family="llama-3")
    # A file alone says nothing against it.
    assert convert_tokenizer(source / "tokenizer.model", tmp_path / "out", family="llama-3").notes == ()
    notes = convert_tokenizer(source, tmp_path / "instruct", family="llama-3.1", instruct=True).notes
    assert not any("--instruct" in note for note in notes)
