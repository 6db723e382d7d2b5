"""Sentencepiece models (Llama 1 and 2, Code Llama): what the file holds, and the same as a ``tokenizers`` BPE.

The file is a protobuf message, ``sentencepiece_model.proto`` of the sentencepiece repository.
Its few fields of interest are read directly: sentencepiece itself does not tell which pieces
are user-defined, and its protobuf classes need another package.
"""

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from distconv.errors import InputError
from distconv.formats.protobuf import read_fields
from distconv.sidecars.merges import LONGEST_TOKEN, find_merges, write_tokenizer
from distconv.sidecars.ties import find_ties

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2
_SPACE = "▁"
_MOST_PIECES = 500_000
_FLOAT = struct.Struct("<f")
_FIRST = ("<unk>", "<s>", "</s>")
_PROMPT_PIECES = frozenset({"▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<step>"})
"""Pieces that Code Llama's prompts are made of; Meta's code puts them in by id, never as text."""


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int
    """NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4, UNUSED 5, BYTE 6."""


@dataclass(frozen=True, slots=True)
class PieceVocabulary:
    """A sentencepiece model that ``tokenizers`` can imitate exactly, notes excepted."""

    path: str
    pieces: tuple[Piece, ...] = field(repr=False)
    content: bytes = field(repr=False)
    """The file itself, which sentencepiece reads."""
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["sentencepiece"]:
        """Name the kind of file."""
        return "sentencepiece"

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.pieces)


def make_piece_vocabulary(path: str, content: bytes) -> PieceVocabulary:
    """Read a model from its bytes.

    ValueError where they are no whole protobuf message; InputError, with all findings, where
    they are a sentencepiece model of a kind that no Llama has.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in read_fields(content):
        if number == 1 and isinstance(value, bytes):
            pieces.append(_make_piece(value))
            _bound(path, pieces)
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(read_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(read_fields(value))
    if not pieces or not trainer or not normalizer:
        # The settings come last in the file: without them it is cut off.
        raise ValueError("no pieces or no settings")
    findings = [*_find_piece_faults(pieces), *_find_setting_faults(trainer, normalizer)]
    if findings:
        raise InputError.of(f"{path}: {finding}" for finding in findings)
    return PieceVocabulary(path, tuple(pieces), content, tuple(_make_notes(path, pieces)))


def make_piece_tokenizer(vocabulary: PieceVocabulary) -> bytes:
    """Make tokenizer.json of the tokenizer that gives the ids which sentencepiece gives, after ``<s>``."""
    from tokenizers import AddedToken, Tokenizer, decoders, processors
    from tokenizers.models import BPE

    pieces = vocabulary.pieces
    tokenizer = Tokenizer(
        BPE(
            vocab={piece.text: number for number, piece in enumerate(pieces)},
            merges=[],
            unk_token=_FIRST[0],
            fuse_unk=True,
            byte_fallback=any(piece.kind == _BYTE for piece in pieces),
        )
    )
    # No pre-tokenizer: Metaspace would cut at spaces, which pieces of several spaces cross.
    symbols = [piece.text for piece in pieces if _is_symbol(piece)]
    tokenizer.normalizer = _make_normalizer(symbols)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [piece.text for piece in pieces if _is_special(piece)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=True, special=False) for text in symbols])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[(_FIRST[1], 1)]
    )
    return write_tokenizer(tokenizer, make_piece_merges(vocabulary.path, pieces))


def _make_normalizer(symbols: Sequence[str]) -> "Normalizer":
    """Put a space before text, and write spaces as sentencepiece does.

    Added tokens are cut out of normalized text, as sentencepiece cuts its symbols out: no second
    space follows them. ``tokenizers`` normalizes them, too, before it looks for them; so a text
    that is nothing but a symbol must get no space, where sentencepiece gives it one.
    """
    from tokenizers import Regex, normalizers

    alone = "|".join(map(re.escape, symbols))
    first = normalizers.Replace(Regex(rf"\A(?!(?:{alone})?\z)"), _SPACE)
    return normalizers.Sequence(
        [first if symbols else normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )


def make_piece_merges(path: str, pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Make the merges, best first: sentencepiece always merges to the piece of highest score."""
    numbers = {piece.text: number for number, piece in enumerate(pieces) if piece.kind == _NORMAL}
    texts, ranks = [piece.text for piece in pieces], [-piece.score for piece in pieces]
    # Those of one score stay in the order of their ids.
    found = sorted(find_merges(path, numbers), key=lambda merge: ranks[merge[0]])
    return [(texts[left], texts[right]) for _, left, right in found]


def _is_special(piece: Piece) -> bool:
    return piece.kind in (_UNKNOWN, _CONTROL) or piece.text in _PROMPT_PIECES


def _is_symbol(piece: Piece) -> bool:
    """Whether a piece is cut out of text before anything is merged; no text has spaces by then."""
    return piece.kind == _USER_DEFINED and not _is_special(piece) and " " not in piece.text


def _make_notes(path: str, pieces: Sequence[Piece]) -> Iterator[str]:
    """Say where ids differ from sentencepiece's."""
    exact = "tokenizer.model, which is copied beside tokenizer.json, is exact"
    symbols = [piece.text for piece in pieces if _is_symbol(piece)]
    if symbols:
        yield (
            f"{path}: {_count(symbols, 'user-defined')}, found in text as sentencepiece finds them; "
            "only a text that is one of them and nothing else gets no space piece before it"
        )
    prompts = [piece.text for piece in pieces if piece.kind == _USER_DEFINED and _is_special(piece)]
    if prompts:
        yield (
            f"{path}: {_count(prompts, 'user-defined')}; "
            "text that holds them may get other ids than sentencepiece gives"
        )
    unused = [piece.text for piece in pieces if piece.kind == _UNUSED]
    if unused:
        yield (
            f"{path}: {_count(unused, 'unused')}, through which sentencepiece merges others and "
            f"tokenizer.json cannot: some texts get other ids; {exact}"
        )
    normal = ((number, piece) for number, piece in enumerate(pieces) if piece.kind == _NORMAL)
    ties = find_ties(path, {piece.text: (-piece.score, number) for number, piece in normal})
    if ties:
        yield (
            f"{path}: {_count([piece.text for piece in pieces if piece.text in ties], 'equally scored')}, of which "
            "sentencepiece merges the leftmost first, and tokenizer.json, which cannot be exact here, that of "
            f"the lowest id: some texts get other ids; {exact}"
        )


def _count(texts: Sequence[str], kind: str) -> str:
    shown = ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")
    return f"{len(texts)} {kind} pieces ({shown})"


def _bound(path: str, pieces: Sequence[Piece]) -> None:
    """Refuse what would take for ever to convert, as soon as it is read."""
    if len(pieces) > _MOST_PIECES:
        raise InputError(f"{path}: more than {_MOST_PIECES:,} pieces; no Llama has as many")
    if len(pieces[-1].text) > LONGEST_TOKEN:
        raise InputError(
            f"{path}: a piece of {len(pieces[-1].text):,} characters, expected at most {LONGEST_TOKEN:,}"
        )


def _find_piece_faults(pieces: Sequence[Piece]) -> Iterator[str]:
    first = tuple(piece.text for piece in pieces[:3])
    kinds = tuple(piece.kind for piece in pieces[:3])
    if first != _FIRST or kinds != (_UNKNOWN, _CONTROL, _CONTROL):
        yield f"a sentencepiece model whose first pieces are {', '.join(first)}; expected {', '.join(_FIRST)}"
    if len({piece.text for piece in pieces}) != len(pieces):
        yield "a sentencepiece model with a piece twice"
    if not all(math.isfinite(piece.score) for piece in pieces):
        yield "a sentencepiece model with scores that are no numbers"


def _find_setting_faults(
    trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]
) -> Iterator[str]:
    """Compare the settings that change ids, each with its default, to those of Meta's files."""
    if trainer.get(3, 1) != _BPE:
        yield "a sentencepiece model that is not BPE; Llama's are"
    if trainer.get(24, 0):
        yield "a sentencepiece model that marks spaces at the end of words; Llama's mark their beginning"
    if normalizer.get(2, b""):
        yield "a sentencepiece model that normalizes characters; Llama's do not"
    if not normalizer.get(3, 1):
        yield "a sentencepiece model that puts no space before text; Llama's do"
    if normalizer.get(4, 1):
        yield "a sentencepiece model that removes extra spaces; Llama's do not"
    if not normalizer.get(5, 1):
        yield f"a sentencepiece model that does not write spaces as {_SPACE}; Llama's do"


def _make_piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in read_fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            (score,) = _FLOAT.unpack(value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not text:
        raise ValueError("a piece without text")
    return Piece(text, score, kind)
