"""What else in a model folder would be loaded with the model, or in its place.

Source: what ``from_pretrained`` of models and tokenizers of transformers 4.45 to 5.23 looks for in
a local folder. It takes ``model.safetensors`` before an index, and either before
``pytorch_model.bin``; an adapter beside the model is put into it; engines that serve models take
whatever weights they find.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping

from distconv.errors import InputError, OutputError
from distconv.formats.safetensors.written import read_object
from distconv.output.finalise import CONFIG_NAME, JOURNAL_NAME, RECEIPT_NAME, is_legal, is_model_file
from distconv.output.receipt import read_receipt
from distconv.storage.base import Entry, Storage, join, read_small

SMALL_FILE_BYTES = 64 << 20
"""No file beside the chunks is larger."""

_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack)(\.index\.json)?|adapter_config\.json", re.IGNORECASE
)
_SETTINGS = re.compile(
    r"(config|generation_config|quantize_config|.*quant_config|(pre)?processor_config)\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|tekken|chat_template)\.json"
    r"|.*\.model|merges\.txt|chat_template\.jinja"
)
_FOLDERS = frozenset({"additional_chat_templates"})
_KEYS = {
    CONFIG_NAME: ("transformers_weights", "quantization_config", "auto_map"),
    "tokenizer_config.json": ("fast_tokenizer_files", "auto_map"),
}
"""What would lead a loader elsewhere; no conversion writes it."""


def holds_weights(entry: Entry) -> bool:
    """Whether a name is one under which weights are found, an adapter's included."""
    return not entry.is_folder and _WEIGHTS.fullmatch(entry.name) is not None


def holds_settings(entry: Entry) -> bool:
    """Whether a name is one that says how a model, or its tokenizer, is to be made."""
    if entry.is_folder:
        return entry.name in _FOLDERS
    return _SETTINGS.fullmatch(entry.name) is not None


def is_loaded(entry: Entry) -> bool:
    """Whether a loader may read what has this name."""
    return holds_weights(entry) or holds_settings(entry)


def find_detours(storage: Storage, output: str) -> Iterator[str]:
    """Tell of what config and tokenizer config name that would be loaded in place of the model."""
    for name, keys in _KEYS.items():
        path = join(output, name)
        if storage.find(path) is not None:
            try:
                found = read_object(storage, path)
            except OutputError as error:
                yield str(error)
                continue
            for key in keys:
                if found.get(key) is not None:
                    yield f"{path}: has {key}, which no conversion writes and which changes what is loaded"


def digest_file(storage: Storage, path: str) -> str:
    """Give the SHA-256 of a small file; InputError where it is none."""
    return hashlib.sha256(read_small(storage, path, SMALL_FILE_BYTES)).hexdigest()


def find_obstacles(
    storage: Storage,
    output: str,
    chunks: Collection[str],
    files: Mapping[str, bytes],
    source_digests: Collection[str],
    *,
    overwrite: bool,
) -> Iterator[str]:
    """Tell of all in OUTPUT that a conversion may not replace, and with which it would not be whole.

    ``files`` stand beside the chunks; copies of INPUT's files, by their SHA-256, may stand there too.
    What ``overwrite`` removes is in nobody's way.
    """
    written = {*chunks, *files, RECEIPT_NAME, JOURNAL_NAME}
    recorded = read_recorded(storage, output)
    for entry in storage.list_folder(output):
        path = join(output, entry.name)
        if entry.name in written:
            if entry.is_folder:
                yield f"{path}: a folder, where a file will be written; move it away"
            elif is_legal(entry.name) and not _is_one_of(
                storage, path, {recorded.get(entry.name), hashlib.sha256(files[entry.name]).hexdigest()}
            ):
                yield f"{path}: not the one that belongs to this model; move it away"
        elif overwrite and is_model_file(entry.name) and not entry.is_folder:
            continue
        elif is_loaded(entry) and not is_copy(storage, output, entry, source_digests):
            yield f"{path}: not of this model, and may be loaded in its place; move it away"


def read_recorded(storage: Storage, output: str) -> Mapping[str, str]:
    """Give the SHA-256 of all files that OUTPUT's receipt names; none where there is no good one."""
    if storage.find(join(output, RECEIPT_NAME)) is None:
        return {}
    try:
        return read_receipt(storage, join(output, RECEIPT_NAME)).files
    except OutputError:
        return {}


def find_legal(storage: Storage, output: str) -> frozenset[str]:
    """Give the names of the licence's texts that came with the model which OUTPUT's receipt records."""
    recorded = read_recorded(storage, output)
    found = (name for name in recorded if is_legal(name) and storage.find(join(output, name)) is not None)
    return frozenset(name for name in found if _is_one_of(storage, join(output, name), {recorded[name]}))


def is_copy(storage: Storage, output: str, entry: Entry, source_digests: Collection[str]) -> bool:
    """Whether a file is a copy of one of INPUT's small ones, as a tokenizer.model for other programs is."""
    return holds_settings(entry) and _is_one_of(storage, join(output, entry.name), source_digests)


def _is_one_of(storage: Storage, path: str, digests: Collection[str | None]) -> bool:
    try:
        return digest_file(storage, path) in digests
    except InputError:
        return False
