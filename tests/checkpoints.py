"""Small synthetic checkpoints as Meta writes them, and full-size ones that take no room.

How tensors are cut over shards, what params.json holds and how files are named follows
Meta's published files; every choice can be made by ``Spec``.
"""

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sentencepiece
import torch

Tensors = dict[str, torch.Tensor]
Layout = Literal["separate", "packed", "transposed", "apart"]

COLUMN_EMBEDDING = frozenset({"llama-1", "llama-2", "code-llama", "code-llama-70b-python", "llama-guard-1"})
"""Families whose embedding is cut by columns; they have a sentencepiece tokenizer."""

SENTENCEPIECE_SIZE = 320
TIKTOKEN_RANKS = 320
TIKTOKEN_SPECIALS = 256

_SCALED = frozenset({"llama-3.1", "llama-3.2", "llama-3.3", "llama-guard-3", "llama-guard-3-1b"})
_WITH_FREQUENCIES = frozenset({"llama-1", "llama-2", "llama-guard-1"})
_THETA = {"code-llama": 1e6, "code-llama-70b-python": 1e4}


@dataclass(frozen=True, slots=True)
class Spec:
    """One synthetic checkpoint; sizes in elements."""

    family: str = "llama-2"
    dim: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    multiple_of: int = 16
    ffn_dim_multiplier: float | None = None
    vocab: int | None = None
    shards: int = 1
    dtype: torch.dtype = torch.bfloat16
    norm_dtype: torch.dtype | None = None
    """Of the norms, where it differs from that of the other tensors."""
    equal_norms: bool = False
    """Norms are the same in all shards; in Meta's own they differ slightly."""
    norm_eps: float = 1e-5
    tied: bool = False
    """Embedding and output are one storage, as Llama 3.2 has them."""
    copied: bool = False
    """Embedding and output are equal, in two storages, as a re-saved Llama 3.2 has them."""
    doubled_kv: bool = False
    """Shards 2j and 2j+1 hold the same key heads; ``kv_heads`` counts both."""
    nested_params: bool = False
    nested_state: bool = False
    legacy: bool = False
    layout: Layout = "separate"
    """Each tensor in its own storage, all in one, the matrices stored transposed, or elements apart."""
    naming: str = "consolidated.{:02d}.pth"
    tokenizer: Literal["inside", "parent", "none"] = "inside"
    checklist: bool = True
    seed: int = 0

    @property
    def stored_kv_heads(self) -> int:
        """Key heads as params.json counts them."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.dim // self.heads

    @property
    def ffn_dim(self) -> int:
        """Rows of w1 by Meta's formula."""
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * ((hidden + self.multiple_of - 1) // self.multiple_of)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; the synthetic tokenizer's size where nothing else is said."""
        if self.vocab is not None:
            return self.vocab
        return SENTENCEPIECE_SIZE if self.by_columns else TIKTOKEN_RANKS + TIKTOKEN_SPECIALS

    @property
    def by_columns(self) -> bool:
        """Whether the embedding is cut by columns."""
        return self.family in COLUMN_EMBEDDING

    @property
    def theta(self) -> float:
        """Base of the rotary frequencies."""
        return _THETA.get(self.family, 1e4 if self.by_columns else 5e5)


LLAMA_2_70B = Spec(
    "llama-2", 8192, 80, 64, 8, multiple_of=4096, ffn_dim_multiplier=1.3, vocab=32000, shards=8, checklist=False,
    tokenizer="none",
)  # fmt: skip
LLAMA_31_405B_MP16 = Spec(
    "llama-3.1", 16384, 126, 128, 16, multiple_of=4096, ffn_dim_multiplier=1.2, vocab=128256, shards=16,
    checklist=False, tokenizer="none",
)  # fmt: skip


def make_params(spec: Spec) -> dict[str, object]:
    """Give the fields of params.json in the order in which Meta writes them for this family."""
    fields: dict[str, object] = {"dim": spec.dim}
    if spec.by_columns:
        fields["multiple_of"] = spec.multiple_of
    if spec.ffn_dim_multiplier is not None or not spec.by_columns:
        fields["ffn_dim_multiplier"] = spec.ffn_dim_multiplier or 1.0
    if not spec.by_columns:
        fields["multiple_of"] = spec.multiple_of
    fields["n_heads"] = spec.heads
    if spec.kv_heads is not None:
        fields["n_kv_heads"] = spec.kv_heads
    fields |= {"n_layers": spec.layers, "norm_eps": spec.norm_eps}
    if spec.family in _THETA or not spec.by_columns:
        fields["rope_theta"] = spec.theta
    if spec.family in _SCALED:
        fields["use_scaled_rope"] = True
    if spec.family in _WITH_FREQUENCIES:
        fields["vocab_size"] = -1
    elif not spec.by_columns:
        fields["vocab_size"] = spec.vocab_size
    return fields


def shapes(spec: Spec) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
    """Give each tensor's name, whole shape, and the axis on which it is cut (None: replicated)."""
    dim, ffn, vocab = spec.dim, spec.ffn_dim, spec.vocab_size
    keys = spec.stored_kv_heads * spec.head_dim
    yield "tok_embeddings.weight", (vocab, dim), 1 if spec.by_columns else 0
    for layer in range(spec.layers):
        yield f"layers.{layer}.attention.wq.weight", (dim, dim), 0
        yield f"layers.{layer}.attention.wk.weight", (keys, dim), 0
        yield f"layers.{layer}.attention.wv.weight", (keys, dim), 0
        yield f"layers.{layer}.attention.wo.weight", (dim, dim), 1
        yield f"layers.{layer}.feed_forward.w1.weight", (ffn, dim), 0
        yield f"layers.{layer}.feed_forward.w3.weight", (ffn, dim), 0
        yield f"layers.{layer}.feed_forward.w2.weight", (dim, ffn), 1
        yield f"layers.{layer}.attention_norm.weight", (dim,), None
        yield f"layers.{layer}.ffn_norm.weight", (dim,), None
    yield "norm.weight", (dim,), None
    yield "output.weight", (vocab, dim), 0


def write_checkpoint(folder: Path, spec: Spec, tokenizer: Path | None = None) -> Path:
    """Write a checkpoint with random weights and give its folder back.

    ``tokenizer`` is the tokenizer file to put beside it; None leaves it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(spec.seed)
    shards: list[Tensors] = [{} for _ in range(spec.shards)]
    for name, shape, axis in shapes(spec):
        if name == "output.weight" and (spec.tied or spec.copied):
            parts = [shard["tok_embeddings.weight"] for shard in shards]
            parts = [part.clone() for part in parts] if spec.copied else parts
        else:
            parts = _make_parts(spec, name, shape, axis, generator)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part
    if spec.family in _WITH_FREQUENCIES:
        for shard in shards:
            exponents = torch.arange(0, spec.head_dim, 2).float() / spec.head_dim
            shard["rope.freqs"] = (1.0 / spec.theta**exponents).to(spec.dtype)
    for number, shard in enumerate(shards):
        state: object = _lay_out(shard, spec.layout)
        state = {"model": state} if spec.nested_state else state
        path = folder / spec.naming.format(number)
        path.parent.mkdir(exist_ok=True)
        torch.save(state, path, _use_new_zipfile_serialization=not spec.legacy)
    write_params(folder, spec)
    if tokenizer is not None and spec.tokenizer != "none":
        place = folder if spec.tokenizer == "inside" else folder.parent
        (place / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    if spec.checklist:
        write_checklist(folder)
    return folder


def write_params(folder: Path, spec: Spec) -> None:
    """Write params.json: one line, without a newline for Llama 1."""
    fields: object = make_params(spec)
    if spec.nested_params:
        fields = {"model": fields}
    ending = "" if spec.family == "llama-1" else "\n"
    (folder / "params.json").write_text(json.dumps(fields) + ending, encoding="utf-8")


def write_checklist(folder: Path) -> None:
    """Write checklist.chk as Meta's downloads have it: MD5, two spaces, name."""
    lines = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "checklist.chk"
    ]
    (folder / "checklist.chk").write_text("".join(lines), encoding="utf-8")


def write_sparse(folder: Path, spec: Spec) -> Path:
    """Write shards of any size whose data is a hole: neither memory nor disk is filled."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(spec.shards):
        state = {
            name: torch.empty(cut(shape, axis, spec.shards), dtype=spec.dtype)
            for name, shape, axis in shapes(spec)
        }
        with torch.serialization.skip_data():
            torch.save(state, folder / spec.naming.format(number))
    write_params(folder, spec)
    return folder


def cut(shape: tuple[int, ...], axis: int | None, shards: int) -> tuple[int, ...]:
    """Give the shape of a shard's part."""
    return tuple(size // shards if place == axis else size for place, size in enumerate(shape))


def _make_parts(
    spec: Spec, name: str, shape: tuple[int, ...], axis: int | None, generator: torch.Generator
) -> list[torch.Tensor]:
    if axis is None:
        # Real shards' norms differ slightly from one another; those of the first count.
        whole = 1 + 0.1 * torch.randn(shape, generator=generator)
        drift = 0.0 if spec.equal_norms else 0.01
        return [(whole + drift * shard).to(spec.norm_dtype or spec.dtype) for shard in range(spec.shards)]
    whole = torch.randn(shape, generator=generator) * (
        1.0 if axis == 0 and shape[0] == spec.vocab_size else 0.2
    )
    if spec.doubled_kv and name.endswith(("wk.weight", "wv.weight")):
        heads = whole.view(spec.stored_kv_heads, spec.head_dim, spec.dim)
        heads[1::2] = heads[0::2]
    return [part.contiguous() for part in whole.to(spec.dtype).chunk(spec.shards, dim=axis)]


def _lay_out(tensors: Tensors, layout: Layout) -> Tensors:
    if layout == "separate":
        return tensors
    if layout == "transposed":
        return {
            name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor
            for name, tensor in tensors.items()
        }
    if layout == "apart":
        return {name: _take_apart(tensor) for name, tensor in tensors.items()}
    packed: Tensors = {}
    for dtype in {tensor.dtype for tensor in tensors.values()}:
        mine = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
        # One element before the first, so that no view begins where its storage does.
        storage = torch.cat([torch.zeros(1, dtype=dtype), *(tensor.reshape(-1) for tensor in mine.values())])
        offset = 1
        for name, tensor in mine.items():
            packed[name] = storage[offset : offset + tensor.numel()].view(tensor.shape)
            offset += tensor.numel()
    return {name: packed[name] for name in tensors}


def _take_apart(tensor: torch.Tensor) -> torch.Tensor:
    """Give a view of a larger storage: every other row and every third column, neither from the first on."""
    steps = [slice(1, None, 2), slice(2, None, 3)][: tensor.dim()]
    storage = torch.zeros(
        [size * step.step + step.start for size, step in zip(tensor.shape, steps, strict=True)]
    )
    view = storage.to(tensor.dtype)[tuple(steps)]
    return view[tuple(slice(size) for size in tensor.shape)].copy_(tensor)


def rezip(
    path: Path, *, compression: int = zipfile.ZIP_STORED, change: Callable[[str, bytes], bytes] | None = None
) -> None:
    """Write a .pth file again with Python's zipfile, which aligns nothing.

    ``change`` may give other content for a record, by its name.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(name, content) if change else content)
    path.write_bytes(target.getvalue())


def write_sentencepiece(path: Path, size: int = SENTENCEPIECE_SIZE) -> Path:
    """Train a small sentencepiece tokenizer of the kind that Llama 1 and 2 have."""
    words = (
        "the quick brown fox",
        "jumps over",
        "a lazy dog",
        "while it rains in spain",
        "and snows elsewhere",
    )
    sentences = [f"{first} {second} {third}" for first in words for second in words for third in words]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        hard_vocab_limit=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def write_tiktoken(path: Path, ranks: int = TIKTOKEN_RANKS) -> Path:
    """Write a small file of lines ``base64 rank`` of the kind that Llama 3 has."""
    tokens = [bytes([value]) for value in range(256)]
    letters = b"etaoinshrdlu"
    pairs = [bytes([first, second]) for first in b" " + letters for second in letters]
    tokens += pairs[: ranks - 256]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path.write_text("".join(lines), encoding="ascii")
    return path
