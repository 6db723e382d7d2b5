"""What is said of a model folder that was looked at."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum

MOST_SHOWN = 20
"""Findings that people are shown of one model; programs are given all."""


class Depth(IntEnum):
    """How much is looked at; each includes the ones before."""

    STRUCTURE = 1
    """Names, headers, sizes, the receipt, the small files' SHA-256, and that nothing else would be loaded."""
    DATA = 2
    """The digests of every file of weights and every tensor, and all checksums that the folder has besides."""
    MODEL = 3
    """Whether a model made of the small files takes every tensor."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong; ``chunk`` names the one that has to be made again, if that is what it takes."""

    words: str
    chunk: str | None = None
    absent: bool = False
    """Whether it says of a tensor that no file holds it."""


def leave_unknown(findings: Iterable[Finding], unread: Collection[str]) -> list[Finding]:
    """Leave out which tensors no file holds where some are ``unread``, which is told of these: they may hold them."""
    return [finding for finding in findings if not (finding.absent and unread)]
