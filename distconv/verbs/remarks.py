"""What a person should know of a checkpoint that was read: what was left out, and what looks odd."""

import re
from collections.abc import Iterator, Sequence

from distconv.families.choose import Choice
from distconv.families.dimensions import ModelDimensions
from distconv.families.llama import BUFFERS, FREQUENCIES
from distconv.families.rules import Match
from distconv.formats.meta.catalog import Catalog
from distconv.formats.meta.params import Params
from distconv.formats.meta.small_files import PARAMS_NAME
from distconv.formats.views import is_disproved
from distconv.humanize import list_first
from distconv.sidecars.tokenizer import Vocabulary

_MOST_SHOWN = 4


def note_differences(
    params: Params, dimensions: ModelDimensions, vocabulary: Vocabulary | None
) -> Iterator[str]:
    """Say where params.json, tensors and tokenizer differ, and which of them counts."""
    if dimensions.ffn_dim and params.ffn_dim not in {None, dimensions.ffn_dim}:
        yield f"w1 has {dimensions.ffn_dim} rows, {params.path} gives {params.ffn_dim}; the tensor is believed"
    if params.vocab_size is not None and params.vocab_size != dimensions.vocab:
        yield f"{params.path}: vocab_size {params.vocab_size}, the embedding has {dimensions.vocab} rows, which count"
    if vocabulary is not None:
        yield from vocabulary.notes
        if vocabulary.size != dimensions.vocab:
            yield (
                f"the tokenizer has {vocabulary.size} tokens, the embedding {dimensions.vocab} rows; "
                "is that no padding, give the right file by `tokenizer=`"
            )


def note_buffers(catalog: Catalog) -> Iterator[str]:
    """Name the buffers that a trainer saved along; Meta's own frequencies are no news."""
    found = [name for name in _find_names(catalog, BUFFERS) if name not in _find_names(catalog, FREQUENCIES)]
    if found:
        yield f"{len(found):,} buffers that follow from the configuration are left out ({list_first(found, _MOST_SHOWN)})"


def note_frequencies(catalog: Catalog) -> Iterator[str]:
    """Say where Meta's own frequencies are left out of Meta's own layout."""
    found = _find_names(catalog, FREQUENCIES)
    if found:
        yield f"{list_first(found, _MOST_SHOWN)}: left out; Meta's code computes what follows from {PARAMS_NAME}"


def note_unlike_copies(matches: Sequence[Match]) -> Iterator[str]:
    """Name the tensors that each shard has whole and that differ there, by the checksums of their records."""
    found = [
        match
        for match in matches
        if match.cut.axis is None and any(is_disproved(match.views[0], view) for view in match.views[1:])
    ]
    if found:
        yield (
            f"{list_first([match.source for match in found], _MOST_SHOWN)}: each shard has the whole, and they differ; taken from "
            f"{found[0].views[0].region.path}"
        )


def _find_names(catalog: Catalog, patterns: Sequence[str]) -> list[str]:
    return [name for name in catalog.names() if any(re.fullmatch(pattern, name) for pattern in patterns)]


def note_copies(catalog: Catalog) -> Iterator[str]:
    """Name shards whose data is equal by the checksums of all their records: one file was copied twice."""
    first: dict[tuple[int, ...], str] = {}
    for shard in catalog:
        sums = tuple(view.region.crc32 for _, view in sorted(shard.tensors.items()))
        twin = first.setdefault(sums, shard.paths[0])
        if all(sums) and twin != shard.paths[0]:
            yield (
                f"{shard.paths[0]} holds the same data as {twin}, where each shard has its own; "
                "if it is a copy, download the right file"
            )


def note_scales(catalog: Catalog) -> Iterator[str]:
    """Say what becomes of FP8 tensors: what is written are not the numbers that are stored."""
    scaled = [view for view in catalog.shards[0].tensors.values() if view.scale is not None]
    if scaled:
        yield (
            f"{len(scaled):,} tensors are stored in FP8 ({scaled[0].dtype}) with a scale for each row of each shard: what is "
            "written is dequantized, each value times its scale in float32, exact but for the rounding to `dtype=`"
        )


def note_params(params: Params, choice: Choice) -> Iterator[str]:
    """Say what params.json says that the config does not."""
    family, scaling = choice.family, params.rope_scaling
    if params.mistral is not None:
        yield from params.notes
        return
    if params.vision is not None and not params.use_scaled_rope:
        yield f"{params.path}: rope is not scaled, as it says; that of published models ({family.title}) is"
    if scaling.factor is not None and not params.use_scaled_rope:
        yield f"{params.path}: a rope scaling factor of {scaling.factor:g}, which is not used without use_scaled_rope"
    elif scaling.factor is not None and scaling.factor != family.factor:
        yield f"{params.path}: rope is scaled by {scaling.factor:g}, as it says"
    if params.trained_context is not None and params.trained_context[1] != family.context:
        key, length = params.trained_context
        yield (
            f"{params.path}: {key} {length} is what a run made room for; "
            f"max_position_embeddings is {family.context}, that of {family.title}"
        )
    yield from params.notes
