"""Whether a model folder has what it should have and nothing else, as far as names, headers and sizes tell.

Headers and index are made again from what they say, so that whatever is not as distconv writes it is found.
"""

from collections.abc import Iterator, Sequence

from distconv.errors import InputError, OutputError
from distconv.formats.written import Headers
from distconv.output.findings import Finding
from distconv.output.loading import digest_file, holds_weights, is_copy, is_loaded
from distconv.output.receipt import ModelReceipt
from distconv.output.targets import RECEIPT_NAME, Target
from distconv.storage.base import Storage, join


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
    storage: Storage, output: str, target: Target, names: Sequence[str], headers: Headers
) -> Iterator[Finding]:
    """Compare names, headers and index with what distconv makes of the same tensors."""
    expected = set(target.name_files(len(names)))
    if expected != set(names):
        odd = ", ".join(sorted(set(names) ^ expected))
        yield Finding(f"{output}: {target.noun}s {odd} are missing or odd")
    for name, tensors in headers.items():
        words = target.find_odd_form(storage, join(output, name), tensors)
        if words is not None:
            yield Finding(words, name)
    if headers.keys() == set(names):
        yield from map(Finding, target.find_wrong_index(storage, output, headers))


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
        if holds_weights(entry):
            findings.append(words)
        elif receipt is None:
            if not target.is_sidecar(entry.name):
                notes.append(f"{join(output, entry.name)}: not what distconv writes, and may be loaded")
        elif not is_copy(storage, output, entry, target, copied):
            findings.append(words)
    return findings, notes


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
