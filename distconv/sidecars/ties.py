"""Pieces of equal score, and whether ranked merges give what sentencepiece makes of them.

Of all pairs that merge to the best score sentencepiece takes the leftmost; ranked merges are taken
by rank, wherever they stand. Trained pieces have scores of their own, but for the runs of spaces
in Meta's files; pieces that were merged in from another vocabulary have one score, usually 0.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise

from distconv.sidecars.merges import bound_merges

Pair = tuple[str, str]
Ranks = Mapping[str, tuple[float, int]]
"""Pieces that may be merged, each with its score, negated so that less is better, and its id."""

_SPACE = "▁"
_LONGEST_RUN = 24


def find_ties(path: str, ranks: Ranks) -> frozenset[str]:
    """Give the pieces that sentencepiece merges in an order which ranks cannot express.

    Empty means that merges ranked by score, id, left id and right id give the same pieces for
    every text. InputError, which names the file at ``path``, where there are more merges than any tokenizer has.
    """
    merges_found = 0
    count = Counter(score for score, _ in ranks.values())
    groups: defaultdict[float, dict[str, Sequence[Pair]]] = defaultdict(dict)
    for text, (score, _) in ranks.items():
        if count[score] > 1 and (pairs := _find_cuts(ranks, text)):
            groups[score][text] = pairs
            merges_found += len(pairs)
            bound_merges(path, merges_found)
    tied = [merges for merges in groups.values() if len(merges) > 1]
    builders = _find_builders(ranks, frozenset().union(*tied))
    found: set[str] = set()
    for merges in tied:
        built, rivals = builders & merges.keys(), _find_rivals(merges)
        if built or (rivals and not _runs_agree(ranks, rivals)):
            found |= built | rivals
    return frozenset(found)


def _find_cuts(ranks: Ranks, text: str) -> list[Pair]:
    return [
        (text[:place], text[place:])
        for place in range(1, len(text))
        if text[:place] in ranks and text[place:] in ranks
    ]


def _find_rivals(merges: Mapping[str, Sequence[Pair]]) -> set[str]:
    """Find pieces that may want one symbol at the same time: the one at its right, the other at its left."""
    lefts = {left for pairs in merges.values() for left, _ in pairs}
    shared = lefts & {right for pairs in merges.values() for _, right in pairs}
    return {text for text, pairs in merges.items() if any(not shared.isdisjoint(pair) for pair in pairs)}


def _find_builders(ranks: Ranks, tied: AbstractSet[str]) -> set[str]:
    """Find those that are part of a piece of a better score: once there, they take a neighbour at once."""
    shortest = min(map(len, tied), default=1)
    heads, tails = {text[:shortest] for text in tied}, {text[-shortest:] for text in tied}
    return {
        part
        for whole, (score, _) in ranks.items()
        if whole[:shortest] in heads or whole[-shortest:] in tails
        for pair in _find_cuts(ranks, whole)
        for part in pair
        if part in tied and score < ranks[part][0]
    }


def _runs_agree(ranks: Ranks, tied: AbstractSet[str]) -> bool:
    """Whether the pieces are runs of spaces, and both orders merge these alike.

    Tried for all lengths up to twice the longest; a longer run repeats what these do.
    """
    # A run that is longer than these is made of one of them that is longer than the longest.
    lengths = range(1, 2 * _LONGEST_RUN + 1)
    runs = {length: ranks[_SPACE * length] for length in lengths if _SPACE * length in ranks}
    if any(text.strip(_SPACE) for text in tied) or max(runs) > _LONGEST_RUN:
        return False

    def leftmost(left: int, right: int) -> tuple[float, ...]:
        return (runs[left + right][0],)

    def ranked(left: int, right: int) -> tuple[float, ...]:
        return (*runs[left + right], runs[left][1], runs[right][1])

    return all(
        _merge_run(length, runs.keys(), leftmost) == _merge_run(length, runs.keys(), ranked)
        for length in range(1, 2 * max(runs) + 1)
    )


def _merge_run(
    length: int, known: AbstractSet[int], key: Callable[[int, int], tuple[float, ...]]
) -> list[int]:
    """Merge a run of single spaces, the pair with the least key first, of equals the leftmost."""
    symbols = [1] * length
    while True:
        found = [(key(*pair), place) for place, pair in enumerate(pairwise(symbols)) if sum(pair) in known]
        if not found:
            return symbols
        place = min(found)[1]
        symbols[place : place + 2] = [sum(symbols[place : place + 2])]
