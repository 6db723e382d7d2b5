"""Read Meta's tokenizer.model: sentencepiece (Llama 1, 2, Code) or tiktoken ranks (Llama 3)."""

import base64
import binascii
from dataclasses import dataclass
from typing import Literal

from distconv.errors import InputError
from distconv.source.content import describe_content
from distconv.storage import Storage, read_small

_LIMIT_BYTES = 64 << 20
_SPECIAL_TOKENS = 256
_LLAMA_4_RANKS = 200_000
_USER_DEFINED = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """One sentencepiece token; ``kind`` as in sentencepiece_model.proto."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's tokens in the order of their ids: ``pieces`` or byte strings, as its kind says."""

    path: str
    kind: Literal["sentencepiece", "tiktoken"]
    pieces: tuple[Piece, ...] = ()
    ranks: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of ids; tiktoken's special tokens come on top of its ranks."""
        return len(self.pieces) if self.kind == "sentencepiece" else len(self.ranks) + _SPECIAL_TOKENS


def read_vocabulary(storage: Storage, path: str) -> Vocabulary:
    """Read a tokenizer and tell its kind from its content; InputError where it is damaged."""
    content = read_small(storage, path, _LIMIT_BYTES)
    head = content[:512]
    first = head.split(b"\n", 1)[0].split()
    if len(first) == 2 and first[1].isdigit():
        return _read_tiktoken(path, content)
    if head[:1] == b"\n" and not head.lstrip().startswith((b"<", b"{")):
        return _read_sentencepiece(path, content)
    raise InputError(
        f"{path}: it is {describe_content(head)}, expected a sentencepiece or tiktoken tokenizer"
    )


def _read_tiktoken(path: str, content: bytes) -> Vocabulary:
    ranks: list[bytes] = []
    for number, line in enumerate(content.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
        except (binascii.Error, ValueError, IndexError):
            raise InputError(f"{path}: line {number} is {line[:40]!r}, expected `base64 rank`") from None
        if rank != len(ranks) or not token:
            raise InputError(
                f"{path}: line {number} has rank {rank}, expected {len(ranks)}; the file is damaged"
            )
        ranks.append(token)
    if len(ranks) >= _LLAMA_4_RANKS:
        raise InputError(
            f"{path}: {len(ranks):,} ranks, a Llama 4 tokenizer; distconv converts Llama 1 to 3.3"
        )
    if len(set(ranks)) != len(ranks):
        raise InputError(f"{path}: a token is there twice; the file is damaged")
    missing = [byte for byte in range(256) if bytes([byte]) not in set(ranks[:256])]
    if missing:
        raise InputError(f"{path}: no token for byte {missing[0]}; the file is truncated or damaged")
    return Vocabulary(path, "tiktoken", ranks=tuple(ranks))


def _read_sentencepiece(path: str, content: bytes) -> Vocabulary:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        size = processor.GetPieceSize()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: not a readable sentencepiece model ({reason}); download it again"
        ) from None
    pieces = tuple(
        Piece(processor.IdToPiece(i), processor.GetScore(i), _kind_of(processor, i)) for i in range(size)
    )
    if [piece.text for piece in pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise InputError(f"{path}: begins with {[p.text for p in pieces[:3]]}, expected <unk>, <s>, </s>")
    return Vocabulary(path, "sentencepiece", pieces=pieces, notes=_describe_oddities(path, pieces))


def _kind_of(processor: object, number: int) -> int:
    tests = (("IsUnknown", 2), ("IsControl", 3), ("IsUnused", 5), ("IsByte", 6))
    for test, kind in tests:
        if getattr(processor, test)(number):
            return kind
    return 1


def _describe_oddities(path: str, pieces: tuple[Piece, ...]) -> tuple[str, ...]:
    # Real scores fall with the id; a zero among normal pieces marks a user-defined one.
    odd = [
        piece.text
        for number, piece in enumerate(pieces)
        if piece.kind == 1 and piece.score == 0.0 and number > 300
    ]
    if not odd:
        return ()
    return (
        f"{path}: {len(odd)} user-defined pieces ({', '.join(odd[:4])}); text that holds them may give other ids",
    )
