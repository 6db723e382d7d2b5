"""Let a converted model continue a text: the last check, by eye."""

from typing import Any

from distconv.errors import UsageError
from distconv.output.targets import META
from distconv.storage.base import PathLike
from distconv.storage.local import LocalStorage
from distconv.storage.places import read_local
from distconv.verbs.verify import find_target

TOKENS = 64


def refuse_meta(output: PathLike) -> None:
    """Refuse a folder for Meta's code, which Transformers does not load: UsageError."""
    storage, path = LocalStorage(), read_local(output)
    entry = storage.find(path)
    if entry is not None and entry.is_folder and find_target(storage, path) is META:
        raise UsageError(
            f"{path}: for Meta's code, and text is continued by Transformers; convert it and give that folder"
        )


def generate(output: PathLike, text: str, tokens: int = TOKENS) -> str:
    """Load ``output`` over whatever GPUs there are, else the CPU, and give the likeliest continuation of ``text``.

    A model with a chat template is given the text as a user's message. Decoding is greedy, so that the same model says
    the same again, of so many ``tokens`` at most. Raises UsageError for a folder of Meta's shards, a URL, or bytes that
    are no text; what Transformers cannot load, it says itself.
    """
    refuse_meta(output)
    if not _is_text(text):
        raise UsageError(f"{text!a:.80}: not UTF-8 text, so no model can continue it")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
    from transformers.utils import logging

    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    path = read_local(output)
    # What these give is of a type that is only known once the folder is read.
    tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    kind: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model: Any = kind.from_pretrained(
        path, device_map="auto", dtype="auto", trust_remote_code=False, local_files_only=True
    )
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": text}]
        given = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        given = tokenizer(text, return_tensors="pt")
    given = given.to(model.device)
    made = model.generate(
        **given, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    said: str = tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def _is_text(text: str) -> bool:
    """Whether it can be encoded: bytes of a command line that are no text cannot (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
