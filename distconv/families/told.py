"""What contents tell of a model's family."""

import posixpath
from dataclasses import dataclass

from distconv.families.llama import Family


@dataclass(frozen=True, slots=True)
class Told:
    """What contents tell: a family, by what, and what had to be assumed."""

    family: Family
    evidence: tuple[str, ...]
    assumptions: tuple[str, ...] = ()


def assume_base(folder: str) -> str:
    """Say that a model is taken as a base model where nobody said which it is, and what the folder's name suggests."""
    name = posixpath.basename(folder.rstrip("/"))
    named = any(word in name.lower() for word in ("instruct", "chat"))
    also = f", as the folder's name {name!r} suggests" if named else ""
    return f"taken as a base model; if it is an instruct (chat) model{also}, add `instruct=True`"
