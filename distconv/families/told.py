"""What contents tell of a model's family."""

from dataclasses import dataclass

from distconv.families.llama import Family


@dataclass(frozen=True, slots=True)
class Told:
    """What contents tell: a family, by what, and what had to be assumed."""

    family: Family
    evidence: tuple[str, ...]
    assumptions: tuple[str, ...] = ()
