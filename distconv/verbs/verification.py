"""What was found of a model folder."""

from dataclasses import dataclass

from distconv.humanize import shorten
from distconv.output.findings import MOST_SHOWN
from distconv.output.manifest import Manifest
from distconv.output.receipt import Conversion
from distconv.output.targets import RECEIPT_NAME
from distconv.verbs.reports import Report


@dataclass(frozen=True, slots=True, repr=False)
class Verification(Report):
    """What was found; ``source`` is None where OUTPUT was looked at alone."""

    output: str
    source: str | None
    cast_to: tuple[str, ...]
    """The types of OUTPUT's to which tensors of the source were cast before they were compared."""
    tensors: int
    """In all files: a tensor that shards of Meta's share is counted in each."""
    shards: int | None
    """How many there are of Meta's; None in Transformers' format."""
    data_proved: bool
    """Whether all data was read and compared, with the receipt's digests or with the source."""
    examined: str
    """What was looked at, for people."""
    manifest: Manifest | None
    """Digests of the tensors of a Transformers folder, as they were read; None where not all could be."""
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    damaged: Conversion | None = None
    """The conversion of which OUTPUT is, which makes again what is damaged; None where nothing is, or where it was none."""
    card: str | None = None
    """The file to which the card of this was written."""

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def __bool__(self) -> bool:
        """Whether nothing differs."""
        return self.ok

    @property
    def _tensors(self) -> str:
        return f"{self.tensors} tensors{f' of {self.shards} shards' if (self.shards or 1) > 1 else ''}"

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "output": self.output,
            "source": self.source,
            "cast_to": list(self.cast_to),
            "ok": self.ok,
            "tensors": self.tensors,
            "data_proved": self.data_proved,
            "examined": self.examined,
            "sha256": None if self.manifest is None else self.manifest.digest,
            "differences": list(self.differences),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        return (*self._tell(), *(() if self.card is None else (f"{self.card}: a card of what was found",)))

    def _tell(self) -> tuple[str, ...]:
        if self.ok and not self.data_proved:
            proved = f"the data was not proved, there is no good {RECEIPT_NAME}; `against=INPUT` compares it"
            return (f"{self.output}: all {self._tensors} are whole in {self.examined}; {proved}",)
        if self.ok:
            cast = f" cast to {' and '.join(self.cast_to)}" if self.cast_to else ""
            equal = "whole" if self.source is None else f"whole and equal to {self.source}{cast}"
            return (f"{self.output}: all {self._tensors} are {equal} ({self.examined})",)
        count = len(self.differences)
        shown = shorten(self.differences, MOST_SHOWN)
        return (f"{self.output}: {count:,} finding{'s' if count > 1 else ''}", *shown)
