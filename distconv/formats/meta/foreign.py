"""What is not read, told by the names of files and folders, each with the way out: others' checkpoints, adapters."""

import re
from collections.abc import Iterable

from distconv.humanize import list_some
from distconv.storage.base import Storage, join

_DEEPSPEED = (
    "a checkpoint of DeepSpeed's ({}), in which ZeRO has cut flat parameters among ranks; the zero_to_fp32.py beside it makes "
    "whole tensors of it, and `like=` a model of these"
)
_MEGATRON = "a checkpoint of Megatron's ({}); bring it into Transformers' format by Megatron-Bridge"
_FOREIGN = (
    (r"(.*_)?mp_rank_\d+(_\d+)?_(model|optim)_states\.pt|zero_to_fp32\.py|global_step\d+", _DEEPSPEED),
    (r"mp_rank_\d+(_\d+)*|latest_checkpointed_iteration\.txt|model_optim_rng\.pt|iter_\d{7}", _MEGATRON),
    (
        r"_CHECKPOINT_METADATA|ocdbt\.process_\d+|manifest\.ocdbt",
        "a checkpoint of JAX's (Orbax, {}); export it in Transformers' format from there",
    ),
    (r".*\.nemo", "a checkpoint of NeMo's ({}); export it in Transformers' format from there"),
)
_ADAPTER = re.compile(r"adapter_(model|config|\d+)\..*|.*lora.*\.(pt|pth|bin|safetensors)", re.IGNORECASE)
_WEIGHTS = re.compile(r".*\.(pth|pt|bin|ckpt|safetensors)")


def describe_foreign_trainer(names: Iterable[str]) -> str | None:
    """Name the trainer that leaves files and folders of such names; None for one that is not known."""
    listed = sorted(names)
    for pattern, words in _FOREIGN:
        for name in listed:
            if re.fullmatch(pattern, name):
                return words.format(name)
    return None


def describe_folder(storage: Storage, folder: str) -> str:
    """Say what a folder holds that is not what was looked for, as the end of a sentence."""
    names = [entry.name for entry in storage.list_folder(folder)]
    if not names:
        return "the folder is empty"
    foreign = describe_foreign_trainer(names) or _describe_cache(storage, folder, names)
    if foreign is not None:
        return f"it holds {foreign}"
    adapters = [name for name in names if _ADAPTER.fullmatch(name)]
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    if adapters and not set(weights) - set(adapters):
        return f"it holds a LoRA adapter without its model ({', '.join(adapters[:4])}); merge it into the model first"
    if weights:
        return f"it holds {', '.join(weights[:8])}; if one of these is the model, give the file's path"
    if gguf := [name for name in names if name.lower().endswith(".gguf")]:
        return (
            f"it holds {list_some(gguf, 4)}: a GGUF file is made of a model for llama.cpp, and none is made of it again; "
            "give the model that it was made of"
        )
    return f"it holds {list_some(names, 8)}"


def _describe_cache(storage: Storage, folder: str, names: Iterable[str]) -> str | None:
    if not {"blobs", "snapshots"} <= set(names):
        return None
    kept = [join(folder, "snapshots", name) for name in storage.list_names(join(folder, "snapshots"))]
    return f"the hub's cache of a repository; give the folder of a revision: {list_some(sorted(kept), 4)}"


def note_adapters(storage: Storage, folder: str) -> tuple[str, ...]:
    """Say that adapters beside a model are not used: it is taken as merged."""
    found = [entry.name for entry in storage.list_folder(folder) if _ADAPTER.fullmatch(entry.name)]
    if not found:
        return ()
    note = (
        f"{folder}: {', '.join(found[:4])}: an adapter lies here and is not used; "
        "if it is not merged into the model yet, merge it first"
    )
    return (note,)
