"""Checkpoints of trainers that are not read, told by the names of files and folders, each with the way out."""

import re
from collections.abc import Iterable

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


def describe_foreign_trainer(names: Iterable[str]) -> str | None:
    """Name the trainer that leaves files and folders of such names; None for one that is not known."""
    listed = sorted(names)
    for pattern, words in _FOREIGN:
        for name in listed:
            if re.fullmatch(pattern, name):
                return words.format(name)
    return None
