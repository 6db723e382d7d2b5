"""What sentencepiece and tiktoken have in common: they know tokens only, and merge two where that gives one."""

from collections.abc import Mapping
from typing import AnyStr


def find_merges(numbers: Mapping[AnyStr, int]) -> list[tuple[int, int, int]]:
    """Give every way to cut a token in two tokens: the numbers of the whole, the left and the right.

    They come in the order of the wholes; those of one whole by left, then right.
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
    return merges
