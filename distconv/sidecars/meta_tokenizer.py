"""tokenizer.model, as Meta's code reads it, out of a Transformers folder; and which rows of embedding it has.

A sentencepiece model is copied: tokenizer.json has no scores, so that it cannot be made again. A
tiktoken file is: tokenizer.json has its tokens in the order of their ranks.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from distconv.errors import InputError, MismatchError
from distconv.families.evidence import Tokenizer
from distconv.formats.meta.small_files import TOKENIZER_NAME
from distconv.formats.plain_json import parse_object
from distconv.sidecars.ranks import RankVocabulary, make_byte_table, make_rank_merges, make_rank_vocabulary
from distconv.sidecars.special_tokens import TOKEN_SETS
from distconv.sidecars.tokenizer import make_vocabulary
from distconv.storage.base import join

_ADVICE = f"put {TOKENIZER_NAME} of the base model beside it"
_TABLE_NAME = "tokenizer.json"
_LEGACY_NAME = "added_tokens.json"
_MOST_SHOWN = 5


class NoMetaTokenizerError(InputError):
    """What a folder has of a tokenizer, Meta's code cannot have; nothing is wrong with the folder."""


@dataclass(frozen=True, slots=True)
class MetaTokenizer:
    """tokenizer.model, and what the folder's tokenizer has beyond it."""

    kind: Tokenizer
    content: bytes = field(repr=False)
    size: int
    """Tokens, special ones included; ids are below it."""
    beyond: Mapping[int, str]
    """Added tokens that have no place in tokenizer.model, by id."""
    notes: tuple[str, ...] = ()


def make_meta_tokenizer(
    folder: str, files: Mapping[str, bytes], tokenizer: str | None = None
) -> MetaTokenizer:
    """Make tokenizer.model out of the ``files`` of a folder: one of that name, tokenizer.json, added_tokens.json.

    ``tokenizer`` is where the one of that name lies, if not in the folder. InputError, with the reason, where they do not hold what Meta's code reads.
    """
    path = join(folder, _TABLE_NAME)
    parsed = parse_object(path, files[_TABLE_NAME]) if _TABLE_NAME in files else {}
    added = {**_read_legacy(folder, files), **_read_added(parsed)}
    if TOKENIZER_NAME in files:
        path, content = tokenizer or join(folder, TOKENIZER_NAME), files[TOKENIZER_NAME]
    elif parsed:
        content = make_rank_file(path, parsed)
    else:
        raise NoMetaTokenizerError(f"{folder}: neither {TOKENIZER_NAME} nor {_TABLE_NAME}; {_ADVICE}")
    vocabulary = make_vocabulary(path, content, _tell_special_count(parsed))
    beyond = {number: text for number, text in added.items() if number >= vocabulary.size}
    notes = _note_renamed(path, vocabulary, added) if isinstance(vocabulary, RankVocabulary) else ()
    return MetaTokenizer(vocabulary.kind, content, vocabulary.size, beyond, tuple(notes))


def make_rank_file(path: str, parsed: Mapping[str, object]) -> bytes:
    """Make the lines ``base64 rank`` out of tokenizer.json.

    InputError where the file is no byte-level BPE, cuts text in another way than Meta's code,
    or has merges that do not follow from ranks: tiktoken would give other ids.
    """
    model = parsed.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(found, dict) or model.get("type") not in {None, "BPE"}:
        raise NoMetaTokenizerError(
            f"{path}: no BPE with a vocabulary, expected that of Llama 3 or 4; {_ADVICE}"
        )
    if model.get("byte_fallback") is True or "▁" in found:
        raise NoMetaTokenizerError(
            f"{path}: the BPE of a sentencepiece model, whose scores tokenizer.json does not have; {_ADVICE}"
        )
    tokens = _read_tokens(path, found)
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    content = b"".join(lines)
    make_rank_vocabulary(path, content)
    _check_merges(path, found, model.get("merges"), tokens)
    if _tell_special_count(parsed) is None or parsed.get("normalizer") is not None:
        raise NoMetaTokenizerError(
            f"{path}: text is cut before it is merged in another way than Llama 3 and 4 do; {_ADVICE}"
        )
    return content


def _tell_special_count(parsed: Mapping[str, object]) -> int | None:
    """Tell how many special tokens follow the ranks by how text is cut; None where no Llama cuts it so."""
    patterns = set(_find_patterns(parsed.get("pre_tokenizer")))
    return next((tokens.counted for tokens in TOKEN_SETS.values() if patterns == {tokens.pattern}), None)


def decide_rows(path: str, rows: int, tokenizer: MetaTokenizer) -> tuple[int, str | None]:
    """Decide how many of the embedding's ``rows`` are kept, and what is to be said of it.

    Meta's code has as many rows as its tokenizer tokens. Rows behind them are padding where no
    token has them, or one for padding ("[PAD]"). MismatchError where there are too few, or where
    another token would lose its row.
    """
    size = tokenizer.size
    if rows == size:
        return rows, None
    if rows < size:
        raise MismatchError(
            f"{path}: the embedding has {rows:,} rows, {TOKENIZER_NAME} {size:,} tokens; give the model's own by "
            "`tokenizer=`"
        )
    used = {
        number: text
        for number, text in tokenizer.beyond.items()
        if number < rows and "pad" not in text.lower()
    }
    if used:
        shown = ", ".join(f"{text!r:.40} ({number})" for number, text in sorted(used.items())[:_MOST_SHOWN])
        raise MismatchError(
            f"{path}: {len(used)} added tokens have no place in {TOKENIZER_NAME}, which Meta's code reads: "
            f"{shown}{', ...' if len(used) > _MOST_SHOWN else ''}; "
            "a model that was trained with them cannot be written in Meta's layout"
        )
    return size, (
        f"{path}: the last {rows - size:,} of {rows:,} rows of vocabulary are padding, which Meta's code cannot "
        f"load, and are left out; {size:,} are written"
    )


def _read_legacy(folder: str, files: Mapping[str, bytes]) -> dict[int, str]:
    """Read the added tokens of a folder that older versions wrote, by id."""
    parsed = parse_object(join(folder, _LEGACY_NAME), files[_LEGACY_NAME]) if _LEGACY_NAME in files else {}
    return {number: text for text, number in parsed.items() if isinstance(number, int)}


def _read_added(parsed: Mapping[str, object]) -> dict[int, str]:
    """Read added tokens by id; what is no such entry is none."""
    found = parsed.get("added_tokens")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return {
        number: text
        for entry in entries
        if isinstance(number := entry.get("id"), int) and isinstance(text := entry.get("content"), str)
    }


def _read_tokens(path: str, found: Mapping[str, object]) -> list[bytes]:
    """Give the byte strings in the order of their ids."""
    values = {sign: value for value, sign in enumerate(make_byte_table())}
    texts: dict[int, str] = {
        number: text for text, number in found.items() if isinstance(number, int) and 0 <= number < len(found)
    }
    if len(texts) != len(found):
        raise NoMetaTokenizerError(
            f"{path}: ids are not those from 0 to {len(found) - 1:,}, each once; {_ADVICE}"
        )
    tokens = []
    for rank in range(len(texts)):
        try:
            tokens.append(bytes(values[sign] for sign in texts[rank]))
        except KeyError:
            raise NoMetaTokenizerError(
                f"{path}: token {rank:,} ({texts[rank]!r:.40}) is not written in bytes, as a BPE of Llama 3 is; {_ADVICE}"
            ) from None
    return tokens


def _check_merges(path: str, found: Mapping[str, object], merges: object, tokens: list[bytes]) -> None:
    """Compare the merges with those that tiktoken, which knows ranks only, would make."""
    pairs = merges if isinstance(merges, list) else []
    parts = (pair if isinstance(pair, list) else str(pair).split(" ") for pair in pairs)
    numbers = [tuple(found.get(str(part)) for part in pair) for pair in parts]
    expected = make_rank_merges(path, tokens)
    if numbers != expected:
        wrong = len(set(expected) ^ {*numbers})
        how = f"{wrong:,} of them too many or too few" if wrong else "they are in another order"
        raise NoMetaTokenizerError(
            f"{path}: its {len(pairs):,} merges are not those that follow from ranks ({how}): "
            f"Meta's code would give other ids; {_ADVICE}"
        )


def _find_patterns(node: object) -> Iterator[str]:
    """Give every expression by which text is cut."""
    left = [node]
    while left:
        found = left.pop()
        if isinstance(found, list):
            left += found
        elif isinstance(found, dict):
            left.append(found.get("pretokenizers"))
            pattern = found.get("pattern")
            if isinstance(pattern, dict):
                yield from map(str, pattern.values())
            elif found.get("type") == "ByteLevel" and found.get("use_regex") is not False:
                yield "that of GPT-2"


def _note_renamed(path: str, ranks: RankVocabulary, added: Mapping[int, str]) -> Iterator[str]:
    """Name special tokens that Meta's code calls otherwise, whatever the folder says."""
    first = len(ranks.tokens)
    sets = (tokens for tokens in TOKEN_SETS.values() if tokens.counted == ranks.special_count)
    known = {text for tokens in sets for text in tokens.texts}
    renamed = [
        text for number, text in sorted(added.items()) if first <= number < ranks.size and text not in known
    ]
    if renamed:
        shown = ", ".join(repr(text[:40]) for text in renamed[:_MOST_SHOWN])
        yield (
            f"{path}: {len(renamed)} special tokens ({shown}{', ...' if len(renamed) > _MOST_SHOWN else ''}) are "
            "called otherwise by Meta's code, which has names of its own for them"
        )
