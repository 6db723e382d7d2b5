"""What the shards hold is matched with the tensors of a Llama, and what does not fit is told with its place."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.families.cuts import COLUMNS, ROWS
from distconv.families.dimensions import Dimensions
from distconv.families.llama import EMBEDDING, IGNORED, OUTPUT, RULES
from distconv.families.operations import ROTARY, SAME
from distconv.families.rules import describe_foreign_tensors, match_rules, read_dimensions
from distconv.formats.meta.catalog import Catalog, Shard
from distconv.formats.meta.params import Params, read_params
from distconv.formats.views import TensorView
from distconv.layout.dtypes import BFLOAT16, DTYPES, FLOAT32, contiguous_strides
from distconv.layout.regions import Region
from distconv.storage.local import LocalStorage
from tests import reference
from tests.checkpoints import Spec, cut, make_params, shapes

Parts = dict[str, TensorView]
SPEC = Spec("llama-2", dim=16, layers=2, heads=4, kv_heads=2, multiple_of=8, vocab=24, shards=2)


def view(name: str, shape: tuple[int, ...], path: str = "consolidated.00.pth") -> TensorView:
    """A tensor in a file that nobody reads."""
    return TensorView(
        name, Region(path, 0, 1 << 20, 0, zipped=False), BFLOAT16, 0, shape, contiguous_strides(shape)
    )


def hold(spec: Spec) -> list[Parts]:
    """Give each rank's tensors."""
    return [
        {
            name: view(name, cut(shape, axis, spec.shards), spec.naming.format(rank))
            for name, shape, axis in shapes(spec)
        }
        for rank in range(spec.shards)
    ]


def catalog(ranks: list[Parts], stored: Mapping[str, str] | None = None) -> Catalog:
    """Make the catalog of ranks; ``stored`` are the files' own names."""
    names = [f"consolidated.{rank:02d}.pth" for rank in range(len(ranks))]
    return Catalog(
        tuple(
            Shard(name, (f"/in/{name}",), 0, parts, stored or {})
            for name, parts in zip(names, ranks, strict=True)
        )
    )


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Params]:
    """Give a function that reads the params.json of a spec, with some fields changed."""
    path = tmp_path_factory.mktemp("params") / "params.json"

    def read_changed(spec: Spec, **changes: object) -> Params:
        path.write_text(json.dumps(make_params(spec) | changes))
        return replace(read_params(LocalStorage(), str(path)), path="params.json")

    return read_changed


def sizes(spec: Spec) -> Dimensions:
    """Give the sizes that a spec's model has."""
    return Dimensions(
        spec.dim, spec.layers, spec.heads, spec.stored_kv_heads, spec.head_dim, spec.ffn_dim, spec.vocab_size
    )


def match(ranks: list[Parts], spec: Spec = SPEC, optional: frozenset[str] = frozenset(), **options: object):
    """Match a model's ranks."""
    return match_rules(RULES, IGNORED, catalog(ranks), sizes(spec), optional, **options)  # type: ignore[arg-type]


def findings(ranks: list[Parts], spec: Spec = SPEC, **options: object) -> list[str]:
    """Match a model that does not fit: what is found, line by line."""
    with pytest.raises(InputError) as raised:
        match(ranks, spec, **options)
    return str(raised.value).split("\n")


def refusal(ranks: list[Parts], params: Params, stored: Mapping[str, str] | None = None) -> list[str]:
    """Read the sizes of a model that does not fit: what is found, line by line."""
    with pytest.raises(InputError) as raised:
        read_dimensions(catalog(ranks, stored), params, RULES)
    return str(raised.value).split("\n")


@pytest.mark.parametrize("family", ["llama-2", "llama-3"])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_sizes_are_those_of_the_whole_model(read: Callable[..., Params], family: str, shards: int) -> None:
    spec = replace(SPEC, family=family, shards=shards, layers=11)
    assert read_dimensions(catalog(hold(spec)), read(spec), RULES) == sizes(spec)


def test_rows_are_counted_in_parts_of_any_sizes(read: Callable[..., Params]) -> None:
    spec = replace(SPEC, family="llama-3")
    ranks = hold(spec)
    for name, rows in ((EMBEDDING, 7), ("layers.0.feed_forward.w1.weight", 3)):
        ranks[0][name] = view(name, (rows, spec.dim))
        ranks[1][name] = view(name, (30 - rows, spec.dim))
    found = read_dimensions(catalog(ranks), read(spec), RULES)
    assert (found.vocab, found.ffn_dim) == (30, 30)


def test_a_rank_that_lacks_a_tensor_counts_as_the_first_and_one_without_rows_as_nothing(
    read: Callable[..., Params],
) -> None:
    ranks = hold(SPEC)
    del ranks[1]["layers.0.feed_forward.w1.weight"]
    assert read_dimensions(catalog(ranks), read(SPEC), RULES) == sizes(SPEC)
    ranks[1]["layers.0.feed_forward.w1.weight"] = view("scalar", ())
    assert read_dimensions(catalog(ranks), read(SPEC), RULES).ffn_dim == SPEC.ffn_dim // 2
    by_rows = replace(SPEC, family="llama-3")
    ranks = hold(by_rows)
    del ranks[1][EMBEDDING]
    assert read_dimensions(catalog(ranks), read(by_rows), RULES) == sizes(by_rows)


@pytest.mark.parametrize(
    ("stated", "held", "words"),
    [
        (3, [0, 1], "says 3 layers, the shards hold 2: there is no layers.2.*; "),
        (3, [0, 2], "says 3 layers, the shards hold 2: there is no layers.1.*; "),
        (3, [1, 2], "says 3 layers, the shards hold 2: there is no layers.0.*; "),
        (2, [0, 1, 2], "says 2 layers, the shards hold 3: layers.2.* is beyond; "),
        (1, [0, 1, 10], "says 1 layers, the shards hold 3: layers.10.* is beyond; "),
        (2, [0, 1, 5], "says 2 layers, the shards hold 3: layers.5.* is beyond; "),
    ],
)
def test_layers_that_are_missing_or_beyond_are_told_with_the_numbers_stated_and_held(
    read: Callable[..., Params], stated: int, held: list[int], words: str
) -> None:
    gate = "layers.0.feed_forward.w1.weight"  # which tells a size
    kept = {gate, *(name for name, _shape, _axis in shapes(SPEC) if not name.startswith("layers."))}
    ranks = [
        {name: part for name, part in parts.items() if name in kept or int(name.split(".")[1]) in held}
        for parts in hold(replace(SPEC, layers=11))
    ]
    (line,) = refusal(ranks, read(SPEC, n_layers=stated))
    assert line.startswith(f"params.json: {words}")
    assert line.endswith("take the params.json of this model")
    assert ("download the missing files" in line) == ("there is no" in words)


@pytest.mark.parametrize(("kept", "whole"), [(4, False), (5, True)])
def test_a_layer_is_held_where_more_than_half_of_its_tensors_are(
    read: Callable[..., Params], kept: int, *, whole: bool
) -> None:
    ranks = hold(SPEC)
    for parts in ranks:
        for name in [name for name in parts if name.startswith("layers.1.")][kept:]:
            del parts[name]
    if whole:  # what is missing is told by its name
        assert read_dimensions(catalog(ranks), read(SPEC), RULES) == sizes(SPEC)
        assert len(findings(ranks)) == 9 - kept
    else:
        assert "there is no layers.1.*" in refusal(ranks, read(SPEC))[0]


def test_a_feed_forward_size_that_is_written_out_must_be_that_of_the_tensors(
    read: Callable[..., Params],
) -> None:
    rows = SPEC.ffn_dim
    assert read_dimensions(catalog(hold(SPEC)), read(SPEC, hidden_dim=rows), RULES) == sizes(SPEC)
    (line,) = refusal(hold(SPEC), read(SPEC, hidden_dim=rows + 1))
    assert line == (
        f"params.json: hidden_dim {rows + 1}, w1 has {rows} rows in 2 shards; the "
        "params.json of another model"
    )
    layers, size = refusal(hold(SPEC), read(SPEC, hidden_dim=rows + 1, n_layers=3))
    assert "says 3 layers" in layers
    assert "hidden_dim" in size


@pytest.mark.parametrize("name", [EMBEDDING, "layers.0.feed_forward.w1.weight"])
def test_shards_without_a_tensor_that_tells_a_size_are_no_llama(
    read: Callable[..., Params], name: str
) -> None:
    held = ["one", "two", "three", "four", EMBEDDING, "layers.0.feed_forward.w1.weight"]
    ranks = [{other: view(other, (2, 2)) for other in held if other != name}]
    (line,) = refusal(ranks, read(SPEC), {"two": "their two"})
    assert line == (
        f"params.json: no tensor {name} in its shards (they hold one, their two, three, four, …); no Llama of Meta's and no Mistral"
    )


def test_a_prefix_that_is_not_known_is_named_with_the_way_out(read: Callable[..., Params]) -> None:
    ranks = [{f"wrapped.inner.{name}": part for name, part in parts.items()} for parts in hold(SPEC)]
    (line,) = refusal(ranks, read(SPEC))
    assert line.endswith("; the prefix 'wrapped.inner.' is not known: take it off the names")


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 4), (0, 16), (12, 0)])
@pytest.mark.parametrize("name", [EMBEDDING, "layers.0.feed_forward.w1.weight"])
def test_a_tensor_that_tells_a_size_has_rows_and_columns(
    read: Callable[..., Params], name: str, shape: tuple[int, ...]
) -> None:
    ranks = hold(SPEC)
    ranks[0][name] = view(name, shape, "/in/a.pth")
    (line,) = refusal(ranks, read(SPEC))
    assert line == f"{name} in /in/a.pth: shape {shape}, expected rows and columns"


@given(
    family=st.sampled_from(["llama-2", "llama-3"]),
    shards=st.sampled_from([1, 2, 4]),
    layers=st.integers(1, 12),
    kv_heads=st.sampled_from([1, 2, 4]),
)
def test_every_tensor_has_its_parts_in_order_and_its_name_operation_and_cut(
    family: str, shards: int, layers: int, kv_heads: int
) -> None:
    spec = replace(SPEC, family=family, shards=shards, layers=layers, kv_heads=kv_heads)
    ranks = hold(spec)
    ranks[0]["rope.freqs"] = view("rope.freqs", (2,))  # what is ignored may be in one shard alone
    found = {matched.source: matched for matched in match(ranks, spec)}
    assert len(found) == len(match(ranks, spec))
    assert set(found) == {name for name, _shape, _axis in shapes(spec)}
    for name, _shape, axis in shapes(spec):
        matched = found[name]
        assert matched.target == reference.rename(name)
        assert matched.operation is (ROTARY if name.endswith(("wq.weight", "wk.weight")) else SAME)
        if name != EMBEDDING:
            assert matched.cut.axis == axis
        assert matched.views == tuple(parts[name] for parts in ranks)
    by_columns = spec.by_columns and shards > 1  # the shape of a whole one tells nothing
    assert found[EMBEDDING].cut == (COLUMNS if by_columns else ROWS)


def test_an_optional_tensor_may_be_in_no_shard_but_not_in_some() -> None:
    ranks = hold(SPEC)
    del ranks[1][OUTPUT]
    absence = {OUTPUT: "say that it is tied"}
    for options in ({}, {"optional": frozenset({OUTPUT})}, {"absence": absence}):
        assert findings(ranks, **options) == [f"{OUTPUT}: missing in consolidated.01.pth"]
    del ranks[0][OUTPUT]
    assert {matched.source for matched in match(ranks, SPEC, frozenset({OUTPUT}))} == ranks[0].keys()
    assert findings(ranks) == [f"{OUTPUT}: missing in consolidated.00.pth, consolidated.01.pth"]
    assert findings(ranks, absence=absence) == [
        f"{OUTPUT}: missing in consolidated.00.pth, consolidated.01.pth; say that it is tied"
    ]
    assert findings(ranks, absence={EMBEDDING: "never"}) == findings(ranks)


def test_what_is_no_tensor_of_the_model_is_told_by_where_it_is_those_of_one_beginning_together() -> None:
    ranks = hold(SPEC)
    for name in (
        "value_head.bias",
        "value_head.weight",
        "value_head.x.y",
        "layers.0.bias",
        "layers.2.ffn_norm.weight",
    ):
        ranks[1][name] = view(name, (2,))
    ranks[0]["foreign"] = view("foreign", (2,))
    with pytest.raises(InputError) as raised:
        match_rules(RULES, IGNORED, catalog(ranks, {"foreign": "module.foreign"}), sizes(SPEC))
    assert sorted(str(raised.value).split("\n")) == [
        "consolidated.00.pth: module.foreign is no tensor of a 2-layer model; save the model without it, or take the params.json that belongs to it",
        "consolidated.01.pth: layers.0.bias is no tensor of a 2-layer model; save the model without it, or take the params.json that belongs to it",
        "consolidated.01.pth: layers.2.ffn_norm.weight is no tensor of a 2-layer model; save the model without it, or take the params.json that belongs to it",
        "consolidated.01.pth: value_head.bias and 2 more that begin with 'value_head' are no tensor of a 2-layer model; save the model without them, or take the params.json that belongs to it",
    ]


@pytest.mark.parametrize(("count", "more"), [(1, 0), (19, 0), (20, 0), (21, 1), (31, 11)])
def test_the_first_twenty_findings_are_told_and_the_others_counted(count: int, more: int) -> None:
    ranks = hold(SPEC)
    for number in range(count):
        ranks[0][f"foreign{number}"] = view("foreign", (2,))
    lines = findings(ranks)
    told = [line for line in lines if "is no tensor of" in line]
    assert [re.findall(r"foreign(\d+)", line)[0] for line in told] == [
        str(number) for number in range(count - more)
    ]
    assert lines[len(told) :] == ([f"… and {more} more like these"] if more else [])


def test_parts_of_different_types_are_told_with_the_types() -> None:
    ranks = hold(SPEC)
    ranks[1]["norm.weight"] = ranks[1]["norm.weight"]._replace(dtype=FLOAT32)
    assert findings(ranks) == ["norm.weight: stored as bfloat16 and float32 in different shards"]


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_weights_of_floating_point_types_of_16_bits_and_more_are_taken(name: str) -> None:
    ranks = hold(SPEC)
    for parts in ranks:
        parts["norm.weight"] = parts["norm.weight"]._replace(dtype=DTYPES[name])
    if name in {"float16", "bfloat16", "float32", "float64"}:
        assert match(ranks)
        return
    lines = findings(ranks)
    assert [line.split(",")[0] for line in lines] == [
        f"norm.weight in consolidated.0{rank}.pth: stored as {name}" for rank in range(2)
    ]


W2 = "layers.1.feed_forward.w2.weight"
"""Its columns are cut."""


@pytest.mark.parametrize(
    ("name", "parts", "fits"),
    [
        (OUTPUT, [(20, 16), (4, 16)], True),
        (OUTPUT, [(24, 16), (0, 16)], True),
        (OUTPUT, [(12, 16), (11, 16)], False),
        (OUTPUT, [(12, 16), (12, 15)], False),
        (OUTPUT, [(12, 8), (12, 8)], False),
        (OUTPUT, [(24,), (0,)], False),
        (W2, [(16, 40), (16, 8)], True),
        (W2, [(16, 24), (16, 25)], False),
        (W2, [(8, 24), (8, 24)], False),
        (W2, [(16, 24, 1), (16, 24, 1)], False),
        ("norm.weight", [(16,), (16,)], True),
        ("norm.weight", [(16,), (8,)], False),
        ("norm.weight", [(8,), (8,)], False),
    ],
)
def test_parts_of_any_sizes_that_make_up_the_whole_fit(
    name: str, parts: list[tuple[int, ...]], *, fits: bool
) -> None:
    ranks = hold(SPEC)
    for held, shape in zip(ranks, parts, strict=True):
        held[name] = view(name, shape)
    if fits:
        (found,) = (matched for matched in match(ranks) if matched.source == name)
        assert [part.shape for part in found.views] == parts
        return
    even = {OUTPUT: (12, 16), W2: (16, 24), "norm.weight": (16,)}[name]
    assert findings(ranks) == [
        f"{name} in consolidated.0{rank}.pth: shape {shape}, expected {even}"
        for rank, shape in enumerate(parts)
        if shape != even
    ]


def test_parts_of_what_cannot_be_cut_evenly_are_told_together_each_shape_where_it_is_first() -> None:
    spec = replace(SPEC, vocab=25, shards=3, family="llama-3", dim=24, heads=6, kv_heads=3, multiple_of=3)
    ranks = hold(spec)
    rows = {EMBEDDING: (9, 8, 8), OUTPUT: (9, 9, 8)}
    for name, counts in rows.items():
        for held, count in zip(ranks, counts, strict=True):
            held[name] = view(name, (count, 24))
    (line,) = findings(ranks, spec)
    assert line == (
        f"{OUTPUT}: shape (9, 24) in consolidated.00.pth, (8, 24) in consolidated.02.pth; "
        "expected (25, 24) cut along axis 0 into 3 shards"
    )


FOREIGN = {
    "text_model.layers.0.attention.wq.weight": "Llama 3.2 Vision",
    "vision_model.conv1.weight": "Llama 3.2 Vision",
    "flat_param": "FSDP",
    "layers.0._flat_params_0": "FSDP",
    "_flat_param": "FSDP",
    "layers.11.attn.q_proj.weight": "torchtune",
    "layers.0.sa_norm.scale": "torchtune",
    "layers.0.mlp_norm.scale": "torchtune",
    "layers.3.attention.qkv_linear.wq.weight": "torchtitan",
    "layers.3.attention.wqkv.weight": "torchtitan",
    "layers.0.self_attn.q_proj.weight": "Transformers",
    "layers.0.mlp.gate_proj.weight": "Transformers",
    "layers.0.input_layernorm.weight": "Transformers",
    "layers.0.post_attention_layernorm.weight": "Transformers",
    "embed_tokens.weight": "Transformers",
    "layers.0.attention.wq.scales": "quantized",
    "layers.0.attention.wq.scale": "quantized",
    "layers.0.attention.wq.zeros": "quantized",
    "layers.0.attention.wq.qweight": "quantized",
    "layers.0.attention.wq.qscale": "quantized",
    "layers.0.attention.wq.lora_A.weight": "LoRA",
    "layers.0.attention.wq.lora_b.weight": "LoRA",
    "layers.0.adapter.weight": "LoRA",
    "layers.0.adaptor.weight": "LoRA",
    "layers.0.feed_forward.experts.w1": "mixture-of-experts",
    "layers.0.feed_forward.router.weight": "mixture-of-experts",
    "layers.0.block_sparse_moe.gate.weight": "mixture-of-experts",
    "layers.0.feed_forward.moe_w_in_eD_F": "mixture-of-experts",
}
CALLED = {
    "Llama 3.2 Vision": (
        "a Llama 3.2 Vision model, whose params.json says nothing of it; take the params.json of this model"
    ),
    "FSDP": "flat parameters of FSDP; save a full state dict (FULL_STATE_DICT)",
    "torchtune": "a checkpoint with torchtune's own names; save it by torchtune's FullModelMetaCheckpointer",
    "torchtitan": "a checkpoint with torchtitan's newer or gpt-fast's names; export it in Transformers' format from there",
    "Transformers": "a checkpoint with Transformers' names, which needs no conversion; a Llama for Meta's code is made of its folder by `to='meta'`",
    "quantized": "a quantized checkpoint (int4 or int8 weights, as SpinQuant has them); convert the bf16 model instead",
    "LoRA": "a LoRA checkpoint; merge it into the model first",
    "mixture-of-experts": (
        "a mixture-of-experts model (Llama 4 or Mixtral), whose params.json says nothing of it; "
        "take the params.json of this model"
    ),
}
"""What each is, and what to do instead."""


@pytest.mark.parametrize(("name", "kind"), FOREIGN.items(), ids=FOREIGN)
def test_a_model_that_is_no_llama_of_metas_is_called_what_it_is_by_a_tensor_of_its_own(
    name: str, kind: str
) -> None:
    ranks = hold(SPEC)
    ranks[1][name] = view(name, (2,))
    for stored in ({}, {name: f"their.{name}"}):
        assert (
            describe_foreign_tensors(catalog(ranks, stored))
            == f"{CALLED[kind]} (it has {stored.get(name, name)})"
        )


def test_scales_and_adaptors_together_are_qloras_and_integers_alone_are_quantized() -> None:
    ranks, wq = hold(SPEC), "layers.0.attention.wq"
    for name in (f"{wq}.adaptor.A.weight", f"{wq}.adaptor.B.weight", f"{wq}.scales"):
        ranks[0][name] = view(name, (2, 2))
    assert describe_foreign_tensors(catalog(ranks)) == (
        "a QLoRA checkpoint (int4 weights with scales, and an adaptor for each); convert the bf16 model instead "
        f"(it has {wq}.scales)"
    )
    plain = hold(SPEC)
    plain[0][f"{wq}.weight"] = plain[0][f"{wq}.weight"]._replace(dtype=DTYPES["int8"])
    assert (
        describe_foreign_tensors(catalog(plain)) == f"{CALLED['quantized']} ({wq}.weight is stored as int8)"
    )
    masked = hold(SPEC)
    masked[0]["mask"] = view("mask", (4, 4))._replace(dtype=DTYPES["uint8"])
    assert describe_foreign_tensors(catalog(masked)) is None


@given(st.sampled_from(["llama-2", "llama-3"]), st.integers(1, 12))
def test_a_llama_with_what_trainers_save_along_is_not_foreign(family: str, layers: int) -> None:
    ranks = hold(replace(SPEC, family=family, layers=layers))
    ranks[0] |= {name: view(name, (2,)) for name in ("rope.freqs", "freqs_cis", "layers.0.attention.cache_k")}
    assert describe_foreign_tensors(catalog(ranks)) is None
