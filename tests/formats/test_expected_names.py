"""A model's names are found below whatever keys, and between whatever wrappers, a trainer has put them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.expected_names import find_expected_names

MODEL = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(3) for name in ("q_proj", "k_proj")),
    "lm_head.weight",
]
KEYS = st.lists(st.sampled_from(["app", "model", "state", "actor", "x1"]), max_size=3)
WRAPPERS = st.sampled_from(["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])


@given(keys=KEYS, data=st.data())
def test_keys_before_and_wrappers_within_are_taken_off(keys: list[str], data: st.DataObject) -> None:
    saved = {}
    for name in MODEL:
        parts = [*keys, *name.split(".")]
        for wrapper in data.draw(st.lists(WRAPPERS, max_size=2)):
            parts.insert(data.draw(st.integers(0, len(parts))), wrapper)
        saved[".".join(parts)] = name
    beside = ["optimizer.state.model.embed_tokens.weight.exp_avg", "lr", "train_state.step"]
    found = find_expected_names([*saved, *beside], MODEL)
    assert found.names.kept == saved
    assert found.names.aside == {"optimizer": 1, "lr": 1, "train_state": 1}
    assert found.foreign == ()


def test_a_body_that_was_saved_alone_is_found() -> None:
    body = [name.removeprefix("model.") for name in MODEL[:-1]]
    found = find_expected_names(body, MODEL)
    assert found.names.kept == {name: f"model.{name}" for name in body}


def test_what_is_not_the_models_is_foreign() -> None:
    found = find_expected_names([*MODEL, "model.layers.0.self_attn.q_proj.bias"], MODEL)
    assert found.foreign == ("model.layers.0.self_attn.q_proj.bias",)


def test_one_name_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"are both lm_head\.weight of the model"):
        find_expected_names([*MODEL, "_orig_mod.lm_head.weight"], MODEL)


def test_two_models_are_refused() -> None:
    both = [f"{key}.{name}" for key in ("policy", "reference") for name in MODEL]
    with pytest.raises(InputError, match=r"below 'policy\.' and 'reference\.'"):
        find_expected_names(both, MODEL)


def test_what_was_taken_off_and_left_aside_is_counted() -> None:
    saved = [f"app.module.{name}" for name in MODEL[:4]] + [f"app.{name}" for name in MODEL[4:]]
    beside = ["optimizer.state.0.exp_avg", "optimizer.state.1.exp_avg"]
    found = find_expected_names([*saved[:2], "app.extra.bias", *beside, *saved[2:]], MODEL)
    assert found.names.stripped == {"app": len(MODEL), "module": 4}
    assert found.names.aside == {"optimizer": 2}
    assert found.foreign == ("app.extra.bias",)
    assert list(found.names.kept.values()) == MODEL


def test_nothing_of_a_model_is_all_foreign_and_one_tensor_twice_is_no_second_model() -> None:
    found = find_expected_names(["a.b", "c"], MODEL)
    assert (found.names.kept, found.foreign) == ({}, ("a.b", "c"))
    with pytest.raises(
        InputError, match=r"^two models are in it, below 'no key' and 'shadow\.'; save the one to"
    ):
        find_expected_names([*MODEL, *(f"shadow.{name}" for name in MODEL)], MODEL)
    alone = find_expected_names(["policy.lm_head.weight", "reference.lm_head.weight"], MODEL)
    assert alone.names.kept == {"policy.lm_head.weight": "lm_head.weight"}
    assert alone.foreign == ("reference.lm_head.weight",)
