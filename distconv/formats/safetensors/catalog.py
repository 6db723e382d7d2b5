"""What tensors a Transformers folder holds, and where: read from headers alone."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from distconv.errors import InputError
from distconv.formats.headers import (
    FileTensors,
    FindNames,
    describe_files,
    group_twins,
    name_files,
    read_headers,
)
from distconv.formats.safetensors.folder import TransformersFiles
from distconv.formats.safetensors.index import check_index
from distconv.formats.safetensors.names import find_transformers_names, is_bare
from distconv.formats.views import TensorView
from distconv.humanize import list_some
from distconv.storage.base import Storage


@dataclass(frozen=True, slots=True)
class TransformersCatalog:
    """All tensors of a model by the names that ``LlamaForCausalLM`` has; notes say how they were read."""

    tensors: Mapping[str, TensorView]
    size_bytes: int
    """Size of all files of weights."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """The files' own names, where they differ."""
    notes: tuple[str, ...] = ()

    def with_images(self) -> "TransformersCatalog":
        """Give it by the names of a model that sees, whose text model lies under a name of its own."""
        tensors = {_name_text(name): view for name, view in self.tensors.items()}
        stored = {_name_text(name): own for name, own in self.stored.items() if _name_text(name) != own}
        notes = tuple(note for note in self.notes if f"'{_TEXT_MODEL}.'" not in note)
        return replace(self, tensors=tensors, stored=stored, notes=notes)

    def stored_name(self, name: str) -> str:
        """Give a tensor's name as its file has it, for messages."""
        return self.stored.get(name, name)


_TEXT_MODEL = "language_model"
_OF_TEXT = ("model.", "lm_head.")


def _name_text(name: str) -> str:
    return f"{_TEXT_MODEL}.{name}" if name.startswith(_OF_TEXT) else name


def read_transformers_catalog(
    storage: Storage, files: TransformersFiles, find_names: FindNames = find_transformers_names
) -> TransformersCatalog:
    """Read all headers, and compare them with the index where there is one.

    Tensors that are none of Llama's are kept, under their own names. Raises one InputError with
    everything that is wrong with the headers, or else with everything that does not fit together.
    """
    found = read_headers(storage, files.weights, find_names)
    places = {posixpath.basename(file.path): file.regions for file in found}
    findings = [] if files.index is None else list(check_index(files.index, places))
    findings += _find_twins(found)
    if findings:
        raise InputError.of(findings)
    tensors = {name: view for file in found for name, view in file.tensors.items()}
    if not tensors:
        raise InputError(f"{name_files(found)}: no model in it, expected the tensors of LlamaForCausalLM")
    stored = {name: own for file in found for name, own in file.stored.items()}
    notes = (*describe_files(found), *_note_bare(found, stored))
    return TransformersCatalog(tensors, sum(file.size_bytes for file in found), stored, notes)


def _find_twins(files: Sequence[FileTensors]) -> Iterator[str]:
    """Find tensors that are in two files: which of the two was meant, nothing tells."""
    twins = group_twins((file.path, file.tensors) for file in files)
    for (first, second), names in twins.items():
        shown = list_some([name[:80] for name in names], 1)
        yield f"{second}: {shown} also in {first}; keep the files of one model only"


def _note_bare(files: Sequence[FileTensors], stored: Mapping[str, str]) -> tuple[str, ...]:
    bare = sum(is_bare(own, name) for name, own in stored.items())
    if not bare:
        return ()
    return (f"{name_files(files)}: 'model.' put before the names of {bare:,} tensors, saved from LlamaModel",)
