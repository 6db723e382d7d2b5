"""Which of a file's names are a model's, where the model's are known: whatever a trainer has put around them.

The same part is before all of a model's names, be it a key of the trainer's or a wrapper's attribute; or the first
part of the model's own is missing in all of them, where its body was saved alone.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.meta.names import Names, is_beside, split_name


@dataclass(frozen=True, slots=True)
class ExpectedNames:
    """A model's names by a file's, as ``Names``, and those that are neither the model's nor known to lie beside one."""

    names: Names
    foreign: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Change:
    """What is before a model's names in a file, and what of the model's own is not."""

    before: str
    missing: str


def find_expected_names(names: Iterable[str], expected: Collection[str]) -> ExpectedNames:
    """Find the model's names among a file's; InputError where they are there twice, below different keys."""
    aside, held = Counter[str](), dict[str, str]()
    for name in names:
        own = ".".join(split_name(name))
        if (first := is_beside(own, expected)) is None:
            held[name] = own
        else:
            aside[first] += 1
    change = _choose(held, expected)
    kept: dict[str, str] = {}
    twins: dict[str, str] = {}
    for name, own in held.items():
        found = _apply(change, own)
        if found is None or found not in expected:
            continue
        if twins.setdefault(found, name) != name:
            raise InputError(f"{twins[found]} and {name} are both {found} of the model")
        kept[name] = found
    stripped = Counter(part for name, found in kept.items() for part in _list_gone(name, found))
    foreign = tuple(name for name in held if name not in kept)
    return ExpectedNames(Names(kept, stripped, aside), foreign)


def _list_gone(name: str, found: str) -> Iterator[str]:
    return iter((Counter(name.split(".")) - Counter(found.split("."))).keys())


def _apply(change: _Change, name: str) -> str | None:
    if not name.startswith(change.before):
        return None
    return change.missing + name.removeprefix(change.before)


def _choose(held: Mapping[str, str], expected: Collection[str]) -> _Change:
    """Find the change that makes most of the names the model's, and of those that do the smallest."""
    bare = {name.partition(".")[2]: f"{name.partition('.')[0]}." for name in expected}
    votes: dict[_Change, list[str]] = {}
    for name, own in held.items():
        for before, rest in _list_ends(own):
            if rest in expected:
                votes.setdefault(_Change(before, ""), []).append(name)
            if rest in bare:
                votes.setdefault(_Change(before, bare[rest]), []).append(name)
    if not votes:
        return _Change("", "")
    best = min(votes, key=lambda change: (-len(votes[change]), len(change.missing), len(change.before)))
    for rival, found in votes.items():
        if len(found) == len(votes[best]) > 1 and not set(found) & set(votes[best]):
            raise InputError(
                f"two models are in it, below {best.before or 'no key'!r} and {rival.before or 'no key'!r}; "
                "save the one to convert alone"
            )
    return best


def _list_ends(name: str) -> Iterator[tuple[str, str]]:
    """Split a name before each of its parts."""
    start = 0
    while True:
        yield name[:start], name[start:]
        start = name.find(".", start) + 1
        if not start:
            return


def list_ends(names: Iterable[str]) -> frozenset[str]:
    """Give all that names end with, beginning at any of their parts; those that wrappers add left out."""
    return frozenset(end for name in names for _before, end in _list_ends(".".join(split_name(name))))
