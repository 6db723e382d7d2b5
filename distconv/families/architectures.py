"""The architectures whose tensors are known: each a table of rules, and how its sizes are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from distconv.families import llama, llama_4, llama_vision, mistral
from distconv.families.dimensions import (
    Llama4Dimensions,
    MixtralDimensions,
    MllamaDimensions,
    ModelDimensions,
)
from distconv.families.rules import Rule, read_dimensions
from distconv.families.shapes import Shapes
from distconv.formats.meta.catalog import Catalog
from distconv.formats.meta.params import Params


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of model, whatever its sizes."""

    name: str
    """Transformers' ``model_type``."""
    embedding: str
    """Meta's name of the vocabulary's embedding."""
    output: str
    ignored: tuple[str, ...]
    """Patterns of names that are no weights."""
    read_dimensions: Callable[[Catalog, Params], ModelDimensions]
    """Take a model's sizes; InputError where there is no such model."""
    make_rules: Callable[[ModelDimensions], Sequence[Rule]]


LLAMA = Architecture(
    "llama",
    llama.EMBEDDING,
    llama.OUTPUT,
    llama.IGNORED,
    lambda catalog, params: read_dimensions(catalog, params, llama.RULES),
    lambda _sizes: llama.RULES,
)
MLLAMA = Architecture(
    "mllama",
    llama_vision.EMBEDDING,
    llama_vision.OUTPUT,
    llama_vision.IGNORED,
    lambda catalog, params: llama_vision.read_dimensions(Shapes(catalog, params.path), params),
    lambda sizes: llama_vision.make_rules(cast("MllamaDimensions", sizes)),
)
LLAMA_4 = Architecture(
    "llama4",
    llama_4.EMBEDDING,
    llama_4.OUTPUT,
    llama_4.IGNORED,
    lambda catalog, params: llama_4.read_dimensions(Shapes(catalog, params.path), params),
    lambda sizes: llama_4.make_rules(cast("Llama4Dimensions", sizes)),
)
MISTRAL = replace(LLAMA, name="mistral")
MIXTRAL = Architecture(
    "mixtral",
    llama.EMBEDDING,
    llama.OUTPUT,
    llama.IGNORED,
    lambda catalog, params: mistral.read_mixtral_dimensions(Shapes(catalog, params.path), params),
    lambda sizes: mistral.make_mixtral_rules(cast("MixtralDimensions", sizes)),
)
ARCHITECTURES = {found.name: found for found in (LLAMA, MLLAMA, LLAMA_4, MISTRAL, MIXTRAL)}


def tell_architecture(params: Params) -> Architecture:
    """Tell which kind of model params.json describes."""
    if params.vision is not None:
        return MLLAMA
    if params.mistral is not None:
        return MIXTRAL if params.mistral.experts else MISTRAL
    return LLAMA if params.llama_4 is None else LLAMA_4
