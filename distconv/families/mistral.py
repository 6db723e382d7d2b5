"""Mistral's dense models and Mixtral: Llama's tensors with heads of a size of their own, and experts.

Sources: ``transformer_layers.py`` and ``moe.py`` of mistral-inference; for the experts of Mixtral's first files, which are
stacked, ``convert_mixtral_weights_to_hf.py`` of transformers 4.47.1.
"""

from collections.abc import Iterator

from distconv.errors import InputError, MismatchError
from distconv.families.cuts import COLUMNS, REPLICATED, ROWS
from distconv.families.dimensions import Dimensions, MixtralDimensions
from distconv.families.llama import EMBEDDING, RULES, Family
from distconv.families.operations import SAME, TRANSPOSED
from distconv.families.rules import Rule
from distconv.families.shapes import Shapes
from distconv.families.told import Told
from distconv.formats.meta.mistral import MistralParams
from distconv.formats.meta.params import Params

MISTRAL_FAMILIES = {
    family.name: family
    for family in (
        Family(
            "mistral", "Mistral", "sentencepiece", 32768, 1e6, None, 1, 2, (2,), None, architecture="mistral"
        ),
        Family(
            "mistral-tekken", "Mistral with tekken", "tekken", 32768, 1e6, None, 1, 2, (2,), None,
            architecture="mistral",
        ),
        Family(
            "mixtral", "Mixtral", "sentencepiece", 32768, 1e6, None, 1, 2, (2,), None, architecture="mixtral"
        ),
    )
}  # fmt: skip
"""By tokenizer. The context is what Transformers' converter takes; it stands in no old params.json."""

_CONTEXTS = {(5120, 40, 14336): 128_000, (6144, 56, 16384): 65_536}
"""Published ones that are others, by (dim, layers, feed-forward size): Nemo's, and Mixtral 8x22B's beside its experts."""
_TEKKEN_ROWS = 131_072
_STACKED = "layers.{i}.block_sparse_moe."


def read_mixtral_dimensions(shapes: Shapes, params: Params) -> MixtralDimensions:
    """Take layers and heads from params.json, sizes from the tensors; InputError where they contradict each other."""
    findings = [*shapes.check_layers("layers", params.n_layers, params.path)]
    if findings:
        raise InputError.of(findings)
    stacked = shapes.has("layers.0.block_sparse_moe.w1")
    gate = "block_sparse_moe.gate" if stacked else "feed_forward.gate"
    experts = shapes.sum_rows(f"layers.0.{gate}.weight")
    first = "block_sparse_moe.w1" if stacked else "feed_forward.experts.0.w1.weight"
    rows = shapes.sum_rows(f"layers.0.{first}")
    ffn_dim = rows // experts if stacked else rows
    said = (0 if params.mistral is None else params.mistral.experts, params.hidden_dim)
    if (experts, ffn_dim) != said:
        raise InputError(
            f"{params.path}: {said[0]} experts and hidden_dim {said[1]}, layer 0 has {experts} of {ffn_dim}; "
            "take the params.json of this model"
        )
    text = Dimensions.of(params, ffn_dim=ffn_dim, vocab=shapes.sum_rows(EMBEDDING))
    return MixtralDimensions(text, experts, stacked)


def make_mixtral_rules(sizes: MixtralDimensions) -> tuple[Rule, ...]:
    """Give all tensors of a model of these sizes."""
    shared = [rule for rule in RULES if ".feed_forward." not in rule.source]
    return (*shared, *_list_experts(sizes))


def _list_experts(sizes: MixtralDimensions) -> Iterator[Rule]:
    ours, theirs = "layers.{i}.feed_forward.", "model.layers.{i}.block_sparse_moe."

    def make_stored(name: str) -> str | None:
        return f"{_STACKED}{name}" if sizes.stacked else None

    gate, shape = "gate.weight", ("experts", "dim")
    yield Rule(ours + gate, theirs + gate, SAME, shape, REPLICATED, stored=make_stored(gate))
    for expert in range(sizes.experts):
        for name in ("w1", "w2", "w3"):
            one = f"experts.{expert}.{name}.weight"
            # Where experts are stacked, each as it is multiplied, what lies side by side elsewhere is rows.
            turned = name == "w2" and not sizes.stacked
            yield Rule(
                ours + one,
                theirs + one,
                TRANSPOSED if name == "w2" and sizes.stacked else SAME,
                ("dim", "ffn") if turned else ("ffn", "dim"),
                COLUMNS if turned else ROWS,
                stored=make_stored(name),
            )


def tell_mistral_family(
    folder: str, params: Params, found: MistralParams, rows: int, tokenizer: str | None, asked: Family | None
) -> Told:
    """Tell the family, or take the one asked for; MismatchError where that is of other tensors or another tokenizer.

    ``rows`` are those of the embedding, ``tokenizer`` the kind of the file, None without one.
    """
    evidence = [f"{found.experts} experts" if found.experts else "params.json has head_dim and hidden_dim"]
    name = "mixtral" if found.experts else "mistral"
    if not found.experts and (tokenizer == "tekken" or (tokenizer is None and rows >= _TEKKEN_ROWS)):
        name = "mistral-tekken"
        evidence.append("the tokenizer is a tekken file" if tokenizer else f"{rows:,} rows of vocabulary")
    family = MISTRAL_FAMILIES[name]
    if asked is not None and asked != family:
        raise MismatchError(
            f"{folder}: `family='{asked.name}'` ({asked.title}), but {', '.join(evidence)}: {family.title}; "
            "leave `family=` out"
        )
    return Told(family, tuple(evidence), tuple(_list_assumptions(params, found)))


def _list_assumptions(params: Params, found: MistralParams) -> Iterator[str]:
    if params.rope_theta is None:
        why = "as Mistral 7B v0.1 has, by its window" if found.is_windowed else "as Mistral's code takes"
        yield f"params.json has no rope_theta; {found.absent_theta:g} is taken, {why}"
    if params.trained_context is None:
        yield (
            f"params.json says nothing of the context; max_position_embeddings is {choose_context(params):,}, "
            "which changes no weight"
        )


def choose_context(params: Params) -> int:
    """Choose the longest sequence, in tokens: what params.json says, a published model's, or what most have."""
    if params.trained_context is not None:
        return params.trained_context[1]
    sizes = (params.dim, params.n_layers, params.hidden_dim or 0)
    return _CONTEXTS.get(sizes, MISTRAL_FAMILIES["mistral"].context)
