"""Prove that OUTPUT is whole, and that it holds INPUT's tensors, on another path than the worker's."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from distconv.errors import InputError, OutputError
from distconv.families.llama import FAMILIES
from distconv.formats.written import Headers
from distconv.moving.progress import Progress, SilentProgress
from distconv.output.findings import Depth, Finding
from distconv.output.proof import prove
from distconv.output.receipt import Conversion, read_receipt
from distconv.output.targets import RECEIPT_NAME, TRANSFORMERS, Target, tell_target
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.places import open_places, read_place
from distconv.verbs.compare_chunks import compare_chunks
from distconv.verbs.compare_shards import compare_shards
from distconv.verbs.compare_trained import compare_trained
from distconv.verbs.expected import Expected, expect_checkpoint, expect_model
from distconv.verbs.options import Options, read_place_or_none
from distconv.verbs.sources import is_transformers_model, open_meta, open_transformers
from distconv.verbs.trained_input import find_trained, is_trained

Compare = Callable[[Headers, Progress], list[Finding]]
"""Lists what of OUTPUT's tensors, by its headers, is missing, foreign, or differs from INPUT's."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; ``source`` is None where OUTPUT was looked at alone."""

    output: str
    source: str | None
    tensors: int
    data_proved: bool
    """Whether all data was compared, with the receipt's digests or with the source."""
    examined: str
    """What was looked at, for people."""
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "output": self.output,
            "source": self.source,
            "ok": self.ok,
            "tensors": self.tensors,
            "data_proved": self.data_proved,
            "examined": self.examined,
            "differences": list(self.differences),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        if self.ok and not self.data_proved:
            proved = f"the data was not proved, there is no good {RECEIPT_NAME}; --against INPUT compares it"
            return (f"{self.output}: all {self.tensors} tensors are whole in structure; {proved}",)
        if self.ok:
            equal = "whole" if self.source is None else f"whole and equal to {self.source}"
            return (f"{self.output}: all {self.tensors} tensors are {equal} ({self.examined})",)
        count = len(self.differences)
        return (f"{self.output}: {count} finding{'s' if count > 1 else ''}", *self.differences)


def verify(
    output: PathLike, *, against: PathLike | None = None, family: str | None = None, instruct: bool = False,
    tokenizer: PathLike | None = None, params: PathLike | None = None, like: PathLike | None = None,
    dialect: str | None = None, fill_from_like: bool = False, endpoint_url: str | None = None,
    progress: Progress | None = None,
) -> Verification:  # fmt: skip
    """Check OUTPUT's structure and digests; with ``against``, compare every tensor with INPUT's too.

    OUTPUT is a folder for Transformers or for Meta's code, INPUT whatever ``convert`` makes it of.
    Raises OutputError where OUTPUT is no model folder, InputError where INPUT cannot be read.
    """
    output_path, progress = read_place(output), progress or SilentProgress()
    input_path = read_place_or_none(against)
    storage = open_places(output_path, input_path, read_place_or_none(like), endpoint_url=endpoint_url)
    compare = None
    if input_path is not None:
        asked = Options(
            source=input_path, output=output_path, family=family, instruct=instruct,
            tokenizer=read_place_or_none(tokenizer),
            params=read_place_or_none(params),
            like=read_place_or_none(like), dialect=dialect, fill_from_like=fill_from_like,
        )  # fmt: skip
        compare = _read_source(storage, asked)
    proof = prove(storage, output_path, Depth.MODEL, progress)
    findings = list(proof.findings)
    if compare is not None:
        findings += compare(proof.headers, progress)
    return Verification(
        output=output_path,
        source=input_path,
        tensors=sum(len(written) for written in proof.headers.values()),
        data_proved=proof.data_proved or compare is not None,
        examined=proof.examined if compare is None else f"{proof.examined}, and every tensor compared",
        differences=tuple(finding.words for finding in findings),
        notes=proof.notes,
    )


def _read_source(storage: Storage, options: Options) -> Compare | None:
    """Read INPUT's headers before OUTPUT's data; None where there is no OUTPUT, which is told later."""
    entry = storage.find(options.output)
    if entry is None or not entry.is_folder:
        return None
    if is_trained(storage, options):
        # What OUTPUT's config says of heads was that of the model that INPUT is like.
        asked = replace(options, like=options.like or options.output)
        model = find_trained(storage, asked).read(storage)
        return lambda headers, progress: compare_trained(storage, model, headers, progress)
    recorded = _find_conversion(storage, options.output)
    if options.family is None and recorded is not None and recorded.family in FAMILIES:
        options = replace(options, family=recorded.family)
    target = find_target(storage, options.output)
    if target is TRANSFORMERS:
        if is_transformers_model(storage, options):
            raise InputError(
                f"{options.source}: in Transformers' format, as {options.output} is; "
                "give the checkpoint of Meta's that it was made from"
            )
        checkpoint = open_meta(storage, options)
        return lambda headers, progress: compare_chunks(storage, checkpoint, headers, progress)
    expected = _expect(storage, options)
    ranks = len(target.list_files(storage, options.output)) if recorded is None else recorded.shards or 1
    return lambda headers, progress: compare_shards(storage, expected, ranks, headers, progress)


def _expect(storage: Storage, options: Options) -> list[Expected]:
    if is_transformers_model(storage, options):
        return expect_model(open_transformers(storage, options))
    return expect_checkpoint(open_meta(storage, options))


def find_target(storage: Storage, output: str) -> Target:
    """Tell the format of OUTPUT by its receipt, and without a good one by names."""
    recorded = _find_conversion(storage, output)
    return tell_target(storage, output) if recorded is None else recorded.target


def _find_conversion(storage: Storage, output: str) -> Conversion | None:
    """Give what the receipt says of the conversion, if there is a good one."""
    if storage.find(join(output, RECEIPT_NAME)) is None:
        return None
    try:
        return read_receipt(storage, join(output, RECEIPT_NAME)).conversion
    except OutputError:  # a damaged receipt is a finding, and no reason not to look further
        return None
