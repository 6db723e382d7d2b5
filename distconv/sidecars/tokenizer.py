"""Tokenizers: which kind a file is, and the files that Transformers reads in its place.

Written for the class ``PreTrainedTokenizerFast``, which takes tokenizer.json as it is in
Transformers 4 and 5; the class ``LlamaTokenizer`` of 5.x would build a pipeline of its own
that gives other ids.
"""

from collections.abc import Mapping

from distconv.errors import InputError
from distconv.formats.content import HEAD_BYTES, describe_content
from distconv.formats.meta.small_files import TOKENIZER_NAME
from distconv.sidecars.config import to_json
from distconv.sidecars.pieces import PieceVocabulary, make_piece_tokenizer, make_piece_vocabulary
from distconv.sidecars.ranks import (
    RankVocabulary,
    looks_like_ranks,
    make_rank_tokenizer,
    make_rank_vocabulary,
)
from distconv.sidecars.special_tokens import TOKEN_SETS, SpecialTokens
from distconv.sidecars.tekken import (
    TEKKEN_BYTES,
    TEKKEN_NAME,
    TekkenVocabulary,
    looks_like_tekken,
    make_tekken_tokenizer,
    make_tekken_vocabulary,
)
from distconv.storage.base import Storage, read_small

Vocabulary = PieceVocabulary | RankVocabulary | TekkenVocabulary
"""What Meta's or Mistral's tokenizer file holds; has ``path``, ``kind``, ``size`` and ``notes``."""

_LIMIT_BYTES = 8 << 20
"""Twice Llama 4's; merges are looked for at every byte."""
_EXPECTED = "a sentencepiece model (Llama 1, 2, Code Llama), lines `base64 rank` (Llama 3 and 4) or Mistral's tekken.json"


def read_vocabulary(storage: Storage, path: str, special_count: int | None = None) -> Vocabulary:
    """Read tokenizer.model as ``make_vocabulary`` does."""
    limit = TEKKEN_BYTES if path.endswith(".json") else _LIMIT_BYTES
    return make_vocabulary(path, read_small(storage, path, limit), special_count)


def make_vocabulary(path: str, content: bytes, special_count: int | None = None) -> Vocabulary:
    """Understand what tokenizer.model holds, which lies or shall lie at ``path``.

    ``special_count`` is how many special tokens follow a tiktoken file's ranks, where the model tells. InputError
    where the file is of no such kind, or damaged.
    """
    if looks_like_ranks(content):
        return make_rank_vocabulary(path, content, special_count)
    if looks_like_tekken(content):
        return make_tekken_vocabulary(path, content)
    try:
        return make_piece_vocabulary(path, content)
    except ValueError:
        raise InputError(f"{path}: {_describe(content)}, expected {_EXPECTED}") from None


_GIVE = "give the right file by `tokenizer=`"

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
    """Make tokenizer.json, tokenizer_config.json, for a template chat_template.jinja, and the file that others read.

    ``special_tokens`` names the set behind a tiktoken file's ranks, None for sentencepiece and tekken;
    ``context`` is in tokens; ``instruct`` ends text where instruct models end a turn.
    """
    content, tokens = _make_tokenizer(vocabulary, special_tokens, instruct=instruct)
    config: dict[str, object] = {**_COMMON, "model_max_length": context, **tokens}
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
    elif isinstance(vocabulary, TekkenVocabulary):
        files[TEKKEN_NAME] = vocabulary.content
    return files


def _make_tokenizer(
    vocabulary: Vocabulary, special_tokens: SpecialTokens | None, *, instruct: bool
) -> tuple[bytes, Mapping[str, str]]:
    """Make tokenizer.json, and tell which tokens begin and end a text, stand for unknown ones, and fill up."""
    if isinstance(vocabulary, RankVocabulary):
        if special_tokens is None:
            raise InputError(f"{vocabulary.path}: a tiktoken file, expected a sentencepiece model; {_GIVE}")
        special = TOKEN_SETS[special_tokens]
        tokens = {"bos_token": special.begin, "eos_token": special.end_of_turn if instruct else special.end}
        tokens |= {} if special.pad is None else {"pad_token": special.pad}
        return make_rank_tokenizer(vocabulary, special), tokens
    if special_tokens is not None:
        raise InputError(f"{vocabulary.path}: a {vocabulary.kind} file, expected a tiktoken one; {_GIVE}")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if isinstance(vocabulary, PieceVocabulary):
        return make_piece_tokenizer(vocabulary), tokens
    return make_tekken_tokenizer(vocabulary), tokens | (
        {"pad_token": "<pad>"} if "<pad>" in vocabulary.special else {}
    )


def _describe(content: bytes) -> str:
    """Say what a file that is neither kind is; a sentencepiece model begins with the piece <unk>."""
    if b"<unk>" in content[:32]:
        return "a damaged or truncated sentencepiece model"
    return describe_content(content[:HEAD_BYTES])
