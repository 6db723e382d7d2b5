"""Convert a tokenizer alone."""

from dataclasses import dataclass

from distconv.errors import InputError, MismatchError, OutputError
from distconv.families.choose import find_family
from distconv.families.images import LLAMA_4_TOKENS
from distconv.families.llama import Family
from distconv.formats.meta.small_files import find_tokenizer
from distconv.output.acquisition import owned
from distconv.output.finalise import write_files
from distconv.output.targets import is_partial
from distconv.sidecars.tokenizer import Vocabulary, read_vocabulary
from distconv.storage.base import PathLike, Storage, join, read_small
from distconv.storage.places import open_places, read_output, read_place
from distconv.verbs.assembly import make_family_tokenizer
from distconv.verbs.checkpoint import read_checkpoint
from distconv.verbs.model_config import choose_longest
from distconv.verbs.reports import Report

_ASSUMED = {"sentencepiece": "llama-2", "tiktoken": "llama-3.1", "tekken": "mistral-tekken"}


@dataclass(frozen=True, slots=True, repr=False)
class TokenizerReport(Report):
    """What converting a tokenizer alone did."""

    output: str
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {"output": self.output, "files": list(self.files), "notes": list(self.notes)}

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        return (f"{self.output}: {', '.join(self.files)}",)


def convert_tokenizer(
    source: PathLike,
    output: PathLike,
    *,
    family: str | None = None,
    instruct: bool | None = None,
    overwrite: bool = False,
    endpoint_url: str | None = None,
) -> TokenizerReport:
    """Convert the tokenizer of ``source``, a checkpoint's folder or the file itself, into the folder ``output``.

    Beside a whole checkpoint the family is told from that; otherwise from ``family`` or, as the notes then say, assumed.
    ``instruct`` adds the chat template. Files of another tokenizer are replaced with ``overwrite`` only. ``endpoint_url``
    is that of an S3 service other than Amazon's. Raises InputError where there is no tokenizer, MismatchError where it
    is not that of ``family``, OutputError for files in the way.
    """
    place, folder = read_place(source), read_output(output)
    storage = open_places(place, folder, endpoint_url=endpoint_url)
    path = _find_tokenizer(storage, place)
    vocabulary = read_vocabulary(storage, path)
    chosen, context, notes = _choose(storage, place, vocabulary, family, instruct=instruct)
    files = make_family_tokenizer(vocabulary, chosen, context, instruct=bool(instruct))
    taken = sorted(name for name in files if _is_other(storage, join(folder, name), files[name]))
    if taken and not overwrite:
        raise OutputError(f"{folder}: already holds {', '.join(taken)}; `overwrite=True` replaces them")
    storage.make_folder(folder)
    with owned(storage, folder, lambda _message: None, is_partial) as owner:
        write_files(storage, owner, files)
    return TokenizerReport(folder, tuple(files), (*notes, *vocabulary.notes))


def _is_other(storage: Storage, path: str, content: bytes) -> bool:
    """Whether another file stands there; INPUT's own tokenizer.model may."""
    entry = storage.find(path)
    if entry is None:
        return False
    return (
        entry.is_folder
        or entry.size_bytes != len(content)
        or read_small(storage, path, len(content)) != content
    )


def _find_tokenizer(storage: Storage, place: str) -> str:
    try:
        return find_tokenizer(storage, place)
    except InputError:
        # All that a conversion is takes as long to import as everything else here, and hardly anybody gives one.
        from distconv.output.descriptions import telling_unfinished

        with telling_unfinished(storage, place):
            raise


def _choose(
    storage: Storage, source: str, vocabulary: Vocabulary, family: str | None, *, instruct: bool | None
) -> tuple[Family, int, tuple[str, ...]]:
    """Choose the family, and how long its sequences are."""
    try:
        checkpoint = read_checkpoint(storage, source, family=family, instruct=instruct)
    except MismatchError:
        raise
    except InputError:
        # No whole checkpoint beside it: a tokenizer is all that was asked for.
        chosen, notes = _choose_alone(vocabulary, family)
        return chosen, chosen.context, notes
    choice = checkpoint.choice
    return choice.family, choose_longest(checkpoint), choice.assumptions


def _choose_alone(vocabulary: Vocabulary, family: str | None) -> tuple[Family, tuple[str, ...]]:
    large = vocabulary.kind == "tiktoken" and vocabulary.size >= LLAMA_4_TOKENS
    assumed = "llama-4" if large else _ASSUMED[vocabulary.kind]
    chosen = find_family(assumed if family is None else family)
    if chosen.tokenizer != vocabulary.kind:
        raise InputError(
            f"{vocabulary.path}: a {vocabulary.kind} tokenizer, {chosen.title} has a {chosen.tokenizer} one; give the "
            "right file, or leave `family=` out"
        )
    if family is not None:
        return chosen, ()
    return chosen, (f"taken as the tokenizer of {chosen.title}; `family=` changes that",)
