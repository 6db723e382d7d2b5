"""A conversion that is decided to the byte: what either way to convert hands to what both do the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distconv.formats.written import Headers
from distconv.moving.progress import Progress
from distconv.output.findings import Finding
from distconv.output.identity import Subject
from distconv.output.targets import Target
from distconv.planning.plan import Plan
from distconv.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Prepared:
    """The plan, the files beside the weights, and how both are compared with INPUT afterwards."""

    subject: Subject
    plan: Plan
    files: Mapping[str, bytes]
    """What stands beside the weights, in the order of writing: the mark is the last one."""
    source: Mapping[str, object]
    """What describes INPUT's files."""
    sources: str
    """What is read, counted, for people."""
    target: Target
    """The format of OUTPUT."""
    shards: int | None
    """How many of Meta's there will be; None for another format."""
    notes: tuple[str, ...]
    compare: Callable[[Storage, Headers, Progress], list[Finding]]
    """List every tensor of OUTPUT that is missing, foreign, or differs from INPUT's."""
    lacks_tokenizer: bool = False
    """Whether only the plan can be made: convert refuses it."""
