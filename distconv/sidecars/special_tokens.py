"""What Meta's code adds to the ranks of a tiktoken file: how text is cut, and the tokens that stand for no text.

Sources: ``tokenizer.py`` of Meta's llama3, and of llama3 and llama4 in llama-models.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

SpecialTokens = Literal["llama-3", "llama-3.1", "llama-3.2-vision", "llama-4"]

_LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_LLAMA_4_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class TokenSet:
    """The tokens of one generation of models, in the order of their ids, which follow the ranks."""

    texts: tuple[str, ...] = field(repr=False)
    counted: int
    """So many of them Meta's tokenizer counts, which has as many tokens as the output rows."""
    pattern: str = field(repr=False)
    """The expression by which text is cut before its bytes are merged."""
    end_of_turn: str
    """Where an instruct model ends a turn."""
    pad: str | None
    """What fills up shorter texts of a batch; None where the model has no such token."""
    begin: str = "<|begin_of_text|>"
    end: str = "<|end_of_text|>"

    def find(self, text: str, begin: int) -> int:
        """Give a token's id; ``begin`` is that of the first one."""
        return begin + self.texts.index(text)


def _fill(named: Mapping[int, str], count: int) -> tuple[str, ...]:
    """Give so many tokens: the named ones by place, all others reserved and numbered in order."""
    numbers = itertools.count()
    return tuple(named.get(place) or f"<|reserved_special_token_{next(numbers)}|>" for place in range(count))


_LLAMA_3 = {
    0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>",
    9: "<|eot_id|>",
}  # fmt: skip
_LLAMA_31 = _LLAMA_3 | {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
_LLAMA_32_VISION = _LLAMA_31 | {5: "<|step_id|>"}
_LLAMA_3_COUNT = 256

_LLAMA_4_COUNT = 2048
# By place behind the ranks; "{}" runs from the first of the numbers to the last.
_LLAMA_4 = (
    (0, "<|begin_of_text|> <|end_of_text|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|>", None),
    (5, "<|header_start|> <|header_end|> <|eom|> <|eot|> <|step|>", None),
    (10, "<|text_post_train_reserved_special_token_{}|>", (0, 5)),
    (16, "<|python_start|> <|python_end|> <|finetune_right_pad|>", None),
    (19, "<|text_post_train_reserved_special_token_{}|>", (8, 68)),
    (80, "<|image_start|> <|image_end|>", None),
    (82, "<|vision_reserved_special_token_{}|>", (0, 1)),
    (84, "<|tile_x_separator|> <|tile_y_separator|>", None),
    (86, "<|vision_reserved_special_token_{}|>", (2, 5)),
    (90, "<|image|> <|vision_reserved_special_token_6|> <|patch|>", None),
    (93, "<|vision_reserved_special_token_{}|>", (7, 1047)),
    (1134, "<|reasoning_reserved_special_token_{}|>", (0, 7)),
    (1142, "<|reasoning_thinking_start|> <|reasoning_thinking_end|>", None),
)


def _expand() -> Iterator[tuple[int, str]]:
    """Give Llama 4's tokens by their places."""
    for first, texts, numbers in _LLAMA_4:
        if numbers is None:
            yield from enumerate(texts.split(), first)
        else:
            yield from enumerate(map(texts.format, range(numbers[0], numbers[1] + 1)), first)


TOKEN_SETS: Mapping[SpecialTokens, TokenSet] = {
    "llama-3": TokenSet(
        _fill(_LLAMA_3, _LLAMA_3_COUNT), _LLAMA_3_COUNT, _LLAMA_3_PATTERN, "<|eot_id|>", pad=None
    ),
    "llama-3.1": TokenSet(
        _fill(_LLAMA_31, _LLAMA_3_COUNT), _LLAMA_3_COUNT, _LLAMA_3_PATTERN, "<|eot_id|>", pad=None
    ),
    # Meta's tokenizer has the image's token among the 256, and puts the one behind them in its place (``chat_format.py``).
    "llama-3.2-vision": TokenSet(
        (*_fill(_LLAMA_32_VISION, _LLAMA_3_COUNT), "<|image|>"),
        _LLAMA_3_COUNT,
        _LLAMA_3_PATTERN,
        "<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
    ),
    "llama-4": TokenSet(
        _fill(dict(_expand()), _LLAMA_4_COUNT),
        _LLAMA_4_COUNT,
        _LLAMA_4_PATTERN,
        "<|eot|>",
        pad="<|finetune_right_pad|>",
    ),
}
"""By generation: 3 and Guard 2; 3.1 to 3.3 and Guard 3; 3.2 Vision and Guard 3 Vision; 4 and Guard 4."""

ALL_SPECIAL = frozenset(text for tokens in TOKEN_SETS.values() for text in tokens.texts)


def count_special_tokens(ranks: int) -> int:
    """Tell how many special tokens Meta's code counts behind so many ranks: Llama 4 has 200,000 of them."""
    return _LLAMA_4_COUNT if ranks >= _LLAMA_4_RANKS else _LLAMA_3_COUNT


_LLAMA_4_RANKS = 200_000
