"""Prove a model folder by itself: whether it is whole, looked at as closely as is asked.

Nothing of INPUT is needed. Headers and index are made again from what config and index say,
so that whatever is not as distconv writes it is found.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum

from xxhash import xxh3_128

from distconv.errors import InputError, Interrupted, OutputError, Stopped
from distconv.formats.safetensors.chunks import INDEX_NAME, chunk_name, file_order, make_header, make_index
from distconv.formats.safetensors.written import Written, list_chunks, read_header
from distconv.moving.memory import make_buffer
from distconv.moving.progress import Progress
from distconv.output.finalise import CONFIG_NAME, JOURNAL_NAME, RECEIPT_NAME, is_sidecar
from distconv.output.loading import (
    digest_file,
    find_detours,
    holds_weights,
    is_copy,
    is_loaded,
)
from distconv.output.receipt import ModelReceipt, RecordedChunk, read_receipt
from distconv.sidecars.empty import read_expected_shapes
from distconv.storage.base import Storage, join, opened, read_range, read_small

_LIMIT_BYTES = 100 << 20
_READ_BYTES = 4 << 20
_LANES = 4

Headers = Mapping[str, Mapping[str, Written]]
"""By chunk and tensor."""


class Depth(IntEnum):
    """How much is looked at; each includes the ones before."""

    STRUCTURE = 1
    """Names, headers, sizes, the receipt, the small files' SHA-256, and that nothing else would be loaded."""
    DATA = 2
    """The digests of every chunk and tensor."""
    MODEL = 3
    """Whether a model made of config.json takes every tensor."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong; ``chunk`` names the one that has to be made again, if that is what it takes."""

    words: str
    chunk: str | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found, and how much was looked at."""

    depth: Depth
    headers: Headers
    receipt: ModelReceipt | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def data_proved(self) -> bool:
        """Whether all data was read and compared with its digests."""
        return self.depth >= Depth.DATA and self.receipt is not None

    @property
    def examined(self) -> str:
        """Say for people what was looked at."""
        if self.receipt is None:
            return "structure"
        if self.depth < Depth.DATA:
            return "structure and small files; the chunks' data was not read"
        return "structure, small files, the digests of all data"


def prove(storage: Storage, output: str, depth: Depth, progress: Progress) -> Proof:
    """Look at a model folder, and list what is wrong in it.

    ``progress`` is told of the chunks' bytes as they are read. OutputError where it is no model folder.
    """
    entry = storage.find(output)
    if entry is None or not entry.is_folder:
        raise OutputError(f"{output}: {'no such folder' if entry is None else 'a file, expected a folder'}")
    receipt, damage = _find_receipt(storage, output)
    names, misled = _list_names(storage, output, receipt)
    headers, findings = read_headers(storage, output, names)
    findings += map(Finding, (*damage, *misled))
    if storage.find(join(output, JOURNAL_NAME)) is not None:
        findings.append(Finding(f"{output}: a conversion into it is not finished; run it again"))
    findings += _check_structure(storage, output, names, headers)
    foreign, notes = _find_foreign(storage, output, names, receipt)
    findings += map(Finding, foreign)
    findings += map(Finding, find_detours(storage, output))
    if receipt is not None:
        findings += _check_recorded(storage, output, receipt, headers)
    if depth >= Depth.DATA and receipt is not None:
        findings += _check_data(storage, output, receipt, headers, progress)
    if depth >= Depth.MODEL:
        findings += map(Finding, _check_model(storage, output, headers))
    if receipt is None and not damage:
        notes.append(f"{output}: no {RECEIPT_NAME}, so nothing tells what the data should be")
    return Proof(depth, headers, receipt, tuple(dict.fromkeys(findings)), tuple(notes))


def _list_names(
    storage: Storage, output: str, receipt: ModelReceipt | None
) -> tuple[Sequence[str], tuple[str, ...]]:
    """Give the chunks' names, of the receipt if there is one, and tell of an index that names others."""
    if receipt is None:
        return list_chunks(storage, output), ()
    names = [chunk.name for chunk in receipt.chunks]
    try:
        listed = list_chunks(storage, output)
    except OutputError as error:
        return names, (str(error),)
    return names, () if set(listed) == set(names) else (f"{join(output, INDEX_NAME)}: names other chunks",)


def _find_receipt(storage: Storage, output: str) -> tuple[ModelReceipt | None, list[str]]:
    """Read the receipt if there is one; a damaged one is a finding."""
    path = join(output, RECEIPT_NAME)
    if storage.find(path) is None:
        return None, []
    try:
        return read_receipt(storage, path), []
    except OutputError as error:
        return None, [f"{error}; --against INPUT compares without it"]


def read_headers(storage: Storage, output: str, chunks: Sequence[str]) -> tuple[Headers, list[Finding]]:
    """Read all chunks' headers that can be read, and tell of the others."""
    headers, findings = {}, []
    for name in chunks:
        try:
            headers[name] = read_header(storage, join(output, name))
        except OutputError as error:
            findings.append(Finding(str(error), name))
    return headers, findings


def _check_structure(
    storage: Storage, output: str, chunks: Sequence[str], headers: Headers
) -> Iterator[Finding]:
    """Compare names, headers and index with what distconv makes of the same tensors."""
    names = {chunk_name(number, len(chunks)) for number in range(1, len(chunks) + 1)}
    if names != set(chunks):
        yield Finding(f"{output}: chunks {', '.join(sorted(set(chunks) ^ names))} are missing or odd")
    for name, tensors in headers.items():
        path = join(output, name)
        order = file_order((tensor, written.dtype) for tensor, written in tensors.items())
        expected, _offsets = make_header([(t, tensors[t].dtype, tensors[t].shape) for t in order])
        with opened(storage, path) as reader:
            if reader.size_bytes < len(expected) or read_range(reader, 0, len(expected)) != expected:
                yield Finding(f"{path}: its header is not in the one form that its tensors have", name)
    path = join(output, INDEX_NAME)
    if storage.find(path) is not None and headers.keys() == set(chunks):
        weight_map = {tensor: name for name, tensors in headers.items() for tensor in tensors}
        written = [entry for tensors in headers.values() for entry in tensors.values()]
        index = make_index(
            weight_map,
            sum(w.elements for w in written),
            sum(w.elements * w.dtype.size_bytes for w in written),
        )
        try:
            found = read_small(storage, path, _LIMIT_BYTES)
        except InputError as error:
            yield Finding(str(error))
            return
        if found != index:
            yield Finding(f"{path}: does not say what the chunks hold")


def _find_foreign(
    storage: Storage, output: str, chunks: Sequence[str], receipt: ModelReceipt | None
) -> tuple[list[str], list[str]]:
    """Find what would be loaded with the model or in its place; without a receipt some of it may be the model's."""
    findings, notes = [], []
    ours = {*chunks, INDEX_NAME} if receipt is None else {*chunks, *receipt.files}
    copied = () if receipt is None else [source.sha256 for source in receipt.conversion.sources]
    for entry in storage.list_folder(output):
        if entry.name in ours or not is_loaded(entry):
            continue
        words = f"{join(output, entry.name)}: not of this model, and may be loaded in its place"
        if holds_weights(entry):
            findings.append(words)
        elif receipt is None:
            if not is_sidecar(entry.name):
                notes.append(f"{join(output, entry.name)}: not what distconv writes, and may be loaded")
        elif not is_copy(storage, output, entry, copied):
            findings.append(words)
    return findings, notes


def _check_recorded(
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
        if tensors.keys() != chunk.tensors.keys():
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


def _check_data(
    storage: Storage, output: str, receipt: ModelReceipt, headers: Headers, progress: Progress
) -> list[Finding]:
    """Read all chunks, several at once, and compare their digests; an interruption stops all of them."""
    stop = threading.Event()

    def check(chunk: RecordedChunk) -> Finding | None:
        path = join(output, chunk.name)
        try:
            found = _compare_digests(storage, path, headers[chunk.name], chunk, progress.advance, stop.is_set)
        except InputError as error:  # it was changed since its header was read
            found = str(error)
        progress.unit_done(chunk.name)
        return None if found is None else Finding(found, chunk.name)

    chunks = [chunk for chunk in receipt.chunks if chunk.name in headers]
    progress.begin(sum(chunk.size_bytes for chunk in chunks), len(chunks))
    try:
        with ThreadPoolExecutor(_LANES) as pool:
            try:
                return [found for found in pool.map(check, chunks) if found is not None]
            except BaseException:
                stop.set()
                raise
    finally:
        progress.end()


def _compare_digests(
    storage: Storage,
    path: str,
    tensors: Mapping[str, Written],
    recorded: RecordedChunk,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> str | None:
    """Read a chunk and compare its digests; name the tensors that differ."""
    whole, memory = xxh3_128(), make_buffer(_READ_BYTES)
    damaged = []
    ordered = sorted(tensors.items(), key=lambda item: item[1].offset_bytes)
    with opened(storage, path) as reader:
        first = min((written.offset_bytes for written in tensors.values()), default=reader.size_bytes)
        whole.update(read_range(reader, 0, first))
        advance(first)
        for name, written in ordered:
            digest = xxh3_128()
            end = written.offset_bytes + written.elements * written.dtype.size_bytes
            for start in range(written.offset_bytes, end, _READ_BYTES):
                if stopped():
                    raise Interrupted("stopped")
                content = memory[: min(_READ_BYTES, end - start)]
                reader.read_into(start, content)
                whole.update(content)
                digest.update(content)
                advance(len(content))
            if digest.hexdigest() != recorded.tensors.get(name):
                damaged.append(name)
    if damaged:
        return f"{path}: the data of {', '.join(damaged)} differs from its digest in {RECEIPT_NAME}"
    if whole.hexdigest() != recorded.digest:
        return f"{path}: its header differs from its digest in {RECEIPT_NAME}"
    return None


def _check_model(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Build the model without memory for its weights, and compare names and shapes."""
    path = join(output, CONFIG_NAME)
    if storage.find(path) is None:
        yield f"{path}: missing"
        return
    try:
        shapes = [written.shape for tensors in headers.values() for written in tensors.values()]
        wanted, tied = read_expected_shapes(storage, path, shapes)
    except Stopped:
        raise
    # Whatever a damaged config makes of Transformers' code, it is the config's fault.
    except Exception as error:  # noqa: BLE001
        first, *_ = [*str(error).splitlines(), ""]
        yield f"{path}: no model can be made of it ({type(error).__name__}: {first})"
        return
    found = {tensor: written.shape for tensors in headers.values() for tensor, written in tensors.items()}
    for tensor in sorted(wanted.keys() - found.keys() - tied):
        yield f"{tensor}: missing, the model of {path} needs it"
    for tensor in sorted(found.keys() - wanted.keys()):
        yield f"{tensor}: the model of {path} does not take it"
    for tensor in sorted(found.keys() & wanted.keys()):
        if found[tensor] != wanted[tensor]:
            yield f"{tensor}: shape {found[tensor]}, the model of {path} takes {wanted[tensor]}"
