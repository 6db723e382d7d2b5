"""Whether a model folder has what it should have and nothing else, as far as names, headers and sizes tell.

Headers and index are made again from what they say, so that whatever is not as distconv writes it is found.
"""

import re
from collections.abc import Iterator, Sequence

from distconv.errors import InputError, OutputError
from distconv.formats.headers import group_twins
from distconv.formats.written import Headers
from distconv.humanize import format_count, list_some
from distconv.output.findings import Finding
from distconv.output.loading import digest_file, holds_weights, is_copy, is_loaded
from distconv.output.receipt import ModelReceipt
from distconv.output.targets import RECEIPT_NAME, TRANSFORMERS, Target
from distconv.output.tokenizers import is_tokenizer
from distconv.storage.base import Entry, Storage, join


def list_names(
    storage: Storage, output: str, target: Target, receipt: ModelReceipt | None
) -> tuple[Sequence[str], tuple[str, ...]]:
    """Give the names of the files of weights, and tell of an index that names others.

    They are the receipt's if there is one; OutputError where neither it nor the folder tells them.
    """
    if receipt is None:
        return target.list_files(storage, output), ()
    names = [chunk.name for chunk in receipt.chunks]
    try:
        listed = target.list_files(storage, output)
    except OutputError as error:
        return names, (str(error),)
    if not target.has_index or set(listed) == set(names):
        return names, ()
    return names, (f"{join(output, target.marks[0])}: names other {target.noun}s",)


def read_headers(
    storage: Storage, output: str, target: Target, names: Sequence[str]
) -> tuple[Headers, list[Finding]]:
    """Read all headers that can be read, and tell of the others."""
    headers, findings = {}, []
    for name in names:
        try:
            headers[name] = target.read_header(storage, join(output, name))
        except OutputError as error:
            findings.append(Finding(str(error), name))
    return headers, findings


def check_forms(
    storage: Storage,
    output: str,
    target: Target,
    names: Sequence[str],
    headers: Headers,
    *,
    recorded: bool,
) -> Iterator[Finding]:
    """Compare names, headers and index with what distconv makes of the same tensors, or with each other.

    What others write may be in other forms than ours, where no receipt says that it is ours.
    """
    if not recorded and target.find_index_differences is not None:
        yield from map(Finding, _find_gaps(output, names))
        yield from map(Finding, _find_twins(output, headers))
        yield from map(Finding, target.find_index_differences(storage, output, headers))
        return
    expected = set(target.name_files(len(names)))
    if expected != set(names):
        odd = ", ".join(sorted(set(names) ^ expected))
        yield Finding(f"{output}: {target.noun}s {odd} are missing or odd")
    for name, tensors in headers.items() if recorded else ():
        words = target.find_odd_form(storage, join(output, name), tensors)
        if words is not None:
            yield Finding(words, name)
    if headers.keys() == set(names):
        yield from map(Finding, target.find_wrong_index(storage, output, headers))


_NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")
_MOST_SHOWN = 4


def _find_gaps(output: str, names: Sequence[str]) -> Iterator[str]:
    """Tell which files are missing by what the names of the others say of their number."""
    there: dict[tuple[str, int, str], set[int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is not None and len(match[3]) <= _DIGITS:
            there.setdefault((match[1], int(match[3]), match[4]), set()).add(int(match[2]))
    if len(there) > 1:
        totals = " and ".join(f"{head}…-of-{total}{tail}" for head, total, tail in sorted(there))
        yield f"{output}: the index names files of {len(there)} sets: {totals}; expected those of one"
    for (head, total, tail), numbers in there.items():
        gone = total - len(numbers & set(range(1, total + 1)))
        if gone and 0 not in numbers:
            first = next(number for number in range(1, total + 1) if number not in numbers)
            yield (
                f"{output}: {format_count(len(numbers), 'file')} {head}…{tail} of {total:,}; {gone:,} are missing, "
                f"number {first} first"
            )


_DIGITS = 6


def _find_twins(output: str, headers: Headers) -> Iterator[str]:
    """Tell of tensors that are in two files: a loader takes one of them."""
    for (first, second), names in group_twins(headers.items()).items():
        shown = list_some([name[:_SHOWN_CHARACTERS] for name in names], _MOST_SHOWN)
        yield f"{output}: {shown}: both in {first} and in {second}"


_SHOWN_CHARACTERS = 80


def find_foreign(
    storage: Storage, output: str, target: Target, names: Sequence[str], receipt: ModelReceipt | None
) -> tuple[list[str], list[str]]:
    """Find what would be loaded with the model or in its place; without a receipt some of it may be the model's."""
    findings, notes = [], []
    ours = {*names, *(target.marks if receipt is None else receipt.files)}
    copied = () if receipt is None else [source.sha256 for source in receipt.conversion.sources]
    for entry in storage.list_folder(output):
        if entry.name in ours or not is_loaded(entry, target):
            continue
        words = f"{join(output, entry.name)}: not of this model, and may be loaded in its place"
        if receipt is None and not (holds_weights(entry) and re.fullmatch(target.rivals, entry.name)):
            known = target.is_recorded(entry.name) or (target is TRANSFORMERS and is_tokenizer(entry.name))
            if holds_weights(entry) or not known:
                notes.append(f"{join(output, entry.name)}: {_describe_unknown(entry)}")
        elif holds_weights(entry) or not is_copy(storage, output, entry, target, copied):
            findings.append(words)
    return findings, notes


def _describe_unknown(entry: Entry) -> str:
    if holds_weights(entry):
        return "weights that were not looked at, as Transformers prefers the model's"
    return "not looked at, and may be loaded"


def check_recorded(
    storage: Storage, output: str, receipt: ModelReceipt, headers: Headers
) -> Iterator[Finding]:
    """Compare sizes, names of tensors and small files with the receipt."""
    for chunk in receipt.chunks:
        path, tensors = join(output, chunk.name), headers.get(chunk.name)
        entry = storage.find(path)
        if tensors is None or entry is None:
            continue
        if entry.size_bytes != chunk.size_bytes:
            words = f"{path}: {entry.size_bytes:,} bytes, {RECEIPT_NAME} records {chunk.size_bytes:,}"
            yield Finding(words, chunk.name)
        if chunk.tensors.keys() != {name for name, written in tensors.items() if written.shares is None}:
            yield Finding(f"{path}: does not hold the tensors that {RECEIPT_NAME} records", chunk.name)
    for name, digest in receipt.files.items():
        path = join(output, name)
        if storage.find(path) is None:
            yield Finding(f"{path}: missing")
            continue
        try:
            if digest_file(storage, path) != digest:
                yield Finding(f"{path}: differs from its SHA-256 in {RECEIPT_NAME}")
        except InputError as error:
            yield Finding(str(error))
