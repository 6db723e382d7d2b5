"""A tokenizer that is not the model's own makes no model folder: whatever is written names tokens that the embedding has."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distconv
from distconv.errors import InputError, MismatchError
from distconv.families.llama import FAMILIES
from distconv.verbs.tokenizer import convert_tokenizer
from tests.checkpoints import Spec, write_checkpoint, write_sentencepiece, write_tiktoken
from tests.extent import share

Write = Callable[[Spec], Path]


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


@settings(max_examples=share(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        with pytest.raises(InputError, match="give the right file by `tokenizer=`") as raised:
            verb()
        assert f"the tokenizer, {source / 'tokenizer.model'}, " in str(raised.value)
    assert not (tmp_path / "out").exists()
    right = checkpoint(Spec(weights)) / "tokenizer.model"
    assert distconv.convert(source, tmp_path / "out", tokenizer=right).chunks


def test_the_tokenizer_alone_heeds_the_checkpoint_beside_it(checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(Spec("llama-3.1"))
    with pytest.raises(MismatchError, match=r"but params\.json has use_scaled_rope; leave `family=` out"):
        convert_tokenizer(source, tmp_path / "out", family="llama-3")
    # A file alone says nothing against it.
    assert convert_tokenizer(source / "tokenizer.model", tmp_path / "out", family="llama-3").notes == ()
    notes = convert_tokenizer(source, tmp_path / "instruct", family="llama-3.1", instruct=True).notes
    assert not any("`instruct=True`" in note for note in notes)
