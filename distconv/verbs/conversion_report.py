"""What a conversion did, for people and as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from distconv.humanize import format_count, format_size
from distconv.verbs.reports import Report

_WORTH_TELLING = 0.05
"""Of a second."""
_TOLD = 4
"""Of the operations, the most frequent ones."""


@dataclass(frozen=True, slots=True, repr=False)
class ConversionReport(Report):
    """What a conversion did."""

    output: str
    family: str
    dtype: str
    noun: str
    """What a file of weights is called."""
    chunks: int
    kept_chunks: int
    kept_parts: int
    """Of files of weights that an earlier run had not finished."""
    bytes_read: int
    bytes_written: int
    became_infinite: int
    summary: Mapping[str, object]
    """Seconds and GB/s a stage, what each worker did, retries."""
    seconds_planning: float
    seconds_starting: float
    seconds_to_first_byte: float | None
    """From the call to the first byte written, Ray's start included; None where nothing moved."""
    seconds_moving: float
    seconds_checksums: float
    """For digests of whole files, after the last tensor was moved."""
    seconds_finishing: float
    already_done: bool
    examined: str | None
    """What was looked at of an OUTPUT that was there already, for people."""
    verified: bool
    notes: tuple[str, ...]
    requests: Mapping[str, int] = field(default_factory=dict)
    """To other hosts, by operation."""
    unchecked: bool = False
    """Whether INPUT has checksums of its own, with which it was not compared."""

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "output": self.output,
            "family": self.family,
            "dtype": self.dtype,
            "chunks": self.chunks,
            "kept_chunks": self.kept_chunks,
            "kept_parts": self.kept_parts,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "became_infinite": self.became_infinite,
            "seconds": {
                "planning": round(self.seconds_planning, 3),
                "starting": round(self.seconds_starting, 3),
                "to_first_byte": None
                if self.seconds_to_first_byte is None
                else round(self.seconds_to_first_byte, 3),
                "moving": round(self.seconds_moving, 3),
                "checksums": round(self.seconds_checksums, 3),
                "finishing": round(self.seconds_finishing, 3),
            },
            **self.summary,
            "already_done": self.already_done,
            "examined": self.examined,
            "verified": self.verified,
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        if self.already_done:
            hint = "" if self.verified else ", `verify=True` reads it"
            chunks = format_count(self.chunks, self.noun)
            return (f"{self.output}: already done, {chunks} as planned; looked at: {self.examined}{hint}",)
        is_long = self.seconds_checksums >= _WORTH_TELLING
        digests = f"digests {self.seconds_checksums:.1f} s, " if is_long else ""
        found = [
            f"{self.output}: {self.family}, {self.dtype}, {format_count(self.chunks, self.noun)}",
            *self._tell_written(),
            (
                f"planning {self.seconds_planning:.1f} s, starting {self.seconds_starting:.1f} s, {digests}finishing {self.seconds_finishing:.1f} s"
            ),
        ]
        counts = ((self.kept_chunks, self.noun), (self.kept_parts, "part"))
        kept = " and ".join(format_count(count, noun) for count, noun in counts if count)
        if kept:
            found.append(f"{kept} of an earlier run kept")
        if self.became_infinite:
            found.append(f"{format_count(self.became_infinite, 'value')} became infinite in {self.dtype}")
        if self.requests:
            most = sorted(self.requests.items(), key=lambda item: -item[1])
            told = ", ".join(f"{count:,} {operation}" for operation, count in most[:_TOLD])
            found.append(f"{format_count(sum(self.requests.values()), 'request')} to other hosts: {told}")
        if self.verified:
            found.append("every tensor verified against the source")
        return tuple(found)

    def _tell_written(self) -> tuple[str, ...]:
        """Tell how much was written, and how fast; what an earlier run had written is told as kept."""
        if not self.bytes_written:
            return ()
        rate = self.bytes_written / max(self.seconds_moving, 1e-9)
        return (
            f"wrote {format_size(self.bytes_written)} in {self.seconds_moving:.1f} s ({format_size(rate)}/s)",
        )
