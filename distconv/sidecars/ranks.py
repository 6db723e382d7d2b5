"""Tiktoken files (Llama 3 and later): lines ``base64 rank``, and the same as a ``tokenizers`` BPE."""

import base64
import binascii
import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from distconv.errors import InputError
from distconv.sidecars.merges import LONGEST_TOKEN, find_merges, write_tokenizer
from distconv.sidecars.special_tokens import ALL_SPECIAL, TokenSet, count_special_tokens

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,9})\r?")


@dataclass(frozen=True, slots=True)
class RankVocabulary:
    """The byte strings of a tiktoken file, in the order of their ranks, which are their ids."""

    path: str
    tokens: tuple[bytes, ...] = field(repr=False)
    special_count: int
    """How many special tokens Meta's code counts behind the ranks."""
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["tiktoken"]:
        """Name the kind of file."""
        return "tiktoken"

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.tokens) + self.special_count


def looks_like_ranks(content: bytes) -> bool:
    """Whether the first line is one of a tiktoken file."""
    return _LINE.fullmatch(content[:512].split(b"\n", 1)[0]) is not None


def make_rank_vocabulary(path: str, content: bytes, special_count: int | None = None) -> RankVocabulary:
    """Read a file from its bytes; InputError where it is damaged.

    ``special_count`` is told by the number of ranks where it is None.
    """
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    tokens = tuple(_read_line(path, rank, line) for rank, line in enumerate(lines))
    check_tokens(path, tokens)
    special = set(tokens) & {text.encode() for text in ALL_SPECIAL}
    if special:
        raise InputError(
            f"{path}: {len(special)} of Llama's special tokens stand among the ranks, which they follow"
        )
    return RankVocabulary(path, tokens, special_count or count_special_tokens(len(tokens)))


def check_tokens(path: str, tokens: Sequence[bytes]) -> None:
    """Refuse what would take for ever to convert, and ranks that do not reach every text; InputError."""
    longest = max(map(len, tokens), default=0)
    if longest > LONGEST_TOKEN:
        raise InputError(f"{path}: a token of {longest:,} bytes, expected at most {LONGEST_TOKEN:,}")
    known = set(tokens)
    if len(known) != len(tokens):
        raise InputError(f"{path}: {len(tokens) - len(known)} tokens stand there twice")
    missing = sum(bytes([value]) not in known for value in range(256))
    if missing:
        raise InputError(f"{path}: {missing} of the 256 single bytes have no rank; the file is damaged")


def make_rank_tokenizer(vocabulary: RankVocabulary, special: TokenSet) -> bytes:
    """Make tokenizer.json of the tokenizer that gives the ids which tiktoken gives, after ``<|begin_of_text|>``.

    InputError where the special tokens do not belong to as many ranks.
    """
    _check_count(vocabulary, special)
    return write_byte_tokenizer(
        vocabulary.path,
        vocabulary.tokens,
        special.texts,
        special.pattern,
        special.begin,
        special_first=False,
    )


def write_byte_tokenizer(
    path: str,
    tokens: Sequence[bytes],
    special: Sequence[str],
    pattern: str,
    begin: str,
    *,
    special_first: bool,
) -> bytes:
    """Write tokenizer.json of byte strings in the order of their ranks, and of special tokens before or behind them.

    ``path`` is where the ranks were read, for errors, ``pattern`` cuts text into words, ``begin`` is the special token
    that begins each text.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    texts = _make_texts(tokens)
    tokenizer = Tokenizer(
        BPE(
            vocab={
                text: number for number, text in enumerate((*special, *texts) if special_first else texts)
            },
            merges=[],
            fuse_unk=False,
            ignore_merges=True,  # tiktoken, too, takes a word that is a token whole
        )
    )
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    into_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, into_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    number = special.index(begin) + (0 if special_first else len(tokens))
    once = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, number)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), once])
    merges = [(texts[left], texts[right]) for left, right in make_rank_merges(path, tokens)]
    return write_tokenizer(tokenizer, merges)


def _check_count(vocabulary: RankVocabulary, special: TokenSet) -> None:
    if special.counted != vocabulary.special_count:
        raise InputError(
            f"{vocabulary.path}: {len(vocabulary.tokens):,} ranks, which {vocabulary.special_count:,} special tokens "
            f"follow; expected the tokenizer of a model with {special.counted:,} of them"
        )


def make_rank_merges(path: str, tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    """Make the merges as pairs of ranks: by the rank they give, then left, then right.

    Every way to cut a token in two is a merge, for tiktoken knows ranks only.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return [(left, right) for _, left, right in find_merges(path, ranks)]


def make_byte_table() -> str:
    """Give the printable character that GPT-2 gave each byte, by its value."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return "".join(chr(value if value in printable else next(others)) for value in range(256))


def _make_texts(tokens: Sequence[bytes]) -> list[str]:
    table = make_byte_table()
    return [codecs.charmap_decode(token, "strict", table)[0] for token in tokens]


def _read_line(path: str, rank: int, line: bytes) -> bytes:
    match = _LINE.fullmatch(line)
    if match is None or int(match[2]) != rank:
        shown = repr(line[:40])[1:]
        raise InputError(
            f"{path}: line {rank + 1} is {shown}, expected `base64 {rank}`; the file is damaged or truncated"
        )
    try:
        return base64.b64decode(match[1], validate=True)
    except binascii.Error as error:
        raise InputError(f"{path}: line {rank + 1}: {error}; the file is damaged") from None
