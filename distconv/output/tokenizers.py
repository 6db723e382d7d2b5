"""Whether a folder's tokenizer fits its model, by what their files say: nothing of it is loaded or run.

Source of the names, and of what ids follow from them: the tokenizers of transformers 4.45 to 5.23.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.plain_json import parse_object
from distconv.formats.protobuf import read_fields
from distconv.formats.written import Headers
from distconv.humanize import format_size, list_first
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.output.values import show
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.settings import list_places, read_config
from distconv.storage.base import Storage, join, list_files, read_small

_EMBEDDING = re.compile(
    r"(.*\.)?(embed_tokens|embed_text_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\.weight"
)
"""Tables of a row for each token, which some models have more of than vocab_size."""
_MORE_ROWS = re.compile(r"(.*\.)?embed_tokens\.additional_embedding\.weight")
"""Rows behind those of the table, which stay trainable where that does not (IDEFICS)."""
_OTHERS = re.compile(r".*\.(model|tiktoken|spm)|(tekken|vocab).*\.json|merges\.txt|.*vocab.*\.txt")
"""Tokenizers of kinds that are not looked at."""
_OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Classes of tokenizers that need no file."""
_SPECIAL = re.compile(r".*_token_id")
_SIZES = ("vocab_size", "text_vocab_size")
"""Of text, and where the first counts sounds, of text by the second."""
_IN_TEXT = frozenset({"eos_token_id", "image_token_id", "video_token_id", "audio_token_id"})
"""Ids that only what a tokenizer gives or takes can be; others, as forced_bos_token_id, code may know by itself."""
_SPEAKING = re.compile(r".*(ForCausalLM|ForConditionalGeneration|LMHeadModel)")
_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_SHOWN = 4

_Tokens = dict[int, str]
"""Tokens by their ids; those of which the id alone counts are empty."""


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    path: str
    tokens: _Tokens
    added: _Tokens
    """Tokens that were added to a vocabulary, which may stand in it as well."""

    def __contains__(self, number: int) -> bool:
        """Whether there is a token of this id."""
        return number in self.tokens or number in self.added


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
    rows = max([size, *_list_rows(headers, _EMBEDDING)]) + sum(_list_rows(headers, _MORE_ROWS))
    path = join(output, "generation_config.json")
    said = {config: content, **_read_if_there(storage, path)}
    given = f"{config} and the embedding give {rows:,} rows"
    beyond = _show_beyond(found.tokens, rows)
    findings = [f"{found.path}: ids beyond the vocabulary, of which {given}: {beyond}"] if beyond else []
    # Of a family's larger models a small one may have the tokens that are added, and never see them.
    added = _show_beyond(found.added, rows)
    notes = (
        [f"{found.path}: added tokens that the model has no row for, as {given}: {added}"] if added else []
    )
    notes += _find_missing(storage, output, found)
    speaks = path in said or _speaks(content)
    for words, is_fault in _find_unknown(found, rows, said):
        (findings if is_fault and speaks else notes).append(words)
    return findings, notes


def _find_size(content: Mapping[str, object]) -> int | None:
    for place in list_places(content):
        sizes = [size for size in map(place.get, _SIZES) if type(size) is int and size > 0]
        if sizes:
            return max(sizes)
    return None


def _read_if_there(storage: Storage, path: str) -> dict[str, dict[str, object]]:
    """Read a file of JSON, by its path; what is none is told as what leads a loader elsewhere is looked for."""
    if storage.find(path) is not None:
        with contextlib.suppress(InputError):
            return {path: parse_object(path, read_small(storage, path, SMALL_FILE_BYTES))}
    return {}


def _list_rows(headers: Headers, names: re.Pattern[str]) -> Iterator[int]:
    for tensors in headers.values():
        for name, written in tensors.items():
            if names.fullmatch(name) and len(written.shape) == 2:
                yield written.shape[0]


def _show_beyond(tokens: _Tokens, rows: int) -> str:
    beyond = sorted(number for number in tokens if number >= rows)
    return list_first([f"{show(tokens[number])} ({number:,})" for number in beyond], _MOST_SHOWN)


def _speaks(content: Mapping[str, object]) -> bool:
    """Whether a model gives text: one that does not never uses the ends that its class has from another's."""
    names = content.get("architectures")
    return any(
        isinstance(name, str) and _SPEAKING.fullmatch(name)
        for name in (names if isinstance(names, list) else ())
    )


def _find_unknown(
    found: _Vocabulary, rows: int, said: Mapping[str, Mapping[str, object]]
) -> Iterator[tuple[str, bool]]:
    """Tell of special ids without a token or a row, each with whether the model cannot do without."""
    for path, content in said.items():
        for place in list_places(content):
            for key, value in place.items():
                numbers = value if isinstance(value, list) else [value]
                for number in numbers if _SPECIAL.fullmatch(key) else ():
                    # What is not used is said by null or -1.
                    if type(number) is not int or number < 0:
                        continue
                    if number not in found:
                        words = f"{path}: {key} {number:,}, {found.path} has no token of that id"
                        yield words, key in _IN_TEXT or number >= rows
                    elif number >= rows:
                        yield f"{path}: {key} {number:,}, the model has {rows:,} rows", True


def _find_missing(storage: Storage, output: str, found: _Vocabulary) -> Iterator[str]:
    """Tell of special tokens that older versions write by their text, and a vocabulary does not have."""
    known = {*found.tokens.values(), *found.added.values()}
    if "" in known:  # of which ids alone are read
        return
    for path, content in _read_if_there(storage, join(output, "special_tokens_map.json")).items():
        for key, value in content.items():
            for token in value if isinstance(value, list) else [value]:
                text = token.get("content") if isinstance(token, dict) else token
                if isinstance(text, str) and text not in known:
                    yield f"{path}: {key} {show(text)}, {found.path} has no such token, and Transformers adds it behind all others"


def is_tokenizer(name: str) -> bool:
    """Whether a file of this name is a tokenizer's, which is looked at or named here."""
    return name in _READERS or _OTHERS.fullmatch(name) is not None


def lacks_tokenizer(config: Mapping[str, object], names: Iterable[str]) -> bool:
    """Whether a model has a vocabulary, and nothing among files of these names could be its tokenizer."""
    return _find_size(config) is not None and not any(
        is_tokenizer(name) or name == "tokenizer_config.json" for name in names
    )


def _read_vocabulary(storage: Storage, output: str) -> _Vocabulary | str:
    """Read all tokens, added ones included; where that cannot be done, say why."""
    names = frozenset(list_files(storage, output))
    for name, read in _READERS.items():
        if name in names:
            path = join(output, name)
            entry = storage.find(path)
            if entry is not None and entry.size_bytes > SMALL_FILE_BYTES:
                return f"{path}: {format_size(entry.size_bytes)}, a larger tokenizer than is looked at"
            found = read(path, read_small(storage, path, SMALL_FILE_BYTES))
            if found is None:
                return f"{path}: a tokenizer of a kind that is not looked at"
            tokens, added = found
            return _Vocabulary(path, tokens, added | _read_added(storage, output))
    for name in ("tokenizer_config.json", CONFIG_NAME):
        for path, content in _read_if_there(storage, join(output, name)).items():
            if content.get("tokenizer_class") in _OF_BYTES:
                return f"{path}: {content['tokenizer_class']}, a tokenizer of bytes, without a vocabulary to be looked at"
    other = next(filter(_OTHERS.fullmatch, sorted(names)), None)
    if other is not None:
        return f"{join(output, other)}: a tokenizer of a kind that is not looked at"
    return f"{output}: no tokenizer here (as tokenizer.json or tokenizer.model), without which no text can be read or written"


def _read_added(storage: Storage, output: str) -> _Tokens:
    """Read what stands beside the vocabulary in files of older versions."""
    added: _Tokens = {}
    for path, content in _read_if_there(storage, join(output, "added_tokens.json")).items():
        added |= _invert(path, content, "the file")
    for content in _read_if_there(storage, join(output, "tokenizer_config.json")).values():
        found = content.get("added_tokens_decoder")
        for key, row in found.items() if isinstance(found, dict) else ():
            if _NUMBER.fullmatch(key) and isinstance(row, dict):
                added[int(key)] = str(row.get("content"))
    return added


_Read = tuple[_Tokens, _Tokens]
"""The tokens of a vocabulary, and those that were added."""


def _read_table(path: str, content: bytes) -> _Read:
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
    more: _Tokens = {}
    for row in added if isinstance(added, list) else ():
        number = row.get("id") if isinstance(row, dict) else None
        if type(number) is not int or number < 0:
            raise InputError(
                f"{path}: id {show(number)} among added_tokens, expected a whole number from 0 on"
            )
        more[number] = str(row.get("content"))
    return tokens, more


def _invert(path: str, found: Mapping[str, object], where: str) -> _Tokens:
    tokens: _Tokens = {}
    for text, number in found.items():
        if type(number) is not int or number < 0:
            raise InputError(
                f"{path}: {show(text)} has the id {show(number)} in {where}, expected a whole number from 0 on"
            )
        tokens[number] = text
    return tokens


def _read_names(path: str, content: bytes) -> _Read | None:
    """Read vocab.json; None of one that has a vocabulary for each language."""
    found = parse_object(path, content)
    if found and all(isinstance(value, dict) for value in found.values()):
        return None
    return _invert(path, found, "the file"), {}


def _read_lines(_path: str, content: bytes) -> _Read:
    return dict(enumerate(content.decode(errors="replace").rstrip("\r\n").split("\n"))), {}


def _read_pieces(_path: str, content: bytes) -> _Read | None:
    """Count the pieces of a sentencepiece model; None of what is none, as ranks in Meta's form."""
    try:
        count = sum(number == 1 for number, _value in read_fields(content))
    except ValueError:
        return None
    return (dict.fromkeys(range(count), ""), {}) if count else None


_READERS: Mapping[str, Callable[[str, bytes], _Read | None]] = {
    "tokenizer.json": _read_table,
    "vocab.json": _read_names,
    "vocab.txt": _read_lines,
    "tokenizer.model": _read_pieces,
    "spiece.model": _read_pieces,
}
"""In the order in which they count; ids of a sentencepiece model under another name do not begin at its first piece."""
