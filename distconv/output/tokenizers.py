"""Whether a folder's tokenizer fits its model, by what their files say: nothing of it is loaded or run.

Source of the names, and of what ids follow from them: the tokenizers of transformers 4.45 to 5.23.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.plain_json import parse_object
from distconv.formats.protobuf import read_fields
from distconv.formats.written import Headers
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.output.values import show
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.settings import read_config
from distconv.storage.base import Storage, join, list_files, read_small

_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\.weight")
"""Tables of a row for each token, which some models have more of than vocab_size."""
_OTHERS = re.compile(r".*\.(model|tiktoken)|(tekken|vocab).*\.json|merges\.txt|.*vocab.*\.txt")
"""Tokenizers of kinds that are not looked at."""
_SPECIAL = re.compile(r".*_token_id")
_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_SHOWN = 4

_Tokens = dict[int, str]
"""Tokens by their ids; those of which the id alone counts are empty."""


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    path: str
    tokens: _Tokens


def find_tokenizer_faults(storage: Storage, output: str, headers: Headers) -> tuple[list[str], list[str]]:
    """Tell of tokens that the model has no row for, and of special ones that the tokenizer lacks; findings and notes.

    Says nothing of a model whose config.json names no vocabulary. InputError where that is no JSON object.
    """
    config = join(output, CONFIG_NAME)
    content = read_config(storage, config)
    size = _find_size(content)
    if size is None:
        return [], []
    try:
        found = _read_vocabulary(storage, output)
    except InputError as error:
        return str(error).splitlines(), []
    if isinstance(found, str):
        return [], [found]
    rows = max([size, *_list_rows(headers)])
    said = {config: content}
    path = join(output, "generation_config.json")
    if storage.find(path) is not None:
        try:
            said[path] = read_config(storage, path)
        except InputError as error:
            return str(error).splitlines(), []
    findings = [*_find_beyond(found, rows, f"{config} and the embedding give {rows:,}")]
    return [*findings, *_find_unknown(found, said)], []


def _find_size(content: Mapping[str, object]) -> int | None:
    inner = content.get("text_config")
    for place in (content, inner if isinstance(inner, dict) else {}):
        size = place.get("vocab_size")
        if type(size) is int and size > 0:
            return size
    return None


def _list_rows(headers: Headers) -> Iterator[int]:
    for tensors in headers.values():
        for name, written in tensors.items():
            if _EMBEDDING.fullmatch(name) and len(written.shape) == 2:
                yield written.shape[0]


def _find_beyond(found: _Vocabulary, rows: int, given: str) -> Iterator[str]:
    beyond = sorted(number for number in found.tokens if number >= rows)
    if beyond:
        shown = ", ".join(f"{show(found.tokens[number])} ({number:,})" for number in beyond[:_MOST_SHOWN])
        more = ", …" if len(beyond) > _MOST_SHOWN else ""
        yield f"{found.path}: ids beyond the vocabulary, of which {given} rows: {shown}{more}"


def _find_unknown(found: _Vocabulary, said: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    for path, content in said.items():
        inner = content.get("text_config")
        for place in (content, inner if isinstance(inner, dict) else {}):
            for key, value in place.items():
                numbers = value if isinstance(value, list) else [value]
                for number in numbers if _SPECIAL.fullmatch(key) else ():
                    # What is not used is said by null or -1.
                    if type(number) is int and number >= 0 and number not in found.tokens:
                        yield f"{path}: {key} {number:,}, {found.path} has no token of that id"


def _read_vocabulary(storage: Storage, output: str) -> _Vocabulary | str:
    """Read all tokens, added ones included; where that cannot be done, say why."""
    names = frozenset(list_files(storage, output))
    for name, read in _READERS.items():
        if name in names:
            path = join(output, name)
            tokens = read(path, read_small(storage, path, SMALL_FILE_BYTES))
            if tokens is None:
                return f"{path}: a tokenizer of a kind that is not looked at"
            return _Vocabulary(path, tokens | _read_added(storage, output, names))
    other = next(filter(_OTHERS.fullmatch, sorted(names)), None)
    if other is not None:
        return f"{join(output, other)}: a tokenizer of a kind that is not looked at"
    return f"{output}: no tokenizer here (as tokenizer.json or tokenizer.model), without which no text can be read or written"


def _read_added(storage: Storage, output: str, names: frozenset[str]) -> _Tokens:
    """Read what stands beside the vocabulary in files of older versions."""
    added: _Tokens = {}
    if "added_tokens.json" in names:
        path = join(output, "added_tokens.json")
        added |= _invert(path, parse_object(path, read_small(storage, path, SMALL_FILE_BYTES)), "the file")
    if "tokenizer_config.json" in names:
        path, found = join(output, "tokenizer_config.json"), None
        with contextlib.suppress(InputError):  # which is told as what leads a loader elsewhere is looked for
            found = parse_object(path, read_small(storage, path, SMALL_FILE_BYTES)).get(
                "added_tokens_decoder"
            )
        for key, row in found.items() if isinstance(found, dict) else ():
            if _NUMBER.fullmatch(key) and isinstance(row, dict):
                added[int(key)] = str(row.get("content"))
    return added


def _read_table(path: str, content: bytes) -> _Tokens:
    """Read tokenizer.json of the tokenizers library."""
    found = parse_object(path, content)
    model, added = found.get("model"), found.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):
        tokens = {
            number: str(row[0]) if isinstance(row, list) and row else "" for number, row in enumerate(vocab)
        }
    elif isinstance(vocab, dict):
        tokens = _invert(path, vocab, "model.vocab")
    else:
        raise InputError(f"{path}: no model.vocab, expected the tokens of a tokenizer")
    for row in added if isinstance(added, list) else ():
        number = row.get("id") if isinstance(row, dict) else None
        if type(number) is not int or number < 0:
            raise InputError(
                f"{path}: id {show(number)} among added_tokens, expected a whole number from 0 on"
            )
        tokens[number] = str(row.get("content"))
    return tokens


def _invert(path: str, found: Mapping[str, object], where: str) -> _Tokens:
    tokens: _Tokens = {}
    for text, number in found.items():
        if type(number) is not int or number < 0:
            raise InputError(
                f"{path}: {show(text)} has the id {show(number)} in {where}, expected a whole number from 0 on"
            )
        tokens[number] = text
    return tokens


def _read_lines(_path: str, content: bytes) -> _Tokens:
    return dict(enumerate(content.decode(errors="replace").removesuffix("\n").split("\n")))


def _read_pieces(_path: str, content: bytes) -> _Tokens | None:
    """Count the pieces of a sentencepiece model; None of what is none, as ranks in Meta's form."""
    try:
        count = sum(number == 1 for number, _value in read_fields(content))
    except ValueError:
        return None
    return dict.fromkeys(range(count), "") if count else None


_READERS: Mapping[str, Callable[[str, bytes], _Tokens | None]] = {
    "tokenizer.json": _read_table,
    "vocab.json": lambda path, content: _invert(path, parse_object(path, content), "the file"),
    "vocab.txt": _read_lines,
    "tokenizer.model": _read_pieces,
    "spiece.model": _read_pieces,
}
"""In the order in which they count; ids of a sentencepiece model under another name do not begin at its first piece."""
