"""Tensors that a config says are one, where a folder has both of them and they differ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.written import Headers
from distconv.output.contents import Seen
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.settings import list_places, read_config
from distconv.storage.base import Storage, join

_KEY = "tie_word_embeddings"
_OUTPUT, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class StoredTie:
    """An output and the embedding that it is said to be, each as (file, name), and the config.json that says so."""

    output: tuple[str, str]
    embedding: tuple[str, str]
    config: str


def find_stored_tie(storage: Storage, folder: str, headers: Headers) -> StoredTie | None:
    """Give the output that is stored though config.json ties it; None where there is none, or no readable config."""
    config = join(folder, CONFIG_NAME)
    places = [(file, name) for file, tensors in headers.items() for name in tensors]
    outputs = [place for place in places if place[1].endswith(_OUTPUT)]
    embeddings = [place for place in places if place[1].endswith(_EMBEDDING)]
    if len(outputs) != 1 or len(embeddings) != 1 or storage.find(config) is None:
        return None
    output, embedding = (headers[file][name] for file, name in (*outputs, *embeddings))
    # Beside text a model may have tokens of sound, whose table the output is not; and what is stored as another
    # type, which is told, has other bytes of the same values.
    if (output.shape, output.dtype) != (embedding.shape, embedding.dtype):
        return None
    try:
        found = read_config(storage, config)
    except InputError:  # which is told elsewhere
        return None
    said = next((place[_KEY] for place in list_places(found) if _KEY in place), None)
    return StoredTie(outputs[0], embeddings[0], config) if said is True else None


def find_broken_tie(tie: StoredTie | None, tensors: Mapping[tuple[str, str], Seen]) -> Iterator[str]:
    """Tell where a tied output's data, by its digest, is not the embedding's."""
    output, embedding = (None, None) if tie is None else (tensors.get(tie.output), tensors.get(tie.embedding))
    if tie is None or output is None or embedding is None or output.digest == embedding.digest:
        return
    yield (
        f"{tie.output[1]}: differs from {tie.embedding[1]}, and {tie.config} says that they are one ({_KEY}): some versions of "
        f"Transformers take this, others that; let it say false, or leave {tie.output[1]} out"
    )
