"""What sentencepiece and tiktoken have in common: they know tokens only, and merge two where that gives one."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, AnyStr

from distconv.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST_TOKEN = 1024
"""In bytes or characters: every token is cut in two in every way. Llama 3's longest has 128."""
_MOST_MERGES = 1_000_000
"""Llama 3 has 280,147."""


def find_merges(path: str, numbers: Mapping[AnyStr, int]) -> list[tuple[int, int, int]]:
    """Give every way to cut a token in two tokens: the numbers of the whole, the left and the right.

    They come in the order of the wholes; those of one whole by left, then right. InputError, which
    names the file at ``path``, where they are more than any tokenizer has.
    """
    find = numbers.get
    merges = []
    for token, number in numbers.items():
        found = []
        for cut in range(1, len(token)):
            left = find(token[:cut])
            if left is not None and (right := find(token[cut:])) is not None:
                found.append((number, left, right))
        found.sort()
        merges += found
        bound_merges(path, len(merges))
    return merges


def bound_merges(path: str, count: int) -> None:
    """Refuse so many merges where no tokenizer has as many, before more are looked for."""
    if count > _MOST_MERGES:
        raise InputError(f"{path}: more than {_MOST_MERGES:,} merges; no Llama has as many")


def write_tokenizer(tokenizer: "Tokenizer", merges: Sequence[tuple[str, str]]) -> bytes:
    """Write tokenizer.json for a BPE that was made without its merges, best first.

    As texts ``left right`` every version of ``tokenizers`` reads them, as pairs 0.20 and later.
    """
    lines = list(map(" ".join, merges))
    whole = "\n".join(["", *lines])
    # What begins as a file of merges does would be skipped without a word.
    is_plain = whole.count(" ") == len(lines) and "\n#version" not in whole
    written = json.dumps(lines if is_plain else merges, ensure_ascii=False, separators=(",\n      ", ": "))
    # Quotes within a token are escaped: this text cannot stand in one.
    return tokenizer.to_str(pretty=True).replace('"merges": []', f'"merges": {written}').encode()
