"""The model that a trained one is like: what only its config, its tokenizer and its user know."""

import contextlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.formats.meta.files import find_files
from distconv.formats.meta.foreign import describe_folder
from distconv.formats.meta.small_files import CONFIG_NAME
from distconv.formats.plain_json import parse_object
from distconv.formats.safetensors.catalog import TransformersCatalog, read_transformers_catalog
from distconv.formats.safetensors.folder import find_transformers_files
from distconv.humanize import format_count
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.output.targets import TRANSFORMERS
from distconv.output.tokenizers import lacks_tokenizer
from distconv.planning.plan import Plan
from distconv.sidecars.config import to_json
from distconv.sidecars.processors import PREPROCESSOR_NAME, PROCESSOR_NAME
from distconv.storage.base import Storage, is_folder, join, list_files, read_small
from distconv.storage.given import describe_no_folder

_TEMPLATES = "additional_chat_templates"
_TEMPLATE, _TEMPLATE_END = "chat_template.jinja", ".jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TYPES = ("dtype", "torch_dtype")
_OF_ANOTHER = ("_name_or_path",)


@dataclass(frozen=True, slots=True)
class Like:
    """A Transformers folder, of which weights are read only where that is asked for."""

    folder: str
    config_path: str
    config: Mapping[str, object]
    small: tuple[str, ...]
    """Paths of what is copied."""
    templates: tuple[str, ...]
    """Paths of further chat templates, each by its name, in a folder of their own."""
    detours: Mapping[str, tuple[str, ...]]
    """Keys that would have a loader take code or files that are not copied, by the names of the files that have them."""
    weights: TransformersCatalog | None
    weight_paths: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """All small files that have a part in OUTPUT."""
        return (self.config_path, *self.small, *self.templates)

    @property
    def dtype(self) -> str | None:
        """The type that its config names, if any."""
        return next((found for key in _TYPES if isinstance(found := self.config.get(key), str)), None)

    @property
    def has_processor(self) -> bool:
        """Whether it takes images or sounds: its processor reads no chat templates but those in files."""
        return bool({PROCESSOR_NAME, PREPROCESSOR_NAME} & {path.rpartition("/")[2] for path in self.small})

    @property
    def notes(self) -> tuple[str, ...]:
        """Say that there is no tokenizer, what is not copied, and what becomes of chat templates in a folder of their own."""
        return tuple(self._list_notes())

    def _list_notes(self) -> Iterator[str]:
        if lacks_tokenizer(self.config, (path.rpartition("/")[2] for path in self.small)):
            yield f"{self.folder}: no tokenizer in it, so there will be none beside what is made"
        for name, keys in self.detours.items():
            yield f"{join(self.folder, name)}: {' and '.join(keys)} left out, as what is loaded by it is not copied"
        if self.templates:
            what = (
                "left out, as its processor would not find them elsewhere"
                if self.has_processor
                else f"put into {_TOKENIZER_CONFIG}, where Transformers reads them too"
            )
            count = format_count(len(self.templates), "chat template")
            yield f"{join(self.folder, _TEMPLATES)}: {count}, {what}"


def read_like(storage: Storage, folder: str, *, weights: bool) -> Like:
    """Read the config of a folder and list what is copied from it; with ``weights`` read their headers too."""
    words = describe_no_folder(storage, folder)
    if words is not None:
        raise InputError(f"{folder}: {words}")
    names = list_files(storage, folder)
    if CONFIG_NAME not in names:
        raise InputError(f"{folder}: {_describe_misfit(storage, folder)}")
    path = join(folder, CONFIG_NAME)
    config = parse_object(path, read_small(storage, path, SMALL_FILE_BYTES))
    copied = sorted(
        name for name in names if TRANSFORMERS.is_recorded(name) and name not in TRANSFORMERS.marks
    )
    small = tuple(join(folder, name) for name in copied)
    templates = tuple(_list_templates(storage, join(folder, _TEMPLATES)))
    like = Like(
        folder, path, config, small, templates, dict(_find_detours(storage, folder, names, config)), None, ()
    )
    if not weights:
        return like
    files = find_transformers_files(storage, folder)
    return replace(like, weights=read_transformers_catalog(storage, files), weight_paths=files.weights)


def _find_detours(
    storage: Storage, folder: str, names: Container[str], config: Mapping[str, object]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Find what a whole OUTPUT has not, see ``find_detours`` of ``output.loading``; InputError for files without an object."""
    for name in TRANSFORMERS.detours:
        if name in names:
            path = join(folder, name)
            content = (
                config
                if name == CONFIG_NAME
                else parse_object(path, read_small(storage, path, SMALL_FILE_BYTES))
            )
            if keys := TRANSFORMERS.list_detours(name, content):
                yield name, keys


def _describe_misfit(storage: Storage, folder: str) -> str:
    """Say what a folder without a config is."""
    with contextlib.suppress(InputError):
        find_files(storage, folder)
        return (
            f"in Meta's layout, and `like=` takes a Transformers folder; make one by `distconv convert {folder} LIKE`, and "
            "give that"
        )
    return f"no {CONFIG_NAME}; give by `like=` the folder of the model that was trained; {describe_folder(storage, folder)}"


def _list_templates(storage: Storage, folder: str) -> list[str]:
    names = list_files(storage, folder) if is_folder(storage, folder) else []
    return [join(folder, name) for name in sorted(names) if name.endswith(_TEMPLATE_END)]


def make_sidecars(storage: Storage, like: Like, plan: Plan) -> dict[str, bytes]:
    """Give what stands beside the weights, the config last: copies, and the config with the type that was written."""
    files = {path.rpartition("/")[2]: read_small(storage, path, SMALL_FILE_BYTES) for path in like.small}
    for name, keys in like.detours.items():
        if name in files:
            content = parse_object(join(like.folder, name), files[name])
            files[name] = to_json({key: value for key, value in content.items() if key not in keys})
    if like.templates and not like.has_processor:
        files |= _put_templates_together(storage, like, files)
    files[CONFIG_NAME] = to_json(_make_config(like, plan))
    return files


def _make_config(like: Like, plan: Plan) -> dict[str, object]:
    """Give the config with the type that was written, and its parts' configs in place of one that no tensor has.

    Transformers 4.57 loads a part in the type that its own config names.
    """
    stored = dict.fromkeys(_TYPES, plan.dtype.name)
    held = {tensor.dtype.name for tensor in plan.tensors}
    gone = (*_OF_ANOTHER, *like.detours.get(CONFIG_NAME, ()))
    config = {key: value for key, value in like.config.items() if key not in gone} | stored
    places = [config]
    for place in places:
        for key, part in place.items():
            if isinstance(part, dict) and "model_type" in part:
                named = {part[name] for name in _TYPES if isinstance(part.get(name), str)}
                place[key] = own = part | (stored if named - held else {})
                places.append(own)
    return config


def _put_templates_together(storage: Storage, like: Like, files: dict[str, bytes]) -> dict[str, bytes]:
    """Give tokenizer_config.json with all chat templates: where they stood before there was a folder, and are still read.

    OUTPUT has no folders. The file with one template, which would be taken alone, goes out of ``files``.
    """
    paths = {path.rpartition("/")[2].removesuffix(_TEMPLATE_END): path for path in like.templates}
    if _TEMPLATE in files:
        paths |= {"default": join(like.folder, _TEMPLATE)}
        del files[_TEMPLATE]
    templates = [{"name": name, "template": _read_template(storage, path)} for name, path in paths.items()]
    settings = parse_object(join(like.folder, _TOKENIZER_CONFIG), files.get(_TOKENIZER_CONFIG, b"{}"))
    return {_TOKENIZER_CONFIG: to_json({**settings, "chat_template": templates})}


def _read_template(storage: Storage, path: str) -> str:
    try:
        return read_small(storage, path, SMALL_FILE_BYTES).decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}: no text in UTF-8, expected a chat template") from None
