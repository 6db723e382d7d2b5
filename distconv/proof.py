"""Prove a model folder by itself: its structure, its receipt's digests, and that a model takes it.

Nothing of INPUT is needed. Headers and index are made again from what config and index say,
so that whatever is not as distconv writes it is found.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from xxhash import xxh3_128

from distconv.digests import ALGORITHM
from distconv.errors import InputError, OutputError, Stopped
from distconv.memory import make_buffer
from distconv.planning.chunks import INDEX_NAME, chunk_name, file_order, make_header, make_index
from distconv.progress import Progress
from distconv.resuming import digest_receipt
from distconv.storage import Storage, join, opened, read_range, read_small
from distconv.target.config import to_json
from distconv.target.finalise import CONFIG_NAME, JOURNAL_NAME, RECEIPT_NAME
from distconv.target.written import Written, read_header, read_object

_LIMIT_BYTES = 100 << 20
_READ_BYTES = 4 << 20
_LANES = 4
_EXTENTS = ("hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_attention_heads")

Headers = Mapping[str, Mapping[str, Written]]
"""By chunk and tensor."""


def read_headers(storage: Storage, output: str, chunks: Sequence[str]) -> tuple[Headers, list[str]]:
    """Read all chunks' headers that can be read, and tell of the others."""
    headers, findings = {}, []
    for name in chunks:
        try:
            if "/" in name:
                raise OutputError(
                    f"{join(output, INDEX_NAME)}: names {name!r}, expected a file in this folder"
                )
            headers[name] = read_header(storage, join(output, name))
        except (OutputError, InputError) as error:
            findings.append(str(error))
    return headers, findings


def prove(storage: Storage, output: str, headers: Headers, progress: Progress) -> tuple[list[str], list[str]]:
    """List what is wrong in a folder, and notes on what could not be told.

    ``progress`` is told of the chunks' bytes as they are read.
    """
    findings = [
        *_check_structure(storage, output, headers),
        *_check_model(storage, output, headers),
    ]
    if storage.find(join(output, JOURNAL_NAME)) is not None:
        findings.append(f"{output}: a conversion into it is not finished; run it again")
    if storage.find(join(output, RECEIPT_NAME)) is None:
        return findings, [f"{output}: no {RECEIPT_NAME}, so nothing tells what the data should be"]
    return findings + _check_receipt(storage, output, headers, progress), []


def _check_structure(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Compare names, headers and index with what distconv makes of the same tensors."""
    names = {chunk_name(number, len(headers)) for number in range(1, len(headers) + 1)}
    if names != set(headers):
        yield f"{output}: chunks {', '.join(sorted(set(headers) ^ names))} are missing or odd"
    for name, tensors in headers.items():
        path = join(output, name)
        order = file_order((tensor, written.dtype) for tensor, written in tensors.items())
        expected, _offsets = make_header([(t, tensors[t].dtype, tensors[t].shape) for t in order])
        with opened(storage, path) as reader:
            if reader.size_bytes < len(expected) or read_range(reader, 0, len(expected)) != expected:
                yield f"{path}: its header is not in the one form that its tensors have"
    path = join(output, INDEX_NAME)
    if storage.find(path) is not None:
        weight_map = {tensor: name for name, tensors in headers.items() for tensor in tensors}
        written = [entry for tensors in headers.values() for entry in tensors.values()]
        expected = make_index(
            weight_map,
            sum(w.elements for w in written),
            sum(w.elements * w.dtype.size_bytes for w in written),
        )
        if read_small(storage, path, _LIMIT_BYTES) != expected:
            yield f"{path}: does not say what the chunks hold"


def _check_model(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Build the model without memory for its weights, and compare names and shapes."""
    path = join(output, CONFIG_NAME)
    if storage.find(path) is None:
        yield f"{path}: missing"
        return
    try:
        wanted, tied = _expected_shapes(output, headers)
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


def _expected_shapes(output: str, headers: Headers) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Give a model's tensors, and those that it takes from others where they are not there."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(output, local_files_only=True, trust_remote_code=False)
    _bound(config, headers)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return shapes, {"lm_head.weight"} if config.tie_word_embeddings else set()


def _bound(config: object, headers: Headers) -> None:
    """Refuse sizes that the tensors cannot have: making even an empty model of them could take for ever."""
    shapes = [written.shape for tensors in headers.values() for written in tensors.values()]
    largest = max((extent for shape in shapes for extent in shape), default=0)
    for key, limit in {"num_hidden_layers": len(shapes), **dict.fromkeys(_EXTENTS, largest)}.items():
        value = getattr(config, key, None)
        if isinstance(value, int) and value > limit:
            message = f"{key} {value:,}, the chunks' {len(shapes)} tensors allow at most {limit:,}"
            raise ValueError(message)


def _check_receipt(storage: Storage, output: str, headers: Headers, progress: Progress) -> list[str]:
    path = join(output, RECEIPT_NAME)
    try:
        receipt = read_object(storage, path)
    except OutputError as error:
        return [str(error)]
    if receipt.get("sha256") != digest_receipt(receipt) or to_json(receipt) != read_small(
        storage, path, _LIMIT_BYTES
    ):
        return [f"{path}: damaged, its own digest differs; --against INPUT compares without it"]
    rows, files = receipt.get("chunks"), receipt.get("files")
    if not isinstance(rows, list) or not isinstance(files, dict):
        return [f"{path}: not a receipt of a finished conversion"]
    recorded = {row["name"]: row for row in rows}
    findings = [
        f"{join(output, name)}: {'missing' if name in recorded else f'not in {RECEIPT_NAME}'}"
        for name in sorted(recorded.keys() ^ headers.keys())
    ]
    for name, digest in files.items():
        if storage.find(join(output, name)) is None:
            findings.append(f"{join(output, name)}: missing")
        elif hashlib.sha256(read_small(storage, join(output, name), _LIMIT_BYTES)).hexdigest() != digest:
            findings.append(f"{join(output, name)}: differs from its SHA-256 in {RECEIPT_NAME}")

    def check(name: str) -> str | None:
        found = _compare_digests(storage, join(output, name), headers[name], recorded[name], progress.advance)
        progress.unit_done(name)
        return found

    with ThreadPoolExecutor(_LANES) as pool:
        outcomes = list(pool.map(check, sorted(recorded.keys() & headers.keys())))
    return findings + [outcome for outcome in outcomes if outcome is not None]


def _compare_digests(
    storage: Storage,
    path: str,
    tensors: Mapping[str, Written],
    row: Mapping[str, object],
    advance: Callable[[int], None],
) -> str | None:
    """Read a chunk and compare its digests; name the tensors that differ."""
    expected = row["tensors"] if isinstance(row["tensors"], dict) else {}
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
                content = memory[: min(_READ_BYTES, end - start)]
                reader.read_into(start, content)
                whole.update(content)
                digest.update(content)
                advance(len(content))
            if digest.hexdigest() != expected.get(name):
                damaged.append(name)
    if damaged:
        return f"{path}: the data of {', '.join(damaged)} differs from its digest in {RECEIPT_NAME}"
    if whole.hexdigest() != row.get(ALGORITHM):
        return f"{path}: its header differs from its digest in {RECEIPT_NAME}"
    return None
