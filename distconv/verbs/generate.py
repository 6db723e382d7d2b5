"""Let a converted model continue a text: the last check, by eye."""

from typing import Any

from distconv.errors import InputError, OutputError, UsageError
from distconv.moving.progress import Progress
from distconv.moving.progress_default import take_progress
from distconv.output.descriptions import describe_unfinished
from distconv.output.receipt import find_target
from distconv.output.targets import META
from distconv.storage.base import PathLike, is_folder, list_files
from distconv.storage.local import LocalStorage
from distconv.storage.places import read_local
from distconv.verbs.image import encode, open_image, refuse_blind, take_metas_layers

TOKENS = 64
_TOKENIZERS = ("tokenizer.", "vocab.", "tekken.", "tiktoken.", "spiece.", "sentencepiece.")
"""What the names of files begin with that tokenizers are loaded from."""


def refuse_unloadable(output: PathLike) -> None:
    """Refuse what Transformers does not load: a conversion that is not finished, OutputError; a folder for Meta's code, UsageError."""
    storage, path = LocalStorage(), read_local(output)
    unfinished = describe_unfinished(storage, path)
    if unfinished is not None:
        raise OutputError(unfinished)
    if is_folder(storage, path) and find_target(storage, path) is META:
        raise UsageError(
            f"{path}: for Meta's code, and text is continued by Transformers; convert it and give that folder"
        )


def refuse_wordless(output: PathLike) -> None:
    """Refuse a folder without a tokenizer, whose model can neither read nor write words: UsageError."""
    storage, path = LocalStorage(), read_local(output)
    if is_folder(storage, path) and not any(
        name.startswith(_TOKENIZERS) for name in list_files(storage, path)
    ):
        raise UsageError(
            f"{path}: no tokenizer here (tokenizer.json, tokenizer.model or vocab.json), without which a model cannot "
            "continue a text; copy the model's own there"
        )


def generate(
    output: PathLike, text: str, tokens: int = TOKENS, *, image: PathLike | None = None,
    progress: Progress | None = None,
) -> str:  # fmt: skip
    """Load ``output`` over whatever GPUs there are, else the CPU, and give the likeliest continuation of ``text``.

    A model that sees may be shown the ``image`` in a file first. A model with a chat template is given both as a user's
    message. Decoding is greedy, so that the same model says the same again, of so many ``tokens`` at most. ``progress``
    is told that the model is loaded, and of what Transformers does otherwise than Meta's code. Raises UsageError for a
    folder of Meta's shards, a URL, bytes that are no text, a folder without a tokenizer, or an image for a model that
    sees none, or not with what is installed; OutputError for a conversion that is not finished; InputError for a file
    that is no image, or a tokenizer that Transformers does not load; what else it cannot load, it says itself.
    """
    refuse_unloadable(output)
    if not _is_text(text):
        raise UsageError(f"{text!a:.80}: not UTF-8 text, so no model can continue it")
    path = read_local(output)
    shown = None if image is None else open_image(image)
    if shown is not None:
        refuse_blind(path)
    refuse_wordless(path)
    told = take_progress(progress)
    told.note("loading the model")
    tokenizer = _load_tokenizer(path)
    model = _load(path, told, sees=shown is not None)
    if shown is None:
        given = _encode(tokenizer, text).to(model.device)
    else:
        given = encode(path, text, shown, is_chat=bool(tokenizer.chat_template)).to(model.device, model.dtype)
    made = model.generate(
        **given, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    said: str = tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def _load_tokenizer(path: str) -> Any:
    """Load the tokenizer, of a type that is only known once the folder is read, and have Transformers be quiet."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    kind: Any = AutoTokenizer
    try:
        return kind.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # formats of many tokenizers raise what they like
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{path}: Transformers does not load the tokenizer: {said}") from error


def _load(path: str, progress: Progress, *, sees: bool) -> Any:
    """Load the model, which is shown an image if it ``sees``."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    changed = take_metas_layers(config) if sees else None
    if changed is not None:
        progress.note(f"note: {changed}")
    kind: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    return kind.from_pretrained(
        path, config=config, device_map="auto", dtype="auto", trust_remote_code=False, local_files_only=True
    )


def _encode(tokenizer: Any, text: str) -> Any:
    """Give what a model takes for a text alone."""
    if not tokenizer.chat_template:
        return tokenizer(text, return_tensors="pt")
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


def _is_text(text: str) -> bool:
    """Whether it can be encoded: bytes of a command line that are no text cannot (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
