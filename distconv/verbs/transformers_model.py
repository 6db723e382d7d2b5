"""A Transformers folder as INPUT: everything that is known of it without reading a tensor's data."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError, MismatchError
from distconv.families.architectures import ARCHITECTURES, Architecture
from distconv.families.choose import Choice
from distconv.families.dimensions import ModelDimensions
from distconv.families.llama import OUTPUT, RULES
from distconv.families.operations import TileTable
from distconv.families.rules import Rule, expand_rules
from distconv.families.translate import MetaTensor, invert_rules, keep_rows, list_target_shapes
from distconv.formats.meta.small_files import TOKENIZER_NAME
from distconv.formats.safetensors.catalog import TransformersCatalog, read_transformers_catalog
from distconv.formats.safetensors.folder import TransformersFiles
from distconv.formats.views import TensorView
from distconv.humanize import shorten
from distconv.layout.dtypes import STORABLE
from distconv.layout.units import Pair
from distconv.moving.compare import target_of_view
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.sidecars.meta_config import MetaConfig, read_meta_config, refuse_foreign
from distconv.sidecars.meta_images import is_image_config, read_image_config, to_params
from distconv.sidecars.meta_params import make_params
from distconv.sidecars.meta_parts import ImageConfig
from distconv.sidecars.meta_tokenizer import (
    MetaTokenizer,
    NoMetaTokenizerError,
    decide_rows,
    make_meta_tokenizer,
)
from distconv.storage.base import Storage, read_small

_MOST_FINDINGS = 20
_OUTPUT_NAME = next(rule.target for rule in RULES if rule.source == OUTPUT)


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """What Meta's code needs of a model in Transformers' format."""

    files: TransformersFiles
    catalog: TransformersCatalog
    config: MetaConfig | ImageConfig
    tokenizer: MetaTokenizer
    rows: int
    """Of the vocabulary, that are kept."""
    notes: tuple[str, ...]

    @property
    def choice(self) -> Choice:
        """The family, and how that is known."""
        family = self.config.family
        return Choice(family, family.guard, self.config.evidence, (), self.config.tied)

    @property
    def dimensions(self) -> ModelDimensions:
        """Sizes of the model."""
        return self.config.dimensions

    def make_params(self, shards: int = 1) -> bytes:
        """Make params.json for so many shards."""
        if isinstance(self.config, ImageConfig):
            return to_params(self.config)
        return make_params(self.config, rows=self.rows, shards=shards)

    @property
    def architecture(self) -> Architecture:
        """Which kind of model it is."""
        return ARCHITECTURES[self.config.family.architecture]

    @property
    def rules(self) -> Sequence[Rule]:
        """What makes its tensors of Meta's, and back."""
        return self.architecture.make_rules(self.dimensions)

    def whole_tensors(self) -> Iterator[MetaTensor]:
        """Give Meta's whole tensors, in the order of the rules; a tied output is none of them."""
        tensors = {name: view.whole() for name, view in self.catalog.tensors.items()}
        for whole in invert_rules(self.rules, tensors, self.dimensions, self.config.family.embedding_cut):
            yield keep_rows(whole, self.rows)

    def list_tables(self) -> Iterator[Pair]:
        """Give tables that Meta's code has in a smaller form, each with what that form would become again."""
        for one in expand_rules(self.rules, self.dimensions):
            if isinstance(one.rule.operation, TileTable):
                view = self.catalog.tensors[one.target]
                back = one.rule.operation.invert(view.whole(), self.dimensions.head_dim)
                again = one.rule.operation.apply(back, self.dimensions.head_dim)
                held = target_of_view(view)
                yield held, replace(held, shape=again.shape, copies=again.copies)

    @property
    def tied(self) -> bool:
        """Whether the output is the embedding, and not stored by itself."""
        return self.config.family.architecture == "llama" and _OUTPUT_NAME not in self.catalog.tensors


def read_model(storage: Storage, files: TransformersFiles, *, family: str | None = None) -> TransformersModel:
    """Read config, tokenizer and all headers, and hold them against each other.

    Raises InputError with all that is wrong of one kind.
    """
    catalog, small = _read_rest(storage, files)
    content = read_small(storage, files.config, SMALL_FILE_BYTES)
    sees = is_image_config(files.config, content)
    if not sees:
        # Its tokenizer may be of a kind that no Llama has.
        refuse_foreign(files.config, content)
    return _fit_together(files, catalog, small, content, sees=sees, family=family)


def _read_rest(storage: Storage, files: TransformersFiles) -> tuple[TransformersCatalog, Mapping[str, bytes]]:
    """Read all headers and small files but config.json."""
    catalog = read_transformers_catalog(storage, files)
    return catalog, {name: read_small(storage, path, SMALL_FILE_BYTES) for name, path in files.small.items()}


def _fit_together(
    files: TransformersFiles,
    catalog: TransformersCatalog,
    small: Mapping[str, bytes],
    content: bytes,
    *,
    sees: bool,
    family: str | None,
) -> TransformersModel:
    """Hold against each other what was read; ``content`` is config.json's, of a model that Meta's layout has a place for."""
    made = make_meta_tokenizer(files.folder, small, files.small.get(TOKENIZER_NAME))
    config: MetaConfig | ImageConfig
    if sees:
        config, catalog = read_image_config(files.config, content, family=family), catalog.with_images()
    else:
        config = read_meta_config(files.config, content, tokenizer=made.kind, family=family)
    findings = list(_check_tensors(catalog, config, files))
    if findings:
        raise InputError.of(shorten(findings, _MOST_FINDINGS))
    rows, trimmed = decide_rows(files.config, config.dimensions.vocab, made)
    if trimmed is not None and isinstance(config, ImageConfig):
        raise MismatchError(
            f"{trimmed}; of a model that sees none can be left out: give its own tokenizer by `tokenizer=`"
        )
    notes = [*files.notes, *catalog.notes, *config.notes, *made.notes, *([trimmed] if trimmed else [])]
    if config.tied and _OUTPUT_NAME in catalog.tensors:
        notes.append(
            f"{files.config}: ties the output to the embedding, and {_OUTPUT_NAME} is stored, which counts"
        )
    return TransformersModel(files, catalog, config, made, rows, tuple(notes))


def read_any_model(
    storage: Storage, files: TransformersFiles, *, family: str | None = None
) -> TransformersModel | str:
    """Read a model as ``read_model`` does; give the reason where Meta's layout has no place for it or its tokenizer.

    What such a model holds is not looked at. InputError where config.json is no JSON object.
    """
    content = read_small(storage, files.config, SMALL_FILE_BYTES)
    sees = is_image_config(files.config, content)
    if not sees:
        try:
            refuse_foreign(files.config, content)
        except InputError as error:
            return str(error)
    catalog, small = _read_rest(storage, files)
    try:
        return _fit_together(files, catalog, small, content, sees=sees, family=family)
    except NoMetaTokenizerError as error:
        return str(error)


def _check_tensors(
    catalog: TransformersCatalog, config: MetaConfig | ImageConfig, files: TransformersFiles
) -> Iterator[str]:
    """Tell of tensors that are missing, unknown, or not of the shape that config.json gives."""
    sizes = config.dimensions
    wanted = list_target_shapes(ARCHITECTURES[config.family.architecture].make_rules(sizes), sizes)
    name = posixpath.basename(files.config)
    for target in sorted(catalog.tensors.keys() - wanted.keys()):
        yield f"{catalog.tensors[target].region.path}: {catalog.stored_name(target)} is no tensor of a {sizes.layers}-layer model; save the model without it, or take the {name} that belongs to it"
    for target, shape in wanted.items():
        view = catalog.tensors.get(target)
        if view is None:
            if target != _OUTPUT_NAME or not config.tied:
                yield f"{files.folder}: {target} is missing; {name} needs it; take all files of this model, or the {name} that belongs to these"
            continue
        yield from _check_view(view, shape, name)


def _check_view(view: TensorView, shape: tuple[int, ...], config: str) -> Iterator[str]:
    if view.shape != shape:
        yield f"{view.name} in {view.region.path}: shape {view.shape}, {config} gives {shape}"
    if view.dtype not in STORABLE:
        yield (
            f"{view.name} in {view.region.path}: stored as {view.dtype}, expected a floating-point type of 16 bits or more"
        )
