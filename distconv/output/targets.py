"""The formats in which OUTPUT can be, and all in which they differ: names, headers, what a model takes.

What is the same for both stands elsewhere, and takes a target as an argument.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from distconv.families.llama import FREQUENCIES
from distconv.formats.meta import written as meta
from distconv.formats.meta.legal import LEGAL_NAMES
from distconv.formats.meta.small_files import PARAMS_NAME
from distconv.formats.safetensors import written as safetensors
from distconv.formats.safetensors.chunks import INDEX_NAME, SINGLE_NAME, chunk_name
from distconv.formats.written import Headers, Written
from distconv.output.models import find_misfits_of_config, find_misfits_of_params
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.processors import PREPROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PREPROCESSOR_NAME
from distconv.storage.base import Storage
from distconv.storage.fencing import ATTEMPT_ENDING

RECEIPT_NAME = "distconv.json"
CARD_NAME = "README.md"
"""What people write of a model, wherever it is published; nothing loads it."""
JOURNAL_NAME = ".distconv.journal"
CHECKLIST_NAME = "checklist.chk"


@dataclass(frozen=True, slots=True)
class Target:
    """One format of OUTPUT; equal only to itself."""

    name: str
    """As ``--to`` and the receipt have it."""
    noun: str
    """What a file of weights is called in messages."""
    marks: tuple[str, ...]
    """Names without which the folder does not load, whatever else it holds."""
    list_marks: Callable[[int], tuple[str, ...]] = field(compare=False)
    """The marks that a model in so many files of weights has."""
    name_files: Callable[[int], tuple[str, ...]] = field(compare=False)
    """The names of so many files of weights, in their order."""
    whole_digest: bool
    """Whether each file is written in order, so that a receipt has a digest of all of it."""
    weights: str
    """Pattern of the names of files of weights; this and the other patterns are for whole names."""
    sidecars: str
    """Pattern of what is written beside them, licences' texts and the receipt apart."""
    others: str
    """Pattern of what other tools write of a model besides."""
    copied: str
    """Pattern of what of that is copied where a model is like another one, whose files stand beside it."""
    settings: str
    """Pattern of what says to a loader how model or tokenizer are to be made."""
    folders: str
    """Pattern of folders from which a loader reads."""
    detours: Mapping[str, tuple[str, ...]] = field(compare=False)
    """Keys that would lead a loader elsewhere, by files of JSON that it reads; no conversion writes them."""
    list_files: Callable[[Storage, str], tuple[str, ...]] = field(compare=False)
    """Give the files of weights that a folder has by its own account; OutputError where it is not finished."""
    has_checksums: bool
    """Whether files of weights have checksums of their own data."""
    checklist: str | None
    """Name of the file with the MD5 of all others, which is made after them, if there is one."""
    has_index: bool
    """Whether that account is a file."""
    read_header: Callable[[Storage, str], Mapping[str, Written]] = field(compare=False)
    """Read what a file of weights says of its tensors; OutputError where it is damaged or missing."""
    find_odd_form: Callable[[Storage, str, Mapping[str, Written]], str | None] = field(compare=False)
    """Make all but a file's data again from its tensors, and tell where it differs."""
    find_wrong_index: Callable[[Storage, str, Headers], Iterator[str]] = field(compare=False)
    """Make the index again from all headers, and tell where it differs."""
    find_index_differences: Callable[[Storage, str, Headers], Iterator[str]] | None = field(compare=False)
    """Tell where an index that anybody wrote is wrong; None where nobody else's form is as good as ours."""
    unused: str
    """Pattern of the names of tensors that files of its makers hold, and of which its code takes no notice."""
    rivals: str
    """Pattern of the names of weights that a loader takes with the model's or in their place, whoever wrote them."""
    find_misfits: Callable[[Storage, str, Headers], Iterator[str]] = field(compare=False)
    """Tell which tensors a model made of the small files does not take."""

    def __reduce__(self) -> tuple[Callable[[str], "Target"], tuple[str]]:
        """Cross to another process as a name: what has a target is sent there, and functions are not."""
        return _find_target, (self.name,)

    def list_detours(self, name: str, content: Mapping[str, object]) -> tuple[str, ...]:
        """Give the keys of a small file that would have something loaded in place of the model, see ``detours``."""
        return tuple(key for key in self.detours[name] if content.get(key) is not None)

    def is_weights(self, name: str) -> bool:
        """Whether a name is that of a file of weights."""
        return re.fullmatch(self.weights, name) is not None

    def is_sidecar(self, name: str) -> bool:
        """Whether a conversion writes a file of this name beside the weights and its receipt."""
        return re.fullmatch(f"{self.sidecars}|{LEGAL_NAMES}", name) is not None

    def is_recorded(self, name: str) -> bool:
        """Whether a receipt may name a file beside the weights so."""
        return self.is_sidecar(name) or re.fullmatch(self.copied, name) is not None

    def is_model_file(self, name: str) -> bool:
        """Whether a name is that of a file which a model consists of, whoever wrote it."""
        return re.fullmatch(f"{self.weights}|{self.sidecars}|{self.others}|{_RECORDS}", name) is not None


_RECORDS = r"distconv\.json|\.distconv\.journal"
_NONE = r"(?!)"
_COPIED = (
    r"(special_tokens_map|added_tokens|chat_template|video_preprocessor_config|normalizer)\.json"
    r"|((entity_|target_)?vocab|vocab-(src|tgt))\.json|merges\.txt|(vocab|dict)\.txt|bpe\.codes|[\w.-]+\.(tiktoken|spm)"
    r"|(tiktoken|spiece|spm|spm_char|sentencepiece|sentencepiece\.bpe)\.model"
)
"""Where tokenizers and processors of transformers 4.45 to 5.23 are found besides."""

TRANSFORMERS = Target(
    name="transformers",
    noun="chunk",
    marks=(INDEX_NAME, CONFIG_NAME),
    list_marks=lambda count: (INDEX_NAME, CONFIG_NAME) if count > 1 else (CONFIG_NAME,),
    name_files=lambda count: tuple(chunk_name(number, count) for number in range(1, count + 1)),
    whole_digest=True,
    weights=r"model(-\d{5,}-of-\d{5,})?\.safetensors",
    sidecars=r"model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|tokenizer\.model|tekken\.json|chat_template\.jinja"
    r"|preprocessor_config\.json|processor_config\.json",
    others=r"pytorch_model(-\d{5,}-of-\d{5,})?\.bin|pytorch_model\.bin\.index\.json"
    rf"|{_COPIED}",
    copied=_COPIED,
    settings=r"(config|generation_config|quantize_config|.*quant_config|((video_)?pre)?processor_config)\.json"
    r"|(tokenizer|tokenizer_config|tekken)\.json"
    rf"|.*\.model|chat_template\.jinja|{_COPIED}",
    folders=r"additional_chat_templates",
    detours={
        CONFIG_NAME: ("transformers_weights", "quantization_config", "auto_map"),
        "generation_config.json": (),
        "tokenizer_config.json": ("fast_tokenizer_files", "auto_map"),
        "special_tokens_map.json": (),
        "added_tokens.json": (),
        PREPROCESSOR_NAME: ("auto_map",),
        PROCESSOR_NAME: ("auto_map",),
        VIDEO_PREPROCESSOR_NAME: ("auto_map",),
    },
    list_files=safetensors.list_chunks,
    has_checksums=False,
    checklist=None,
    has_index=True,
    read_header=safetensors.read_header,
    find_odd_form=safetensors.find_odd_form,
    find_wrong_index=safetensors.find_wrong_index,
    find_index_differences=safetensors.find_index_differences,
    unused=_NONE,
    rivals=r"(?!consolidated).*\.safetensors|consolidated\.\d+\.pth|adapter_(config\.json|model\..*)",
    find_misfits=find_misfits_of_config,
)
"""What ``from_pretrained`` of transformers 4.45 to 5.23 looks for in a local folder."""

META = Target(
    name="meta",
    noun="shard",
    marks=(PARAMS_NAME,),
    list_marks=lambda _count: (PARAMS_NAME,),
    name_files=meta.shard_names,
    whole_digest=False,
    weights=r"consolidated\.\d{2,}\.pth",
    sidecars=r"params\.json|tokenizer\.model|checklist\.chk",
    others=_NONE,
    copied=_NONE,
    settings=r"(params|config|tokenizer|added_tokens|vocab)\.json|.*\.model",
    folders=r".*\.pth",
    detours={},
    list_files=meta.list_shards,
    has_checksums=True,
    checklist=CHECKLIST_NAME,
    has_index=False,
    read_header=meta.read_shard,
    find_odd_form=meta.find_odd_form,
    find_wrong_index=lambda _storage, _output, _headers: iter(()),
    find_index_differences=None,
    unused="|".join(FREQUENCIES),
    rivals=r".*",
    find_misfits=find_misfits_of_params,
)
"""Meta's code loads every ``*.pth`` of the folder, by name, a rank each (``generation.py`` of llama3 and
llama-models); llama.cpp's converter takes config.json, where there is one, before params.json."""

TARGETS = {target.name: target for target in (TRANSFORMERS, META)}


def _find_target(name: str) -> Target:
    return TARGETS[name]


_OURS = "|".join(
    (
        *(pattern for target in TARGETS.values() for pattern in (target.weights, target.sidecars, target.others)),
        LEGAL_NAMES, r"distconv\.json|\.distconv\.[a-z0-9.-]+",
    )
)  # fmt: skip
_PARTIAL = re.compile(rf"\.({_OURS}){ATTEMPT_ENDING}")


def is_partial(name: str) -> bool:
    """Whether a name is that of a file left over from a write of ours that never ended, of whatever target."""
    return _PARTIAL.fullmatch(name) is not None


def tell_target(storage: Storage, output: str) -> Target:
    """Tell a folder's target by the names in it, where no receipt does.

    Shards of Meta's beside chunks or an index are strangers there.
    """
    entries = storage.list_folder(output)
    names = {entry.name for entry in entries if not entry.is_folder}
    if names & {INDEX_NAME, SINGLE_NAME}:
        return TRANSFORMERS
    return META if any(map(META.is_weights, names)) else TRANSFORMERS
