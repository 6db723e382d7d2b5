"""Every field of params.json is read by each of the names that trainers have for it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from distconv.errors import InputError
from tests.formats.test_params import GOOD, read

NUMBERS = {
    "factor": ("rope_scaling_factor", "rope_scale_factor", "scaling_factor", "scale_factor", "factor"),
    "low": ("rope_low_freq_factor", "low_freq_factor"),
    "high": ("rope_high_freq_factor", "high_freq_factor"),
    "original_context": ("original_max_position_embeddings", "old_context_len"),
}
"""The names of each number of rope scaling; the last three of the first are taken within an object alone."""


@pytest.mark.parametrize("holder", [None, "rope_scaling", "rope_scaling_args"])
@pytest.mark.parametrize(
    ("field", "name"), [(field, name) for field, names in NUMBERS.items() for name in names]
)
def test_each_number_of_rope_scaling_is_read_by_each_of_its_names(
    tmp_path: Path, holder: str | None, field: str, name: str
) -> None:
    if holder is None:
        known = name not in NUMBERS["factor"][2:]
        params = read(tmp_path, GOOD | {"use_scaled_rope": True, name: 7})
        assert bool(params.notes) != known
    else:
        known = True
        for kind in ({}, {"rope_type": "llama3"}, {"type": "llama3"}):
            params = read(tmp_path, GOOD | {holder: {name: 7, **kind}})
            assert (params.use_scaled_rope, params.notes) == (True, ())
    assert dataclasses.asdict(params.rope_scaling) == dict.fromkeys(NUMBERS) | ({field: 7} if known else {})


def test_numbers_of_rope_scaling_that_agree_in_both_places_are_one(tmp_path: Path) -> None:
    twice = {"low_freq_factor": 1, "high_freq_factor": 4, "rope_scaling_factor": 8}
    params = read(tmp_path, GOOD | twice | {"rope_scaling": twice})
    assert dataclasses.asdict(params.rope_scaling) == {
        "factor": 8,
        "low": 1,
        "high": 4,
        "original_context": None,
    }
    for name in ("low_freq_factor", "high_freq_factor"):
        with pytest.raises(InputError, match=f"rope_{name} is given twice, with different values$"):
            read(tmp_path, GOOD | twice | {"rope_scaling": twice | {name: 2}})
    within = {"old_context_len": 8192}
    assert (
        read(tmp_path, GOOD | {"old_context_len": 4096, "rope_scaling": within}).rope_scaling.original_context
        == 8192
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        *(({name: True}, {"tied": True}) for name in ("weight_tying", "tied_embeddings", "tie_embeddings", "tie_word_embeddings")),
        *(({name: 512}, {"trained_context": (name, 512)}) for name in ("max_seq_len", "max_seqlen", "max_position_embeddings", "context_length", "seq_len")),
        *(({name: 5e5}, {"rope_theta": 5e5}) for name in ("rope_theta", "rope_base", "rope_freq_base", "rotary_base", "rotary_emb_base")),
        ({"n_kv_heads": 8}, {"n_kv_heads": 8, "kv_heads": 8}), ({"vocab_size": 9}, {"vocab_size": 9}),
        ({"hidden_dim": 9}, {"hidden_dim": 9}), ({"ffn_dim_multiplier": 1.5}, {"ffn_dim_multiplier": 1.5}),
        ({"n_heads": None, "head_dim": 64}, {"n_heads": 64, "kv_heads": 64, "head_dim": 64}), ({"head_dim": 128}, {"n_heads": 32}),
        ({"max_batch_size": 3, "seed": 1, "device": "cpu", "init_std_factor": "x", "depth_init": True}, {}),
    ],
)  # fmt: skip
def test_every_field_is_read_by_each_of_its_names_and_nothing_is_left(
    tmp_path: Path, fields: dict[str, object], expected: dict[str, object]
) -> None:
    plain, params = read(tmp_path, GOOD), read(tmp_path, GOOD | fields)
    for name in ("n_heads", "kv_heads", "head_dim", "n_kv_heads", "vocab_size", "hidden_dim", "ffn_dim_multiplier",
                 "tied", "trained_context", "rope_theta", "use_scaled_rope", "nested", "notes"):  # fmt: skip
        wanted = expected.get(name, getattr(plain, name))
        assert getattr(params, name) == wanted, name
        assert type(getattr(params, name)) is type(wanted), name


def test_of_many_fields_that_have_no_place_a_few_are_named(tmp_path: Path) -> None:
    names = [f"field_{number}" for number in range(9)]
    for count, more in ((8, ""), (9, " and 1 more")):
        (note,) = read(tmp_path, GOOD | dict.fromkeys(names[:count], 1)).notes
        shown = ", ".join(map(repr, names[:8]))
        assert note == f"{tmp_path / 'params.json'}: {shown}{more}: not known to distconv, and left out"
    (note,) = read(tmp_path, GOOD | {"x" * 41: 1}).notes
    assert f": '{'x' * 40}': not known" in note


def test_the_file_is_known_by_its_digest_and_its_last_byte(tmp_path: Path) -> None:
    for content in (json.dumps(GOOD).encode(), json.dumps(GOOD).encode() + b"\n"):
        params = read(tmp_path, content)
        assert params.path == str(tmp_path / "params.json")
        assert params.md5 == hashlib.md5(content).hexdigest()
        assert params.ends_with_newline == content.endswith(b"\n")


def test_the_models_fields_are_those_at_the_top_or_under_model_or_under_the_only_key(tmp_path: Path) -> None:
    other = GOOD | {"dim": 8192}
    assert read(tmp_path, GOOD | {"model": other}).dim == 4096
    assert read(tmp_path, {"text": GOOD, "model": other}).dim == 8192
    assert read(tmp_path, {"text": other}).dim == 8192
    with pytest.raises(InputError) as raised:
        read(tmp_path, {f"{letter * 41}": GOOD for letter in "abcdefghi"})
    shown = ", ".join(repr(letter * 40) for letter in "abcdefgh")
    assert str(raised.value) == (
        f"{tmp_path / 'params.json'}: {shown} each hold a 'dim'; "
        "expected one model's fields at the top or under 'model'"
    )


def test_the_largest_numbers_are_still_read(tmp_path: Path) -> None:
    params = read(tmp_path, GOOD | {"norm_eps": 1, "n_layers": 1 << 24, "vocab_size": "9".rjust(64, "0")})
    assert (params.norm_eps, params.n_layers, params.vocab_size) == (1, 1 << 24, 9)
    for wrong in ({"n_layers": (1 << 24) + 1}, {"vocab_size": "9".rjust(65, "0")}):
        with pytest.raises(InputError, match="expected a whole number from 1 to 16,777,216"):
            read(tmp_path, GOOD | wrong)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_scaling": {"type": "yarn"}}, "rope scaling of type 'yarn', expected that of Llama 3.1 ('llama3')"),
        ({"head_dim": 64}, "head_dim 64, dim / n_heads gives 128: a model whose heads are not as wide as it is, as some of Mistral's are, which have 'hidden_dim' and no 'multiple_of'; distconv converts Llama and Mistral"),
    ],
)  # fmt: skip
def test_what_is_said_by_any_name_is_not_passed_over(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, GOOD | fields)
    assert str(raised.value) == f"{tmp_path / 'params.json'}: {words}"
    with pytest.raises(InputError) as raised:
        read(tmp_path, {"hidden_size": 8, "architectures": []})
    assert str(raised.value) == (
        f"{tmp_path / 'params.json'}: a config.json of Transformers (it has 'hidden_size'), expected Meta's params.json; "
        "copy that from Meta's download of this model, or give it by `params=`"
    )
