"""Whether a model made of a folder's small files takes the tensors that its weight files hold."""

from collections.abc import Iterator, Mapping

from distconv.errors import InputError, Stopped
from distconv.families.architectures import tell_architecture
from distconv.families.dimensions import Dimensions
from distconv.families.fused import take_apart
from distconv.families.rules import match_rules
from distconv.formats.meta.catalog import Catalog, Shard
from distconv.formats.meta.files import PARAMS_NAME
from distconv.formats.meta.params import Params, read_params
from distconv.formats.views import TensorView
from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import contiguous_strides
from distconv.layout.regions import Region
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.empty import read_expected_shapes
from distconv.storage.base import Storage, join


def find_misfits_of_config(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Build Transformers' model without memory for its weights, and compare names and shapes."""
    path = join(output, CONFIG_NAME)
    if storage.find(path) is None:
        yield f"{path}: missing"
        return
    try:
        shapes = [written.shape for tensors in headers.values() for written in tensors.values()]
        wanted, tied = read_expected_shapes(storage, path, shapes)
    except Stopped:
        raise
    # Whatever a damaged config makes of Transformers' code, it is the config's fault.
    except Exception as error:  # noqa: BLE001
        first, *_ = [*str(error).splitlines(), ""]
        yield f"{path}: no model can be made of it ({type(error).__name__}: {first})"
        return
    found = {tensor: written.shape for tensors in headers.values() for tensor, written in tensors.items()}
    for tensor in sorted(wanted.keys() - found.keys() - tied):
        yield f"{tensor}: missing, the model of {path} needs it"
    for tensor in sorted(found.keys() - wanted.keys()):
        yield f"{tensor}: the model of {path} does not take it"
    for tensor in sorted(found.keys() & wanted.keys()):
        if found[tensor] != wanted[tensor]:
            yield f"{tensor}: shape {found[tensor]}, the model of {path} takes {wanted[tensor]}"


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
    return Shard(name, (), 0, {tensor: _make_view(tensor, written) for tensor, written in tensors.items()})


def _make_view(name: str, written: Written) -> TensorView:
    region = Region(
        written.path, written.offset_bytes, written.end_bytes - written.offset_bytes, 0, zipped=False
    )
    return TensorView(name, region, written.dtype, 0, written.shape, contiguous_strides(written.shape))
