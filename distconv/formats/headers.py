"""The tensors of files of weights, by a model's names: read from headers alone, all files at once."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from distconv.errors import InputError
from distconv.formats.meta.archive import read_archive
from distconv.formats.meta.names import Names, describe_names, refuse_twins
from distconv.formats.safetensors.header import is_safetensors, read_safetensors
from distconv.formats.views import TensorView, make_view
from distconv.humanize import list_some
from distconv.layout.regions import Region
from distconv.storage.base import Reader, Storage, opened, read_range
from distconv.storage.window import read_by_windows

_OPENERS = 16
_HEAD_BYTES = 16

FindNames = Callable[[str, Iterable[str]], Names]
"""Finds the model's names of a file's tensors, given its path; InputError where there is no such model."""


@dataclass(frozen=True, slots=True)
class FileTensors:
    """One file's tensors by the model's names."""

    path: str
    size_bytes: int
    tensors: Mapping[str, TensorView]
    stored: Mapping[str, str]
    """The file's own names, where they differ from the model's."""
    names: Names
    regions: Mapping[str, Region]
    """Where everything that the file holds lies, by its own names."""


LIMIT_TENSORS_OF_ALL = 1 << 18
"""Of all files: a 405B in 16 shards has 18,192, and an optimizer three times as many beside them."""


def read_headers(storage: Storage, paths: Sequence[str], find_names: FindNames) -> tuple[FileTensors, ...]:
    """Read the headers of all files; what is wrong in any of them is reported at once as an InputError.

    What is read is kept, so that no further file is read once there are too many tensors in all.
    """
    total = 0
    counting = Lock()

    def read(path: str) -> FileTensors | InputError | None:
        nonlocal total
        if total > LIMIT_TENSORS_OF_ALL:
            return None
        outcome = _try_read_file(storage, path, find_names)
        if isinstance(outcome, FileTensors):
            with counting:
                total += len(outcome.regions)
        return outcome

    with ThreadPoolExecutor(min(_OPENERS, len(paths))) as pool:
        outcomes = list(pool.map(read, paths))
    findings = [str(outcome) for outcome in outcomes if isinstance(outcome, InputError)]
    if total > LIMIT_TENSORS_OF_ALL:
        findings.append(
            f"{list_some(paths, 1)}: more than {LIMIT_TENSORS_OF_ALL:,} tensors; refused as unsafe"
        )
    if findings:
        raise InputError.of(findings)
    return tuple(outcome for outcome in outcomes if isinstance(outcome, FileTensors))


def describe_files(files: Sequence[FileTensors]) -> tuple[str, ...]:
    """Say what was taken off names and what was left aside in all of some files."""
    stripped: Counter[str] = Counter()
    aside: Counter[str] = Counter()
    for file in files:
        stripped.update(file.names.stripped)
        aside.update(file.names.aside)
    return describe_names(stripped, aside, name_files(files))


def group_twins(held: Iterable[tuple[str, Iterable[str]]]) -> Mapping[tuple[str, str], list[str]]:
    """Give the names that stand in two files, by those two; ``held`` are files with the names in them."""
    homes: dict[str, str] = {}
    twins: dict[tuple[str, str], list[str]] = {}
    for file, names in held:
        for name in names:
            home = homes.setdefault(name, file)
            if home != file:
                twins.setdefault((home, file), []).append(name)
    return twins


def name_files(files: Sequence[FileTensors]) -> str:
    """Name some files in a message."""
    return list_some([file.path for file in files], 1)


def _try_read_file(storage: Storage, path: str, find_names: FindNames) -> FileTensors | InputError:
    try:
        with opened(storage, path) as reader:
            return _read_file(read_by_windows(reader), find_names)
    except InputError as error:
        return error


def _read_file(reader: Reader, find_names: FindNames) -> FileTensors:
    """Read a file by what it is, not by what it is called."""
    head = bytes(read_range(reader, 0, min(_HEAD_BYTES, reader.size_bytes)))
    found = read_safetensors(reader) if is_safetensors(head) else read_archive(reader)
    names = find_names(reader.path, found)
    tensors: dict[str, TensorView] = {}
    stored: dict[str, str] = {}
    for own, name in names.kept.items():
        view = make_view(name, *found[own])
        if tensors.setdefault(name, view) != view:
            raise refuse_twins(reader.path, stored.get(name, name), own, name)
        if own != name:
            stored[name] = own
    regions = {own: region for own, (_mark, region) in found.items()}
    return FileTensors(reader.path, reader.size_bytes, tensors, stored, names, regions)
