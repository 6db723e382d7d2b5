"""Tensor names as Meta has them, whatever a trainer has put around them.

A trainer saves its model inside of wrappers (``torch.compile``, FSDP, DDP, activation
checkpointing), each of which adds a part to the names, below keys of its own, and beside the
state of its optimizer. Names come here as dotted paths from the root of the file.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.humanize import format_count, list_some

_WRAPPERS = frozenset(
    {
        "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
        "_forward_module", "_wrapped_module",
    }
)  # fmt: skip
"""Parts that wrappers of modules add, anywhere in a name; no module of Meta's is called so."""

_HOLDERS = frozenset(
    {
        "actor", "app", "base_model", "checkpoint", "language_model", "llama", "model", "model_state",
        "model_state_dict", "model_weights", "net", "network", "policy", "state", "state_dict", "transformer", "weights",
    }
)  # fmt: skip
"""Keys and attributes that hold a whole model; they begin a name."""

_ASIDE = re.compile(
    r"opt|optim(izer)?s?|optim(izer)?s?_states?(_dict)?|optim(izer)?_dict|(lr_?)?schedulers?|(lr_?)?scheduler_.*"
    r"|(.*_)?ema(_.*)?|(.*_)?rng(_.*)?|random_states?|(grad_)?scaler(_.*)?|amp|train(er|ing)?_state|loops|callbacks"
    r"|data_?loaders?(_.*)?|sampler(_.*)?|args|config|hparams|hyper_parameters|metrics?|history|stats|(.*_)?loss(es)?"
    r"|(.*_)?(step|epoch|iter|iteration)s?|iter_num|seed|lr",
    re.IGNORECASE,
)
"""What trainers save beside a model, by the first part of its name."""


@dataclass(frozen=True, slots=True)
class Names:
    """Meta's names by the names that a file has, and what was taken off and left aside.

    ``stripped`` counts names by each part that was taken off, ``aside`` tensors by the first
    part of their names.
    """

    kept: Mapping[str, str]
    stripped: Mapping[str, int]
    aside: Mapping[str, int]


def read_names(names: Iterable[str]) -> Names:
    """Find Meta's name of each tensor of a file; those that are no part of a model get none."""
    kept: dict[str, str] = {}
    depths: dict[str, int] = {}
    stripped: Counter[str] = Counter()
    aside: Counter[str] = Counter()
    for name in names:
        plain, gone, depth = _strip(name)
        first = plain.partition(".")[0]
        if _ASIDE.fullmatch(first):
            aside[first] += 1
            continue
        kept[name] = plain
        depths[name] = depth
        stripped.update(gone)
    # A parameter has its module's name before its own: what has none, and lies above the model, is the run's.
    depth = Counter(depths.values()).most_common(1)[0][0] if depths else 0
    for name in [name for name, plain in kept.items() if "." not in plain and depths[name] < depth]:
        aside[kept.pop(name)] += 1
    return Names(kept, stripped, aside)


def split_name(name: str) -> list[str]:
    """Give the parts of a name, those that wrappers add left out."""
    return [part for part in name.split(".") if part not in _WRAPPERS]


def is_beside(name: str, expected: Container[str]) -> str | None:
    """Give the part by which a name is of what trainers save beside a model; None for one of the model's."""
    parts = name.split(".")
    while ".".join(parts) not in expected:
        if len(parts) == 1 or parts[0] not in _HOLDERS:
            return parts[0] if _ASIDE.fullmatch(parts[0]) else None
        del parts[0]
    return None


def _strip(name: str) -> tuple[str, list[str], int]:
    """Take wrappers' parts and holders' off a name; also give them, and how many came first."""
    parts = name.split(".")
    plain = split_name(name)
    while len(plain) > 1 and plain[0] in _HOLDERS:
        del plain[0]
    if not plain or len(plain) == len(parts):
        return name, [], 0
    gone = dict.fromkeys(part for part in parts if part in _WRAPPERS or part in _HOLDERS)
    return ".".join(plain), list(gone), parts.index(plain[0])


def refuse_twins(path: str, first: str, second: str, name: str) -> InputError:
    """Make the error for two different tensors that are one by name."""
    return InputError(
        f"{path}: {first} and {second} are both {name} of the model: two models are in it, or one is there twice; "
        "save the state dict of the one to convert alone"
    )


_MOST_SHOWN = 8


def describe_names(stripped: Mapping[str, int], aside: Mapping[str, int], where: str) -> tuple[str, ...]:
    """Say what was taken off names and what was left aside in all files of a checkpoint."""
    notes = []
    if stripped:
        parts = " and ".join(f"'{part}.'" for part in list(stripped)[:_MOST_SHOWN])
        notes.append(f"{where}: {parts} taken off the names of {max(stripped.values()):,} tensors")
    if aside:
        shown = [f"{part[:40]} ({format_count(count, 'tensor')})" for part, count in aside.items()]
        notes.append(f"{where}: left aside beside the model: {list_some(shown, _MOST_SHOWN)}")
    return tuple(notes)
