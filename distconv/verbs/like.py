"""The model that a trained one is like: what only its config, its tokenizer and its user know."""

from collections.abc import Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.meta.files import CONFIG_NAME
from distconv.formats.plain_json import parse_object
from distconv.formats.safetensors.catalog import TransformersCatalog, read_transformers_catalog
from distconv.formats.safetensors.folder import find_transformers_files
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.output.targets import is_legal
from distconv.planning.plan import Plan
from distconv.sidecars.config import to_json
from distconv.sidecars.processors import PREPROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PREPROCESSOR_NAME
from distconv.storage.base import Storage, join, list_files, read_small

_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    PREPROCESSOR_NAME,
    PROCESSOR_NAME,
    VIDEO_PREPROCESSOR_NAME,
)
"""What Transformers reads beside a model's weights and config."""
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
    weights: TransformersCatalog | None
    weight_paths: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """All small files that have a part in OUTPUT."""
        return (self.config_path, *self.small)


def read_like(storage: Storage, folder: str, *, weights: bool) -> Like:
    """Read the config of a folder and list what is copied from it; with ``weights`` read their headers too."""
    names = list_files(storage, folder)
    if CONFIG_NAME not in names:
        raise InputError(
            f"{folder}: no {CONFIG_NAME}; give by `like=` the folder of the model that was trained"
        )
    path = join(folder, CONFIG_NAME)
    config = parse_object(path, read_small(storage, path, SMALL_FILE_BYTES))
    copied = [name for name in _COPIED if name in names]
    copied += sorted(name for name in names if is_legal(name))
    small = tuple(join(folder, name) for name in copied)
    if not weights:
        return Like(folder, path, config, small, None, ())
    files = find_transformers_files(storage, folder)
    return Like(folder, path, config, small, read_transformers_catalog(storage, files), files.weights)


def make_sidecars(storage: Storage, like: Like, plan: Plan) -> dict[str, bytes]:
    """Give what stands beside the weights, the config last: copies, and the config with the type that was written."""
    files = {path.rpartition("/")[2]: read_small(storage, path, SMALL_FILE_BYTES) for path in like.small}
    config = {key: value for key, value in like.config.items() if key not in _OF_ANOTHER}
    config |= dict.fromkeys(_TYPES, plan.dtype.name)
    files[CONFIG_NAME] = to_json(config)
    return files
