"""Sizes of whole models, in elements, and which layers are of which kind; never those of published models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Numbers = Sequence[tuple[int, int]]
"""A layer's number in Meta's dialect, and that in Transformers', for each layer of a kind."""


class Sizes(Protocol):
    """What a table of rules asks of a model's dimensions."""

    @property
    def head_dim(self) -> int:
        """Size of a head that is rotated."""

    @property
    def layers(self) -> int:
        """Layers of the text model."""

    def size(self, symbol: str) -> int:
        """Give the size that a symbol of a rule's shape stands for."""

    def numbers(self, kind: str) -> Numbers:
        """Give the layers of a kind."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Sizes of a text model; read from params.json and from the tensors."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    """As stored, all copies counted."""
    head_dim: int
    ffn_dim: int
    """Of the layers without experts; 0 where there is none."""
    vocab: int

    def size(self, symbol: str) -> int:
        """Give the size that a symbol of a rule's shape stands for."""
        return self.list_sizes()[symbol]

    def list_sizes(self) -> Mapping[str, int]:
        """Give all sizes by their symbols."""
        return {
            "dim": self.dim,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "ffn": self.ffn_dim,
            "vocab": self.vocab,
        }

    def numbers(self, kind: str) -> Numbers:  # noqa: ARG002  all layers are alike
        """Give the layers, which have the same numbers in both dialects."""
        return [(layer, layer) for layer in range(self.layers)]


@dataclass(frozen=True, slots=True)
class VisionEncoder:
    """Sizes of an image encoder."""

    width: int
    layers: int
    global_layers: int
    """Layers behind the first ones, which see all tiles; 0 in Llama 4."""
    heads: int
    ffn_dim: int
    channels: int
    patch: int
    """Side of a patch, in pixels."""
    positions: int
    """Patches of a tile and its class token."""
    tiles: int
    """Most tiles of an image along each side; 1 in Llama 4."""
    output_dim: int
    """Width of what the text model's projector takes."""

    @property
    def image_size(self) -> int:
        """Side of a tile, in pixels."""
        return int((self.positions - 1) ** 0.5) * self.patch

    def list_sizes(self) -> Mapping[str, int]:
        """Give the sizes that rules ask for by their symbols."""
        return {
            "width": self.width,
            "hidden": self.ffn_dim,
            "pixels": self.channels * self.patch**2,
            "positions": self.positions,
            "features": self.output_dim,
        }


class _TextSizes:
    """What of a model with more than Llama's layers is its text model's."""

    __slots__ = ()

    text: Dimensions

    @property
    def dim(self) -> int:
        """Width of the text model."""
        return self.text.dim

    @property
    def vocab(self) -> int:
        """Rows of the output."""
        return self.text.vocab

    @property
    def heads(self) -> int:
        """Query heads of the text model."""
        return self.text.heads

    @property
    def kv_heads(self) -> int:
        """Key heads of the text model."""
        return self.text.kv_heads

    @property
    def head_dim(self) -> int:
        """Size of a head of the text model."""
        return self.text.head_dim

    @property
    def ffn_dim(self) -> int:
        """Feed-forward size of the text model's layers without experts; 0 where there is none."""
        return self.text.ffn_dim


@dataclass(frozen=True, slots=True)
class MllamaDimensions(_TextSizes):
    """Sizes of Llama 3.2 Vision, whose text model has layers that attend to images between its own."""

    text: Dimensions
    """Its layers are those of self-attention, params.json's ``n_layers``."""
    cross_attention_layers: int
    """As params.json counts them; see ``cross_numbers``."""
    extra_tokens: int
    """Rows of the embedding behind the vocabulary's: the image token and its like, 8 in all published models."""
    vision: VisionEncoder

    @property
    def layers(self) -> int:
        """Layers of the text model, of both kinds."""
        return self.text.layers + len(self.cross_numbers)

    @property
    def cross_numbers(self) -> tuple[int, ...]:
        """Give the numbers in Transformers of the layers that attend to images (``cross_attention_layers``).

        Meta puts one before every k-th layer of self-attention, counted from the last (``llama3/multimodal/model.py``,
        ``_init_fusion_schedule``).
        """
        count = self.cross_attention_layers
        step = -(-self.text.layers // count)
        before = range(self.text.layers - 1, -1, -step)[:count][::-1]
        return tuple(layer + place for place, layer in enumerate(before))

    def size(self, symbol: str) -> int:
        """Give the size that a symbol of a rule's shape stands for."""
        sizes = {
            **self.text.list_sizes(),
            "head": self.head_dim,
            "one": 1,
            "extra": self.extra_tokens,
            **self.vision.list_sizes(),
            "tiles": self.vision.tiles,
        }
        return sizes[symbol]

    def numbers(self, kind: str) -> Numbers:
        """Give the layers of self-attention ("text"), of attention to images ("cross"), of the encoder."""
        cross = self.cross_numbers
        if kind == "cross":
            return list(enumerate(cross))
        if kind == "text":
            own = [number for number in range(self.layers) if number not in set(cross)]
            return list(enumerate(own))
        count = self.vision.layers if kind == "vision" else self.vision.global_layers
        return [(layer, layer) for layer in range(count)]


@dataclass(frozen=True, slots=True)
class Llama4Dimensions(_TextSizes):
    """Sizes of Llama 4, some of whose layers have experts."""

    text: Dimensions
    experts: int
    """In each layer that has any; 0 where none has."""
    expert_ffn_dim: int
    """Of each expert, and of the one that all tokens share."""
    moe_layers: tuple[int, ...]
    """The layers that have experts."""
    vision: VisionEncoder
    adapter_dim: int
    """Width of what the encoder's pixel shuffle gives to its adapter."""

    @property
    def layers(self) -> int:
        """Layers of the text model."""
        return self.text.layers

    def size(self, symbol: str) -> int:
        """Give the size that a symbol of a rule's shape stands for."""
        sizes = {
            **self.text.list_sizes(),
            "experts": self.experts,
            "expert_ffn": self.expert_ffn_dim,
            "experts_dim": self.experts * self.dim,
            "experts_ffn": self.experts * self.expert_ffn_dim,
            **self.vision.list_sizes(),
            "shuffled": self.adapter_dim,
        }
        return sizes[symbol]

    def numbers(self, kind: str) -> Numbers:
        """Give the text model's layers: all ("text"), those with experts ("moe"), the others ("dense"); or "vision"'s."""
        kinds = {
            "text": range(self.layers),
            "moe": self.moe_layers,
            "dense": [layer for layer in range(self.layers) if layer not in set(self.moe_layers)],
            "vision": range(self.vision.layers),
        }
        return [(layer, layer) for layer in kinds[kind]]


@dataclass(frozen=True, slots=True)
class MixtralDimensions(_TextSizes):
    """Sizes of Mixtral, all of whose layers have experts."""

    text: Dimensions
    """Its feed-forward size is that of each expert."""
    experts: int
    """In each layer."""
    stacked: bool
    """Whether the experts of a layer are one tensor, as the first files have them."""

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.text.layers

    def size(self, symbol: str) -> int:
        """Give the size that a symbol of a rule's shape stands for."""
        return self.experts if symbol == "experts" else self.text.size(symbol)

    def numbers(self, kind: str) -> Numbers:
        """Give the layers, which have the same numbers in both dialects."""
        return self.text.numbers(kind)


ModelDimensions = Dimensions | MllamaDimensions | Llama4Dimensions | MixtralDimensions
