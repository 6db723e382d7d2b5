"""Tokenizers: which kind a file is, and the files that Transformers reads in its place.

Written for the class ``PreTrainedTokenizerFast``, which takes tokenizer.json as it is in
Transformers 4 and 5; the class ``LlamaTokenizer`` of 5.x would build a pipeline of its own
that gives other ids.
"""

from collections.abc import Mapping

from distconv.errors import InputError
from distconv.formats.content import HEAD_BYTES, describe_content
from distconv.formats.meta.files import TOKENIZER_NAME
from distconv.sidecars.config import to_json
from distconv.sidecars.pieces import PieceVocabulary, make_piece_tokenizer, make_piece_vocabulary
from distconv.sidecars.ranks import (
    RankVocabulary,
    looks_like_ranks,
    make_rank_tokenizer,
    make_rank_vocabulary,
)
from distconv.sidecars.special_tokens import TOKEN_SETS, SpecialTokens
from distconv.storage.base import Storage, read_small

Vocabulary = PieceVocabulary | RankVocabulary
"""What Meta's tokenizer.model holds; has ``path``, ``kind``, ``size`` and ``notes``."""

_LIMIT_BYTES = 8 << 20
"""Twice Llama 4's; merges are looked for at every byte."""
_EXPECTED = "a sentencepiece model (Llama 1, 2, Code Llama) or lines `base64 rank` (Llama 3 and 4)"


def read_vocabulary(storage: Storage, path: str, special_count: int | None = None) -> Vocabulary:
    """Read tokenizer.model as ``make_vocabulary`` does."""
    return make_vocabulary(path, read_small(storage, path, _LIMIT_BYTES), special_count)


def make_vocabulary(path: str, content: bytes, special_count: int | None = None) -> Vocabulary:
    """Understand what tokenizer.model holds, which lies or shall lie at ``path``.

    ``special_count`` is how many special tokens follow a tiktoken file's ranks, where the model tells. InputError
    where the file is of neither kind, or damaged.
    """
    if looks_like_ranks(content):
        return make_rank_vocabulary(path, content, special_count)
    try:
        return make_piece_vocabulary(path, content)
    except ValueError:
        raise InputError(f"{path}: {_describe(content)}, expected {_EXPECTED}") from None


_COMMON: Mapping[str, object] = {
    # What other readers than Transformers go by.
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    # 4.x would add token_type_ids, which no Llama takes.
    "model_input_names": ["input_ids", "attention_mask"],
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def make_tokenizer_files(
    vocabulary: Vocabulary,
    *,
    special_tokens: SpecialTokens | None,
    context: int,
    instruct: bool,
    chat_template: str | None,
) -> dict[str, bytes]:
    """Make tokenizer.json, tokenizer_config.json, for a template chat_template.jinja, and tokenizer.model.

    ``special_tokens`` names the set behind a tiktoken file's ranks, None for sentencepiece;
    ``context`` is in tokens; ``instruct`` ends text where instruct models end a turn.
    """
    config: dict[str, object] = {**_COMMON, "model_max_length": context}
    if isinstance(vocabulary, PieceVocabulary):
        if special_tokens is not None:
            raise InputError(f"{vocabulary.path}: a sentencepiece model, expected a tiktoken file")
        content = make_piece_tokenizer(vocabulary)
        config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        if special_tokens is None:
            raise InputError(f"{vocabulary.path}: a tiktoken file, expected a sentencepiece model")
        special = TOKEN_SETS[special_tokens]
        content = make_rank_tokenizer(vocabulary, special)
        config |= {"bos_token": special.begin, "eos_token": special.end_of_turn if instruct else special.end}
        config |= {} if special.pad is None else {"pad_token": special.pad}
    if chat_template is not None:
        # Transformers before 4.47 knows no file for it, and up to 4.43 takes ChatML in its place.
        config["chat_template"] = chat_template
    files = {"tokenizer.json": content, "tokenizer_config.json": to_json(config)}
    if chat_template is not None:
        files["chat_template.jinja"] = chat_template.encode()
    if isinstance(vocabulary, PieceVocabulary):
        # Whoever takes sentencepiece's own file, llama.cpp for its scores alone, gets it. They would take
        # a tiktoken file of this name for a sentencepiece one, too, so that is left out.
        files[TOKENIZER_NAME] = vocabulary.content
    return files


def _describe(content: bytes) -> str:
    """Say what a file that is neither kind is; a sentencepiece model begins with the piece <unk>."""
    if b"<unk>" in content[:32]:
        return "a damaged or truncated sentencepiece model"
    return describe_content(content[:HEAD_BYTES])
