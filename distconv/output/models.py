"""Whether a model made of a folder's small files takes the tensors that its weight files hold."""

from collections.abc import Iterable, Iterator, Mapping

from distconv.errors import InputError
from distconv.families.architectures import tell_architecture
from distconv.families.dimensions import Dimensions
from distconv.families.fused import take_apart
from distconv.families.rules import match_rules
from distconv.formats.meta.catalog import Catalog, Shard
from distconv.formats.meta.params import Params, read_params
from distconv.formats.meta.small_files import PARAMS_NAME
from distconv.formats.written import Headers, Written, view_written
from distconv.humanize import shorten
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.empty import EmptyModel, read_empty_model
from distconv.storage.base import Storage, join

_MOST_FINDINGS = 20


def find_misfits_of_config(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Build Transformers' model without memory for its weights, and compare names and shapes."""
    path = join(output, CONFIG_NAME)
    if storage.find(path) is None:
        yield f"{path}: missing"
        return
    found = {name: written for tensors in headers.values() for name, written in tensors.items()}
    try:
        model = read_empty_model(storage, path, {name: written.shape for name, written in found.items()})
    except InputError as error:
        yield from str(error).splitlines()
        return
    stand, twice = _find_stand_ins(model, found, path)
    foreign = sorted(found.keys() - model.wanted.keys() - model.others.keys() - model.ignored)
    yield from _shorten(twice)
    yield from _shorten(
        f"{name}: missing, the model of {path} needs it"
        for name in sorted(model.wanted.keys() - stand.keys() - model.optional)
    )
    yield from _shorten(f"{name}: the model of {path} does not take it" for name in foreign)
    yield from _shorten(_find_other_forms(model, found, stand, path))


def _shorten(findings: Iterable[str]) -> Iterator[str]:
    """Tell of the first of many that are alike: a whole model may be called otherwise."""
    yield from shorten(list(findings), _MOST_FINDINGS)


def _find_stand_ins(
    model: EmptyModel, found: Mapping[str, Written], path: str
) -> tuple[dict[str, str], list[str]]:
    """Give what tensor there is for each of the model's, and tell of those that are there under two names."""
    stand = {name: name for name in found if name in model.wanted}
    twice = [
        f"{name}: the same tensor as {stand[own]} for the model of {path}; it is there twice"
        for name, meant in model.others.items()
        for own in meant
        if stand.setdefault(own, name) != name
    ]
    return stand, twice


def _find_other_forms(
    model: EmptyModel, found: Mapping[str, Written], stand: Mapping[str, str], path: str
) -> Iterator[str]:
    """Tell of shapes and kinds of numbers that the model does not take."""
    for own, name in sorted(stand.items()):
        wanted, written = model.wanted[own], found[name]
        is_together = len(model.others.get(name, ())) > 1  # several in one, whose shape has been looked at
        if written.shape != wanted.shape and not is_together:
            yield f"{name}: shape {written.shape}, the model of {path} takes {wanted.shape}"
        elif written.dtype.is_float != wanted.is_float:
            kind = "a floating-point type" if wanted.is_float else "whole numbers"
            yield f"{name}: stored as {written.dtype}, the model of {path} takes {kind}"


def find_misfits_of_params(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Compare every rank's tensors with those that Meta's model has for params.json.

    Source: ``model.py`` and ``generation.py`` of llama-models. Each rank has the same names, no other
    ones, whole heads, and equal parts along the axis that is cut; the feed-forward size is computed.
    """
    path = join(output, PARAMS_NAME)
    if storage.find(path) is None:
        yield f"{path}: missing"
        return
    catalog = Catalog(tuple(_make_shard(name, tensors) for name, tensors in headers.items()))
    try:
        params = read_params(storage, path)
        architecture = tell_architecture(params)
        dimensions = architecture.read_dimensions(catalog, params)
        rules = architecture.make_rules(dimensions)
        match_rules(rules, (), take_apart(catalog, rules, dimensions), dimensions)
    except InputError as error:
        yield from str(error).splitlines()
        return
    ranks = len(catalog.shards)
    if params.n_heads % ranks or params.kv_heads % ranks:
        yield (
            f"{path}: {params.n_heads} heads and {params.kv_heads} key heads; "
            f"Meta's code cannot divide them among {ranks} shards"
        )
    if isinstance(dimensions, Dimensions):
        yield from _find_other_sizes(params, dimensions)
    yield from _find_uneven(catalog)


def _find_other_sizes(params: Params, dimensions: Dimensions) -> Iterator[str]:
    if params.ffn_dim not in {None, dimensions.ffn_dim}:
        yield (
            f"{params.path}: multiple_of and ffn_dim_multiplier give a feed-forward size of {params.ffn_dim:,}, "
            f"the tensors have {dimensions.ffn_dim:,}"
        )
    if params.vocab_size not in {None, dimensions.vocab}:
        yield f"{params.path}: vocab_size {params.vocab_size:,}, the tensors have {dimensions.vocab:,} rows"


def _find_uneven(catalog: Catalog) -> Iterator[str]:
    for name in catalog.names():
        shapes = {shard.tensors[name].shape: shard.name for shard in catalog}
        if len(shapes) > 1:
            found = ", ".join(f"{shape} in {shard}" for shape, shard in shapes.items())
            yield f"{name}: shape {found}; Meta's code takes equal parts only"


def _make_shard(name: str, tensors: Mapping[str, Written]) -> Shard:
    return Shard(name, (), 0, {tensor: view_written(tensor, written) for tensor, written in tensors.items()})
