"""Families are told from contents, as Meta's published files have them."""

import json
from pathlib import Path

import pytest
import torch

from distconv.errors import InputError, UsageError
from distconv.families.choose import Choice, choose_family
from distconv.families.dimensions import Dimensions
from distconv.families.evidence import Facts
from distconv.families.llama import FAMILIES
from distconv.formats.meta.params import read_params
from distconv.layout.dtypes import BFLOAT16, FLOAT16, DType
from distconv.storage.local import LocalStorage
from distconv.verbs.checkpoint import read_checkpoint
from tests.checkpoints import Spec, write_checkpoint

Fields = dict[str, object]


def fields(dim: int, layers: int, heads: int, eps: float, **more: object) -> Fields:
    """Give params.json's fields, in any order but complete."""
    return {
        "dim": dim,
        "multiple_of": 256,
        "n_heads": heads,
        "n_layers": layers,
        "norm_eps": eps,
        "vocab_size": -1,
    } | more


def newer(dim: int, layers: int, heads: int, **more: object) -> Fields:
    """Give the fields as Llama 3 and later have them."""
    return fields(dim, layers, heads, 1e-5, n_kv_heads=8, rope_theta=500000.0, vocab_size=128256) | more


def choose(
    folder: Path, params: Fields | str, *, dtype: DType = BFLOAT16, vocab: int = 32000, tokenizer: str | None = "sentencepiece",
    family: str | None = None, instruct: bool | None = None, tied: bool = False, tokenizer_size: int | None = None,
    called: str | None = None,
) -> Choice:  # fmt: skip
    """Choose for a model that has these fields, in a folder that may be called otherwise."""
    path = folder / "params.json"
    path.write_text(params if isinstance(params, str) else json.dumps(params))
    read = read_params(LocalStorage(), str(path))
    sizes = Dimensions(
        read.dim, read.n_layers, read.n_heads, read.kv_heads, read.head_dim, read.ffn_dim or 0, vocab
    )
    facts = Facts(read, sizes, dtype, tokenizer, called or str(folder), tied, tokenizer_size)  # type: ignore[arg-type]
    return choose_family(facts, family, instruct=instruct)


LLAMA_1_7B = (
    '{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}'
)
LLAMA_1_13B = LLAMA_1_7B.replace("4096", "5120").replace("32,", "40,")
LLAMA_1_30B = (
    LLAMA_1_7B.replace("4096", "6656")
    .replace('"n_heads": 32', '"n_heads": 52')
    .replace('"n_layers": 32', '"n_layers": 60')
)


@pytest.mark.parametrize(
    ("params", "dtype", "vocab", "family", "other"),
    [
        (LLAMA_1_7B, FLOAT16, 32000, "llama-1", None),
        (LLAMA_1_13B, FLOAT16, 32000, "llama-1", None),
        (LLAMA_1_30B, FLOAT16, 32000, "llama-1", None),
        (fields(8192, 80, 64, 1e-5), FLOAT16, 32000, "llama-1", None),
        (LLAMA_1_7B.replace("1e-06", "1e-05") + "\n", BFLOAT16, 32000, "llama-2", None),
        (LLAMA_1_7B + "\n", BFLOAT16, 32000, "llama-2", None),
        (LLAMA_1_13B.replace("1e-06", "1e-05") + "\n", BFLOAT16, 32000, "llama-2", None),
        (fields(8192, 80, 64, 1e-5, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.3), BFLOAT16, 32000, "llama-2", None),
        (fields(4096, 32, 32, 1e-6, extra=1), FLOAT16, 32000, "llama-1", "llama-2"),
        (fields(4096, 32, 32, 1e-6, extra=1), BFLOAT16, 32000, "llama-2", "llama-1"),
        (fields(4096, 32, 32, 1e-5, rope_theta=1e6), BFLOAT16, 32016, "code-llama", None),
        (fields(5120, 40, 40, 1e-5, rope_theta=1e6), BFLOAT16, 32016, "code-llama", None),
        (fields(8192, 48, 64, 1e-5, n_kv_heads=8, rope_theta=1e6), BFLOAT16, 32000, "code-llama", None),
        (fields(8192, 80, 64, 1e-5, n_kv_heads=8, rope_theta=1e6), BFLOAT16, 32016, "code-llama", None),
        (fields(8192, 80, 64, 1e-5, n_kv_heads=8, rope_theta=10000.0), BFLOAT16, 32016, "code-llama-70b-python", None),
    ],
)  # fmt: skip
def test_a_sentencepiece_model_is_told_by_its_parameters(
    tmp_path: Path, params: Fields | str, dtype: DType, vocab: int, family: str, other: str | None
) -> None:
    choice = choose(tmp_path, params, dtype=dtype, vocab=vocab)
    assert choice.family.name == family
    assert choice.evidence
    said = [note for note in choice.assumptions if "`family=" in note]
    assert len(said) == (0 if other is None else 1)
    assert all(f"`family='{other}'`" in note for note in said)


@pytest.mark.parametrize(
    ("params", "family", "other"),
    [
        (newer(4096, 32, 32), "llama-3", "llama-guard-2"),
        (newer(8192, 80, 64), "llama-3", "llama-guard-2"),
        (newer(4096, 32, 32, use_scaled_rope=True), "llama-3.1", "llama-guard-3"),
        (newer(8192, 80, 64, use_scaled_rope=True), "llama-3.1", "llama-3.3"),
        (newer(16384, 126, 128, use_scaled_rope=True), "llama-3.1", None),
        (newer(16384, 126, 128, use_scaled_rope=True, n_kv_heads=16), "llama-3.1", None),
        (newer(2048, 16, 32, use_scaled_rope=True), "llama-3.2", "llama-guard-3-1b"),
        (newer(3072, 28, 24, use_scaled_rope=True), "llama-3.2", None),
        (newer(1024, 16, 16, use_scaled_rope=True), "llama-3.1", "llama-3.2"),
    ],
)
def test_a_tiktoken_model_is_told_by_its_parameters(
    tmp_path: Path, params: Fields, family: str, other: str | None
) -> None:
    for tokenizer in ("tiktoken", None):
        choice = choose(tmp_path, params, vocab=128256, tokenizer=tokenizer)
        assert choice.family.name == family
        said = [note for note in choice.assumptions if "`family=" in note]
        assert len(said) == (0 if other is None else 1)
        assert all(f"`family='{other}'`" in note for note in said)


SCALED = "params.json has use_scaled_rope"
SINGLE = 9.999999747378752e-06
"""What float32 makes of 1e-5."""


@pytest.mark.parametrize(
    ("params", "dtype", "vocab", "family", "evidence"),
    [
        (newer(4096, 32, 32), BFLOAT16, 128256, "llama-3", ["params.json has no scaled rope"]),
        (newer(2048, 16, 32, use_scaled_rope=True), BFLOAT16, 128256, "llama-3.2", [SCALED, "dim 2048 is that of Llama 3.2"]),
        (newer(3072, 28, 24, use_scaled_rope=True), BFLOAT16, 128256, "llama-3.2", [SCALED, "dim 3072 is that of Llama 3.2"]),
        (newer(8192, 80, 64, use_scaled_rope=True), BFLOAT16, 128256, "llama-3.1", [SCALED, "dim 8192 is that of Llama 3.1"]),
        (newer(1024, 16, 16, use_scaled_rope=True), BFLOAT16, 128256, "llama-3.1", [SCALED]),
        (newer(1024, 16, 16, use_scaled_rope=True, rope_scaling_factor=16), BFLOAT16, 128256, "llama-3.1", [SCALED, "and a factor of 16"]),
        (fields(512, 8, 8, 1e-5, rope_theta=1e6), BFLOAT16, 32000, "code-llama", ["rope_theta is 1e+06"]),
        (fields(512, 8, 8, 1e-5, rope_theta=2e6), BFLOAT16, 32000, "code-llama", ["rope_theta is 2e+06"]),
        (fields(8192, 80, 64, 1e-5, n_kv_heads=8, rope_theta=1e4), BFLOAT16, 32016, "code-llama-70b-python", ["rope_theta 10000 is written out", "vocabulary of 32,016"]),
        (fields(8192, 80, 64, 1e-5, n_kv_heads=8, rope_theta=1e4), BFLOAT16, 32000, "llama-2", ["8 key heads for 64 heads"]),
        (fields(4096, 32, 32, 1e-5, n_kv_heads=4, rope_theta=1e4), BFLOAT16, 32016, "llama-2", ["4 key heads for 32 heads"]),
        (fields(8192, 80, 64, 1e-5, n_kv_heads=8), BFLOAT16, 32016, "llama-2", ["8 key heads for 64 heads, and no rope_theta"]),
        (LLAMA_1_30B, FLOAT16, 32000, "llama-1", ["params.json is Meta's own of Llama 1 30B"]),
        (LLAMA_1_7B + "\n", BFLOAT16, 32000, "llama-2", ["params.json is Meta's own of Llama 2 7B-chat"]),
        (fields(6656, 60, 52, 1e-6, n_kv_heads=52), BFLOAT16, 32000, "llama-1", ["dim 6656 with as many key heads as heads is that of Llama 1"]),
        (fields(8192, 80, 64, 1e-5), BFLOAT16, 32000, "llama-1", ["dim 8192 with as many key heads as heads is that of Llama 1"]),
        (fields(4096, 32, 32, 1e-5, extra=1), FLOAT16, 32000, "llama-2", ["norm_eps 1e-05"]),
        (fields(5120, 40, 40, SINGLE, extra=1), FLOAT16, 32000, "llama-2", ["norm_eps 1e-05"]),
        (fields(5120, 40, 40, 1e-6, extra=1), BFLOAT16, 32000, "llama-1", ["norm_eps 1e-06 at dim 5120"]),
        (fields(512, 8, 8, 1e-5), FLOAT16, 32000, "llama-2", ["norm_eps 1e-05"]),
        (fields(512, 8, 8, 5e-6), FLOAT16, 32000, "llama-1", ["norm_eps 5e-06", "stored as float16"]),
        (fields(512, 8, 8, 5e-6), BFLOAT16, 32000, "llama-2", ["norm_eps 5e-06", "stored as bfloat16"]),
    ],
)  # fmt: skip
def test_what_a_family_was_told_by_is_said(
    tmp_path: Path, params: Fields | str, dtype: DType, vocab: int, family: str, evidence: list[str]
) -> None:
    kind = "tiktoken" if vocab == 128256 else "sentencepiece"
    choice = choose(tmp_path, params, dtype=dtype, vocab=vocab, tokenizer=kind)
    assert choice.family.name == family
    assert choice.evidence == (f"the tokenizer is a {kind} file", *evidence)
    without = choose(tmp_path, params, dtype=dtype, vocab=vocab, tokenizer=None)
    assert without.family.name == family
    assert without.evidence[1:] == tuple(evidence)
    if vocab == 128256:
        assert without.evidence[0] == "128,256 rows of vocabulary"


@pytest.mark.parametrize(
    ("params", "vocab", "first"),
    [
        (fields(512, 8, 8, 1e-5), 32000, "params.json has no rope_theta"),
        (fields(512, 8, 8, 1e-5, rope_theta=1e6), 640, "params.json has rope_theta 1e+06"),
        (newer(512, 4, 8), 640, "params.json has rope_theta 500000"),
        (newer(512, 4, 8, use_scaled_rope=True), 640, SCALED),
        (fields(512, 8, 8, 1e-5, rope_theta=1e4), 32000, "32,000 rows of vocabulary"),
        (newer(512, 4, 8), 128255, "params.json has rope_theta 500000"),
        (newer(512, 4, 8), 128256, "128,256 rows of vocabulary"),
    ],
)
def test_without_a_tokenizer_its_kind_is_told_by_what_else_there_is(
    tmp_path: Path, params: Fields, vocab: int, first: str
) -> None:
    choice = choose(tmp_path, params, vocab=vocab, tokenizer=None)
    assert choice.evidence[0] == first
    assert choice.family.tokenizer == ("tiktoken" if "n_kv_heads" in params else "sentencepiece")


def test_what_could_be_two_families_is_said_with_both_and_the_option(tmp_path: Path) -> None:
    (alike,) = (note for note in choose(tmp_path, newer(8192, 80, 64, use_scaled_rope=True), vocab=128256, tokenizer="tiktoken").assumptions if "`family=" in note)  # fmt: skip
    assert alike == (
        "Llama 3.1 and Llama 3.3 look alike here; Llama 3.1 is assumed, `family='llama-3.3'` changes that"
    )
    (longer,) = (note for note in choose(tmp_path, fields(512, 8, 8, 1e-5)).assumptions if "`family=" in note)
    assert longer == (
        "Llama 2 is assumed (context 4096); if it is Llama 1 (context 2048), add `family='llama-1'`"
    )


def test_one_storage_for_embedding_and_output_means_llama_3_2(tmp_path: Path) -> None:
    params = newer(1024, 16, 16, use_scaled_rope=True)
    assert choose(tmp_path, params, vocab=128256, tokenizer="tiktoken", tied=True).family.name == "llama-3.2"


def test_the_option_wins_and_the_name_of_a_folder_is_only_a_hint(tmp_path: Path) -> None:
    folder = tmp_path / "Llama-2-7b-chat"
    folder.mkdir()
    choice = choose(folder, LLAMA_1_7B, dtype=FLOAT16)
    assert choice.family.name == "llama-1"
    chosen = choose(folder, LLAMA_1_7B, family="llama-2")
    assert (chosen.family.name, chosen.instruct) == ("llama-2", False)
    assert "as the folder's name 'Llama-2-7b-chat' suggests, add `instruct=True`" in chosen.assumptions[0]
    (overruled,) = choose(folder, LLAMA_1_7B, family="llama-2", instruct=True).assumptions
    assert overruled == (
        "`family='llama-2'` overrules what contents speak for: Llama 1 (the tokenizer is a sentencepiece file; "
        "params.json is Meta's own of Llama 1 7B), context 2,048 and not 4,096"
    )


@pytest.mark.parametrize(
    ("called", "hint"),
    [
        ("/models/Llama-2-7b-chat", "Llama-2-7b-chat"),
        ("/models/Meta-Llama-3-8B-Instruct/", "Meta-Llama-3-8B-Instruct"),
        ("s3://bucket/CodeLlama-7b-INSTRUCT//", "CodeLlama-7b-INSTRUCT"),
        ("/chat/instruct/llama-2-7b", None),
        ("/models/llama-2-7b", None),
    ],
)
def test_the_last_name_of_a_folder_may_suggest_an_instruct_model(
    tmp_path: Path, called: str, hint: str | None
) -> None:
    (note,) = choose(tmp_path, LLAMA_1_7B + "\n", called=called).variant
    suggested = "" if hint is None else f", as the folder's name {hint!r} suggests"
    assert note == f"taken as a base model; if it is an instruct (chat) model{suggested}, add `instruct=True`"
    # Where it was said, whichever it is, nothing is asked.
    for said in (True, False):
        assert choose(tmp_path, LLAMA_1_7B + "\n", called=called, instruct=said).variant == ()


@pytest.mark.parametrize("family", ["llama-1", "llama-guard-1"])
def test_a_family_without_instruct_models_says_so_only_where_one_is_asked_for(
    tmp_path: Path, family: str
) -> None:
    plain = fields(512, 8, 8, 1e-5)
    assert choose(tmp_path, plain, family=family, called="/chat").variant == ()
    title = FAMILIES[family].title
    (note,) = choose(tmp_path, plain, family=family, instruct=True).variant
    assert note == f"{title} has no instruct models; `instruct=True` changes nothing"


@pytest.mark.parametrize("instruct", [False, True])
@pytest.mark.parametrize("family", ["llama-guard-2", "llama-guard-3"])
def test_guard_is_always_instruct_has_no_chat_template_and_says_so(
    tmp_path: Path, family: str, *, instruct: bool
) -> None:
    params = newer(4096, 32, 32, use_scaled_rope=family == "llama-guard-3")
    choice = choose(tmp_path, params, vocab=128256, tokenizer="tiktoken", family=family, instruct=instruct)
    assert choice.instruct
    assert choice.variant == ("Llama Guard has no chat template here: its prompt is a moderation task",)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`family='llama-9'`: unknown; expected one of llama-1, "):
        choose(tmp_path, LLAMA_1_7B, family="llama-9")
    with pytest.raises(InputError, match="has a tiktoken tokenizer, found a sentencepiece one"):
        choose(tmp_path, LLAMA_1_7B, family="llama-3")


def save(folder: Path, spec: Spec, change: object = None) -> Path:
    """Write a checkpoint and change the tensors of its last shard."""
    write_checkpoint(folder, spec)
    path = folder / spec.naming.format(spec.shards - 1)
    state = torch.load(path, weights_only=True)
    change(state)  # type: ignore[operator]
    torch.save(state, path)
    return folder


def refused(folder: Path) -> list[str]:
    """Read a checkpoint that must be refused: the lines of the message."""
    with pytest.raises(InputError) as raised:
        read_checkpoint(LocalStorage(), str(folder))
    return str(raised.value).splitlines()


SPEC = Spec(shards=2, kv_heads=2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text_model.tok_embeddings.weight", "a Llama 3.2 Vision model"),
        ("vision_model.x", "a Llama 3.2 Vision model"),
        ("layers.0.attention.wq.scales", "a quantized checkpoint"),
        ("layers.0.attention.wq.lora_a.weight", "a LoRA checkpoint"),
        ("layers.0.feed_forward.experts.w1", "a mixture-of-experts model"),
        ("model.layers.0.self_attn.q_proj.weight", "a checkpoint with Transformers' names"),
    ],
)
def test_other_models_are_refused_by_their_tensors(tmp_path: Path, name: str, words: str) -> None:
    folder = save(tmp_path / "m", SPEC, lambda state: state.update({name: torch.ones(2)}))
    (line,) = refused(folder)
    assert words in line
    assert name in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(foreign=torch.ones(2)), "consolidated.01.pth: foreign is no tensor of a 2-layer model"),
        (lambda state: state.pop("layers.1.attention.wk.weight"), "layers.1.attention.wk.weight: missing in consolidated.01.pth"),
        (lambda state: state.pop("output.weight"), "output.weight: missing in consolidated.01.pth"),
        (
            lambda state: state.update({"layers.0.attention.wq.weight": torch.ones(16, 64, dtype=torch.bfloat16)}),
            "layers.0.attention.wq.weight in consolidated.01.pth: shape (16, 64), expected (32, 64)",
        ),
        (
            lambda state: state.update({"norm.weight": torch.ones(64, dtype=torch.float32)}),
            "norm.weight: stored as bfloat16 and float32 in different shards",
        ),
        (
            lambda state: state.update({"layers.0.attention.wv.weight": torch.ones(16, 64, dtype=torch.int8)}),
            "a quantized checkpoint (int4 or int8 weights, as SpinQuant has them)",
        ),
        (
            lambda state: state.update({"layers.2.ffn_norm.weight": torch.ones(64)}),
            "layers.2.ffn_norm.weight is no tensor of a 2-layer model",
        ),
    ],
)  # fmt: skip
def test_a_shard_that_does_not_fit_is_named_with_found_and_expected(
    tmp_path: Path, change: object, words: str
) -> None:
    folder = save(tmp_path / "m", SPEC, change)
    lines = refused(folder)
    assert any(words in line for line in lines)
    assert any(line.startswith(f"{folder}: ") for line in lines)  # a name of a file is in many folders


def test_all_that_does_not_fit_comes_at_once(tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        del state["norm.weight"], state["layers.0.ffn_norm.weight"]
        state["layers.1.attention.wo.weight"] = torch.ones(3, 3)

    assert len(refused(save(tmp_path / "m", SPEC, change))) >= 3


def test_params_and_tensors_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", SPEC)
    good = json.loads((folder / "params.json").read_text())
    for change in (
        {"dim": 128},
        {"n_layers": 3},
        {"n_layers": 1},
        {"n_heads": 2},
        {"n_kv_heads": 4},
        {"n_kv_heads": 1},
    ):
        (folder / "params.json").write_text(json.dumps(good | change))
        if change == {"n_heads": 2}:  # the key heads then are of another size
            assert any("wk.weight" in line for line in refused(folder))
        else:
            assert refused(folder)


def test_an_odd_vocabulary_and_feed_forward_size_are_only_noted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", SPEC)
    good = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(good | {"vocab_size": 5, "multiple_of": 64}))
    notes = read_checkpoint(LocalStorage(), str(folder)).notes
    assert any("vocab_size 5, the embedding has 320 rows" in note for note in notes)
    assert any("w1 has 176 rows" in note for note in notes)
