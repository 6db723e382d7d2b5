"""Strings that are hard on tokenizers, the same ones on every run."""

import random

_PARTS = (
    " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "the", "The", "'s", "'LL", "ing", "I'm",
    "hello", " world", "Ünïcödé", "naïve", "ﬁ", "ﬀ", "①", "½", "e\u0301", "日本語", "中文", "한국어", "العربية", "हिन्दी", "ไทย",
    "😀", "👩‍👩‍👧‍👦", "🇩🇪", "🏳️‍🌈", "\U0001d518\U0001d52b", "\ufffd", "\ue000", "\U000e0001", "\0", "\x7f", "1", "12", "123", "1234567890", "3.14",
    "-", "--", "...", "!?", "#", "##", "//", "/*", "*/", "{", "}", "()", "[]", "<", ">", "</", "==", "!=", "->", "&&",
    "def f(x):\n    return x", "for (int i = 0; i < n; ++i)", "\\n", "$x^2$", "`code`", "http://a.b/c?d=e", "▁", "▁▁", "a▁b",
    "[INST]", "[/INST]", "<<SYS>>", "<|", "|>", "<unk", "s>", "0x1F", "snake_case", "camelCase", "A", "z", '"', "'",
)  # fmt: skip


_SPECIAL = ("<unk>", "<s>", "</s>")
"""Texts that only the converted tokenizer, not sentencepiece, takes for tokens."""


def make_strings(count: int, seed: int = 0) -> list[str]:
    """Make strings of mixed parts, of random characters, and of both."""
    chosen = random.Random(seed)
    found = ["", *_PARTS]
    while len(found) < count:
        made = _make_string(chosen, kind=len(found) % 3)
        if not any(text in made for text in _SPECIAL):
            found.append(made)
    return found


def _make_string(chosen: random.Random, kind: int) -> str:
    length = chosen.randint(1, 12)
    if kind == 0:
        return "".join(chosen.choice(_PARTS) for _ in range(length))
    if kind == 1:
        return "".join(_character(chosen) for _ in range(length * 2))
    return "".join(chosen.choice((chosen.choice(_PARTS), _character(chosen), " ")) for _ in range(length))


def _character(chosen: random.Random) -> str:
    limit = chosen.choice((0x80, 0x250, 0x3000, 0x10000, 0x110000))
    while True:
        value = chosen.randrange(limit)
        if not 0xD800 <= value < 0xE000:
            return chr(value)
