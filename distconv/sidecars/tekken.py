"""Mistral's tekken.json: byte strings by rank, behind special tokens, and the same as a ``tokenizers`` BPE.

Source of the format, and of the special tokens that files before version 7 do not name: ``tekken.py`` of mistral-common.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from distconv.errors import InputError
from distconv.formats.plain_json import parse_object
from distconv.sidecars.ranks import check_tokens, write_byte_tokenizer

TEKKEN_NAME = "tekken.json"
TEKKEN_BYTES = 32 << 20
"""More than any: Nemo's file has 14.8 MB, Small 3's 19.3."""

_UNNAMED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""By id, of files that name none."""
_FILLED = "<SPECIAL_{}>"
_BEGIN, _END = "<s>", "</s>"
_MOST_SPECIAL = 100_000
_LONGEST_PATTERN = 4096
_VERSIONS = ("v1", "v2", "v3", "v7", "v11", "v13", "v15")
"""Of mistral-common 1.13 (``tokens/tokenizers/base.py``), which reads no file of another one."""


@dataclass(frozen=True, slots=True)
class TekkenVocabulary:
    """What a tekken.json holds; ids are those of the special tokens, then ranks."""

    path: str
    tokens: tuple[bytes, ...] = field(repr=False)
    special: tuple[str, ...] = field(repr=False)
    pattern: str = field(repr=False)
    """The expression by which text is cut before its bytes are merged."""
    content: bytes = field(repr=False)
    """The file itself, which mistral-common reads."""
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["tekken"]:
        """Name the kind of file."""
        return "tekken"

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.special) + len(self.tokens)


def looks_like_tekken(content: bytes) -> bool:
    """Whether a file is a JSON object that has tokens as tekken.json does."""
    return content[:512].lstrip()[:1] == b"{" and b'"token_bytes"' in content


def make_tekken_vocabulary(path: str, content: bytes) -> TekkenVocabulary:
    """Read a file from its bytes; InputError where it is no tekken.json, or damaged."""
    parsed = parse_object(path, content)
    config, ranks = parsed.get("config"), parsed.get("vocab")
    if not isinstance(config, dict) or not isinstance(ranks, list):
        raise InputError(f"{path}: no 'config' and 'vocab' in it, expected Mistral's {TEKKEN_NAME}")
    pattern = config.get("pattern")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= _LONGEST_PATTERN:
        raise InputError(
            f"{path}: config.pattern is no text of at most {_LONGEST_PATTERN:,} characters; the file is damaged"
        )
    special = _read_special(path, parsed.get("special_tokens"), config.get("default_num_special_tokens"))
    size = config.get("default_vocab_size", len(special) + len(ranks))
    if type(size) is not int or not len(special) < size <= len(special) + len(ranks):
        raise InputError(
            f"{path}: config.default_vocab_size is {size!r:.40}, expected more than the {len(special):,} special tokens, and "
            f"at most {len(special) + len(ranks):,}, with all ranks"
        )
    tokens = tuple(_read_token(path, rank, ranks[rank]) for rank in range(size - len(special)))
    check_tokens(path, tokens)
    return TekkenVocabulary(path, tokens, special, pattern, content, tuple(_note_version(path, config)))


def _note_version(path: str, config: Mapping[str, object]) -> Iterator[str]:
    """Say that a file's version is not known: its tokens are taken as those of known ones are."""
    version = config.get("version")
    if version not in _VERSIONS:
        yield (
            f"{path}: config.version is {version!r:.40}, expected one of {', '.join(_VERSIONS)}; ids are made as with these, and "
            "mistral-common, as far as distconv knows it, does not read the copy; compare the ids of some text"
        )


def make_tekken_tokenizer(vocabulary: TekkenVocabulary) -> bytes:
    """Make tokenizer.json of the tokenizer that gives the ids which mistral-common gives, after ``<s>``."""
    return write_byte_tokenizer(
        vocabulary.path,
        vocabulary.tokens,
        vocabulary.special,
        vocabulary.pattern,
        _BEGIN,
        special_first=True,
    )


def _read_special(path: str, found: object, count: object) -> tuple[str, ...]:
    """Give special tokens by id, those that nobody named filled in."""
    named = list(_UNNAMED) if found is None else _read_named(path, found)
    total = len(named) if count is None else count
    if type(total) is not int or not len(named) <= total <= _MOST_SPECIAL:
        raise InputError(
            f"{path}: config.default_num_special_tokens is {count!r:.40}, expected at least the {len(named):,} that are named"
        )
    special = (*named, *(_FILLED.format(number) for number in range(len(named), total)))
    if special[1:3] != (_BEGIN, _END) or len(set(special)) != len(special):
        raise InputError(
            f"{path}: special tokens {', '.join(special[:4])!a:.60}, …; expected {_BEGIN} and {_END} as 1 and 2, each token once"
        )
    return special


def _read_named(path: str, found: object) -> list[str]:
    entries = found if isinstance(found, list) and len(found) <= _MOST_SPECIAL else [None]
    named: dict[object, str] = {}
    for entry in entries:
        text = entry.get("token_str") if isinstance(entry, Mapping) else None
        if isinstance(entry, Mapping) and isinstance(text, str) and type(entry.get("rank")) is int:
            named[entry["rank"]] = text
    if len(named) != len(entries) or set(named) != set(range(len(entries))):
        raise InputError(f"{path}: special_tokens are no list with a 'token_str' for each 'rank' from 0 on")
    return [named[rank] for rank in range(len(entries))]


def _read_token(path: str, rank: int, entry: object) -> bytes:
    found = entry.get("token_bytes") if isinstance(entry, Mapping) and entry.get("rank") == rank else None
    try:
        if isinstance(found, str):
            return base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InputError(
        f"{path}: entry {rank} of 'vocab' is {entry!r:.60}, expected 'rank' {rank} and its 'token_bytes' in base64; the file is "
        "damaged"
    )
