"""Tell what a model is; reads headers only."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from distconv.families.dimensions import Dimensions, MixtralDimensions, MllamaDimensions, ModelDimensions
from distconv.families.llama import Family
from distconv.families.translate import Decisions, join_ranks, list_shard_counts, make_targets
from distconv.formats.meta.catalog import Catalog
from distconv.formats.safetensors.folder import find_transformers_files
from distconv.humanize import format_choice, format_count, format_size
from distconv.layout.dtypes import BFLOAT16, STORABLE, name_dtypes
from distconv.layout.files import OutputTensor
from distconv.sidecars.settings import read_chat_template
from distconv.storage.base import PathLike, Storage
from distconv.storage.places import read_place
from distconv.verbs.checkpoint import Checkpoint, decide
from distconv.verbs.from_trained import note_twins
from distconv.verbs.inspect_foreign import describe_foreign
from distconv.verbs.inspect_trained import describe_files, describe_model
from distconv.verbs.kinds import Kind, reading_kind
from distconv.verbs.model_config import choose_longest
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.reports import Report
from distconv.verbs.sources import open_meta
from distconv.verbs.tables import Table
from distconv.verbs.trained_input import find_beside, find_trained_files, take_like
from distconv.verbs.transformers_model import TransformersModel, read_any_model


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Report):
    """What a model is, and how that is known."""

    found: Mapping[str, object]
    """Plain values."""
    rows: Sequence[tuple[str, str]]
    """The same for people, each under its name."""
    notes: tuple[str, ...]
    """What was assumed, and what looks odd."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain values."""
        return {**self.found, "notes": list(self.notes)}

    def lines(self) -> tuple[Table, ...]:
        """Give the same for people."""
        return (Table(("", ""), self.rows, (False, False)),)


def inspect(
    source: PathLike,
    *,
    family: str | None = None,
    instruct: bool | None = None,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
    like: PathLike | None = None,
    dialect: str | None = None,
    fill_from_like: bool = False,
    endpoint_url: str | None = None,
) -> Inspection:
    """Tell what the model in ``source`` is: a checkpoint of Meta's or of a trainer, or a Transformers folder.

    Of a Transformers folder of another family than Llama's it tells what is true of any.
    Reads headers only. Takes what is said of ``source`` as ``convert`` does. Raises InputError where no model is
    found or its parts contradict each other, UsageError for what was asked.
    """
    options = Options(
        source=read_place(source), output="", family=family, instruct=instruct,
        tokenizer=read_place_or_none(tokenizer),
        params=read_place_or_none(params), like=read_place_or_none(like), dialect=dialect,
        fill_from_like=fill_from_like, endpoint_url=endpoint_url,
    )  # fmt: skip
    storage = open_storage(options)
    with reading_kind(storage, options) as kind:
        if kind is Kind.TRAINED:
            return _inspect_trained(storage, options)
        if kind is Kind.TRANSFORMERS:
            return _inspect_transformers(storage, options)
        return _inspect_checkpoint(open_meta(storage, options))


def _inspect_transformers(storage: Storage, options: Options) -> Inspection:
    files = find_transformers_files(storage, options.source, options.tokenizer)
    model = read_any_model(storage, files, family=options.family)
    if isinstance(model, TransformersModel):
        return _inspect_model(storage, model)
    found, rows = describe_foreign(storage, files)
    note = f"{files.folder}: `to='meta'` is refused of this model; `distconv verify {files.folder}` proves whether it is whole"
    return Inspection(found, rows, (*files.notes, model, note))


def _inspect_trained(storage: Storage, options: Options) -> Inspection:
    """Tell what the files say; without the model that it is like, no more."""
    files = find_trained_files(storage, options)
    found, rows = describe_files(files, options.dialect)
    if options.like is None and find_beside(storage, options.source, files.folder) is None:
        note = f"{options.source}: what model it is, `like=FOLDER` tells: that of the model that was trained"
        return Inspection(found, rows, (*files.notes, note))
    model = take_like(storage, options, files).read(storage)
    more, more_rows = describe_model(model)
    return Inspection({**found, **more}, [*more_rows, *rows], (*model.notes, *note_twins(model)))


def _inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    choice, files = checkpoint.choice, checkpoint.files
    decisions, _notes = decide(checkpoint)
    head_dim = checkpoint.dimensions.head_dim
    # They are counted whatever they are stored as.
    parameters = _count_elements(make_targets(checkpoint.matches, head_dim, decisions, BFLOAT16))
    dtypes = name_dtypes(match.views[0].dtype for match in checkpoint.matches)
    counts = _list_counts(checkpoint, decisions)
    found = {
        "format": "meta",
        "family": choice.family.name,
        "title": choice.family.title,
        "instruct": choice.instruct,
        "evidence": list(choice.evidence),
        "assumptions": list(choice.assumptions),
        "folder": files.folder,
        "shards": [list(shard.paths) for shard in files.shards],
        "tokenizer": files.tokenizer,
        "tokenizer_kind": None if checkpoint.vocabulary is None else checkpoint.vocabulary.kind,
        "size_bytes": checkpoint.catalog.size_bytes,
        "parameters": parameters,
        "dtypes": dtypes,
        "tied": decisions.tied,
        **_size_values(checkpoint.dimensions),
        "context": choose_longest(checkpoint),
        "for_meta": {"shards": list(counts)},
    }
    rows = [
        ("family", _name_family(choice.family, instruct=choice.instruct)),
        ("known by", "; ".join(choice.evidence)),
        ("folder", files.folder),
        ("shards", _count_shards(checkpoint.catalog)),
        ("tokenizer", files.tokenizer or "none found"),
        ("parameters", f"{parameters:,}"),
        ("stored as", " and ".join(dtypes)),
        *_size_rows(checkpoint.dimensions),
        ("context", f"{choose_longest(checkpoint):,}"),
        *([("for Meta", f"can be cut into {format_choice(counts, 'shard')}")] if counts else []),
    ]
    return Inspection(found, rows, checkpoint.notes)


def _count_shards(catalog: Catalog) -> str:
    """Count shards, and their files where one has several."""
    files = sum(len(shard.paths) for shard in catalog.shards)
    inside = f", in {files} files" if files > len(catalog.shards) else ""
    return f"{len(catalog.shards)}{inside} ({format_size(catalog.size_bytes)})"


def _list_counts(checkpoint: Checkpoint, decisions: Decisions) -> tuple[int, ...]:
    """Give the numbers of shards that Meta's code could read; none of a model that it does not know."""
    if checkpoint.params.mistral is not None:
        return ()
    wholes = list(join_ranks(checkpoint.matches, decisions.kv_replication))
    return list_shard_counts(wholes, checkpoint.dimensions.head_dim)


def _inspect_model(storage: Storage, model: TransformersModel) -> Inspection:
    config, files = model.config, model.files
    views = model.catalog.tensors.values()
    parameters = sum(math.prod(view.shape) for view in views)
    dtypes = name_dtypes({view.dtype for view in views} & set(STORABLE))
    counts = list_shard_counts(list(model.whole_tensors()), model.dimensions.head_dim)
    choice = format_choice(counts, "shard")
    params = json.loads(model.make_params())
    instruct = config.family.guard or read_chat_template(storage, files.folder) is not None
    found = {
        "format": "transformers",
        "family": config.family.name,
        "title": config.family.title,
        "instruct": instruct,
        "evidence": list(config.evidence),
        "folder": files.folder,
        "files": list(files.weights),
        "tokenizer_kind": model.tokenizer.kind,
        "size_bytes": model.catalog.size_bytes,
        "parameters": parameters,
        "dtypes": dtypes,
        "tied": model.tied,
        **_size_values(model.dimensions),
        "context": config.context,
        "for_meta": {"shards": list(counts), "vocabulary": model.rows, "params": params},
    }
    rows = [
        ("family", _name_family(config.family, instruct=instruct)),
        ("known by", "; ".join(config.evidence)),
        ("folder", f"{files.folder}, in Transformers' format"),
        ("weights", f"{format_count(len(files.weights), 'file')} ({format_size(model.catalog.size_bytes)})"),
        ("tokenizer", f"{model.tokenizer.kind}, {model.tokenizer.size:,} tokens"),
        ("parameters", f"{parameters:,}"),
        ("stored as", f"{' and '.join(dtypes)}{', tied' if model.tied else ''}"),
        *_size_rows(model.dimensions),
        ("context", f"{config.context:,}"),
        ("for Meta", f"can be cut into {choice}, with {model.rows:,} rows of vocabulary"),
        ("", f"params.json {json.dumps(params)}"),
    ]
    return Inspection(found, rows, model.notes)


def _name_family(family: Family, *, instruct: bool) -> str:
    return f"{family.title}{' (instruct)' if instruct else ''}"


def _count_elements(tensors: Sequence[OutputTensor]) -> int:
    return sum(tensor.elements for tensor in tensors)


def _size_values(sizes: ModelDimensions) -> dict[str, object]:
    return {
        "dim": sizes.dim,
        "layers": sizes.layers,
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "ffn_dim": sizes.ffn_dim,
        "vocabulary": sizes.vocab,
        **_image_values(sizes),
    }


def _image_values(sizes: ModelDimensions) -> dict[str, object]:
    """Give what only a model with more than Llama's layers has."""
    if isinstance(sizes, Dimensions):
        return {}
    if isinstance(sizes, MixtralDimensions):
        return {"experts": sizes.experts}
    found: dict[str, object] = {"vision": {**asdict(sizes.vision), "image_size": sizes.vision.image_size}}
    if isinstance(sizes, MllamaDimensions):
        return {**found, "cross_attention_layers": list(sizes.cross_numbers)}
    return {
        **found,
        "experts": sizes.experts,
        "expert_ffn_dim": sizes.expert_ffn_dim,
        "moe_layers": list(sizes.moe_layers),
    }


def _size_rows(sizes: ModelDimensions) -> list[tuple[str, str]]:
    return [
        *_layer_rows(sizes),
        ("dim", f"{sizes.dim}, feed-forward {sizes.ffn_dim}"),
        ("heads", f"{sizes.heads}, key heads {sizes.kv_heads}, head size {sizes.head_dim}"),
        ("vocabulary", f"{sizes.vocab:,}"),
    ]


def _layer_rows(sizes: ModelDimensions) -> list[tuple[str, str]]:
    if isinstance(sizes, Dimensions):
        return [("layers", f"{sizes.layers}")]
    if isinstance(sizes, MixtralDimensions):
        return [("layers", f"{sizes.layers}, each of {sizes.experts} experts")]
    vision = sizes.vision
    if isinstance(sizes, MllamaDimensions):
        text = f"{sizes.layers}, of which {len(sizes.cross_numbers)} attend to images"
        encoder = f"{vision.layers} layers and {vision.global_layers} global ones"
    elif sizes.moe_layers:
        text = f"{sizes.layers}, of which {len(sizes.moe_layers)} have {sizes.experts} experts of {sizes.expert_ffn_dim}"
        encoder = f"{vision.layers} layers"
    else:
        text, encoder = f"{sizes.layers}, without experts", f"{vision.layers} layers"
    return [
        ("layers", text),
        ("vision", f"{encoder}, dim {vision.width}, tiles of {vision.image_size} pixels"),
    ]
