"""Writes tokenizers into folders, and asks Transformers, other versions too, what they read there."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distconv.sidecars.chat import CHAT_TEMPLATES
from distconv.sidecars.special_tokens import SpecialTokens
from distconv.sidecars.tokenizer import Vocabulary, make_tokenizer_files

_SCRIPT = Path(__file__).with_name("peer_tokenizer.py")


def write_tokenizer(
    folder: Path,
    vocabulary: Vocabulary,
    special_tokens: SpecialTokens = "llama-3.1",
    *,
    chat: str | None = None,
    instruct: bool = False,
    context: int = 4096,
) -> Path:
    """Write the files of a tokenizer; a sentencepiece model has no special tokens beside it."""
    files = make_tokenizer_files(
        vocabulary,
        special_tokens=special_tokens if vocabulary.kind == "tiktoken" else None,
        context=context,
        instruct=instruct,
        chat_template=None if chat is None else CHAT_TEMPLATES[chat],
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def load(folder: Path) -> PreTrainedTokenizerFast:
    """Load what is in a folder once, which takes seconds for a whole vocabulary; neither is to be changed."""
    return AutoTokenizer.from_pretrained(folder)


def ask_peer(
    run_peer: Callable[..., str],
    version: str,
    folder: Path,
    strings: Sequence[str],
    messages: Sequence[Mapping[str, object]] = (),
) -> dict[str, Any]:
    """Have another version of Transformers encode, decode and render; what it warns of is an error."""
    task = folder.with_name(f"{folder.name}-task.json")
    task.write_text(json.dumps({"folder": str(folder), "strings": strings, "messages": messages}))
    found: dict[str, Any] = json.loads(
        run_peer(f"transformers-{version}", "-W", "error::UserWarning", _SCRIPT, task)
    )
    return found
