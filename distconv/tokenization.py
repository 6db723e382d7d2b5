"""Convert a tokenizer alone."""

import os
from dataclasses import dataclass

from distconv.assembly import make_family_tokenizer
from distconv.errors import InputError, OutputError, UsageError
from distconv.families.llama import FAMILIES, Family
from distconv.source.files import find_tokenizer
from distconv.storage import LocalStorage
from distconv.survey import PathLike, read_checkpoint
from distconv.target.finalise import write_files
from distconv.target.tokenizer import Vocabulary, read_vocabulary

_ASSUMED = {"sentencepiece": "llama-2", "tiktoken": "llama-3.1"}


@dataclass(frozen=True, slots=True)
class TokenizerReport:
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
    instruct: bool = False,
    overwrite: bool = False,
) -> TokenizerReport:
    """Convert the tokenizer of ``source``, a checkpoint's folder or the file itself.

    Beside a whole checkpoint the family is told from that; otherwise from ``family`` or, as
    the notes then say, assumed. Files of another tokenizer are replaced with ``overwrite`` only.
    """
    storage = LocalStorage()
    path = find_tokenizer(storage, os.fspath(source))
    vocabulary = read_vocabulary(storage, path)
    chosen, notes = _choose(os.fspath(source), vocabulary, family)
    files = make_family_tokenizer(vocabulary, chosen, instruct=instruct)
    folder = os.fspath(output)
    taken = sorted({entry.name for entry in storage.list_folder(folder)} & set(files))
    if taken and not overwrite:
        raise OutputError(f"{folder}: already holds {', '.join(taken)}; --overwrite replaces them")
    storage.make_folder(folder)
    write_files(storage, folder, files)
    return TokenizerReport(folder, tuple(files), (*notes, *vocabulary.notes))


def _choose(source: str, vocabulary: Vocabulary, family: str | None) -> tuple[Family, tuple[str, ...]]:
    if family is not None:
        if family not in FAMILIES:
            raise UsageError(f"--family {family}: unknown; expected one of {', '.join(FAMILIES)}")
        chosen = FAMILIES[family]
        if chosen.tokenizer != vocabulary.kind:
            raise InputError(
                f"{source}: a {vocabulary.kind} tokenizer, {chosen.title} has a {chosen.tokenizer} one"
            )
        return chosen, ()
    try:
        choice = read_checkpoint(LocalStorage(), source).choice
    except InputError:
        # No whole checkpoint beside it: a tokenizer is all that was asked for.
        chosen = FAMILIES[_ASSUMED[vocabulary.kind]]
        note = f"taken as the tokenizer of {chosen.title}; --family changes that"
        return chosen, (note,)
    return choice.family, choice.assumptions
