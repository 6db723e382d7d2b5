"""Small models in Transformers' format, made by Transformers itself, and what Meta's layout must hold of them.

Nothing here comes from distconv: models are made of a ``LlamaConfig`` with random weights and saved by
``save_pretrained``, and their tensors are brought to Meta's order by reshape and transpose.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

from tests import reference
from tests.checkpoints import SENTENCEPIECE_SIZE, TIKTOKEN_RANKS, TIKTOKEN_SPECIALS, Spec, Tensors, shapes

Files = Literal["single", "index", "bin", "bin-index"]

_CONTEXTS = {"llama-2": 4096, "code-llama": 16384, "llama-3": 8192, "llama-3.1": 131072, "llama-3.2": 131072}
_FACTORS = {"llama-3.1": 8.0, "llama-3.2": 32.0}
_THETAS = {"llama-2": 1e4, "code-llama": 1e6}
_CHUNK_BYTES = 20_000
_SPECIAL = [f"<|reserved_special_token_{number}|>" for number in range(TIKTOKEN_SPECIALS - 5)]
_SPECIAL[:0] = ["<|begin_of_text|>", "<|end_of_text|>"]
_SPECIAL[6:6] = ["<|start_header_id|>", "<|end_header_id|>"]
_SPECIAL[9:9] = ["<|eot_id|>"]
"""As ``tokenizer.py`` of Meta's ``llama3`` repository has them."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model; sizes in elements."""

    family: str = "llama-3"
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 8
    ffn_dim: int = 176
    layers: int = 2
    padding: int = 0
    """Rows of the vocabulary that no token has."""
    dtype: torch.dtype = torch.bfloat16
    norm_dtype: torch.dtype | None = None
    """Of the norms, where it differs from that of the other tensors."""
    tied: bool = False
    files: Files = "single"
    seed: int = 0

    @property
    def dim(self) -> int:
        """Width of the model."""
        return self.heads * self.head_dim

    @property
    def by_columns(self) -> bool:
        """Whether Meta's ranks hold columns of the embedding."""
        return self.family in _THETAS

    @property
    def tokens(self) -> int:
        """Tokens of the tokenizer, special ones included."""
        return SENTENCEPIECE_SIZE if self.by_columns else TIKTOKEN_RANKS + TIKTOKEN_SPECIALS

    @property
    def first_special(self) -> int:
        """Where text begins."""
        return 1 if self.by_columns else TIKTOKEN_RANKS

    @property
    def theta(self) -> float:
        """Base of the rotary frequencies."""
        return _THETAS.get(self.family, 5e5)


def name_of(value: object) -> str:
    """Name a case of a test by what its model is, or by its number."""
    if not isinstance(value, ModelSpec):
        return str(value)
    tied = "-tied" if value.tied else ""
    return f"{value.family}-{value.kv_heads}-of-{value.heads}-{value.files}{tied}"


def make_config(spec: ModelSpec) -> LlamaConfig:
    """Give the configuration, as Transformers 5 has it."""
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": spec.theta}
    if spec.family in _FACTORS:
        rope |= {
            "rope_type": "llama3",
            "factor": _FACTORS[spec.family],
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return LlamaConfig(
        hidden_size=spec.dim,
        intermediate_size=spec.ffn_dim,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        vocab_size=spec.tokens + spec.padding,
        max_position_embeddings=_CONTEXTS[spec.family],
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=spec.tied,
        bos_token_id=spec.first_special,
        eos_token_id=spec.first_special + 1,
        dtype=spec.dtype,
    )


def make_old_config(spec: ModelSpec) -> dict[str, object]:
    """Give the arguments of a ``LlamaConfig`` of Transformers 4."""
    values = make_config(spec).to_dict()
    rope = values.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    kept = {
        key: values[key]
        for key in values
        if key.startswith(("num_", "hidden_size", "intermediate", "max_", "tie_"))
    }
    kept |= {key: values[key] for key in ("vocab_size", "rms_norm_eps", "bos_token_id", "eos_token_id")}
    return kept | {"rope_theta": theta, "rope_scaling": rope if spec.family in _FACTORS else None}


def make_model(spec: ModelSpec) -> LlamaForCausalLM:
    """Make a model with random weights, norms included."""
    torch.manual_seed(spec.seed)
    model = LlamaForCausalLM(make_config(spec))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
        else:
            # Much larger than what training begins with, so that every weight shows in the logits.
            torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else 0.2)
        parameter.data = parameter.data.to((spec.norm_dtype if "norm" in name else None) or spec.dtype)
    return model


def write_model(folder: Path, spec: ModelSpec, tokenizer: Path) -> Tensors:
    """Save a model with its tokenizer and give its tensors; ``tokenizer`` is the file that Meta's code has."""
    model = make_model(spec)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if spec.tied:
        del tensors["lm_head.weight"]
    if spec.files in {"single", "index"}:
        model.save_pretrained(folder, max_shard_size=_CHUNK_BYTES if spec.files == "index" else "1GB")
    else:
        folder.mkdir()
        model.config.architectures = ["LlamaForCausalLM"]
        model.config.save_pretrained(folder)
        _save_by_torch(folder, tensors, 3 if spec.files == "bin-index" else 1)
    write_tokenizer(folder, spec, tokenizer)
    return tensors


def _save_by_torch(folder: Path, tensors: Tensors, count: int) -> None:
    """Save as Transformers 4 did before safetensors."""
    if count == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(count):
        name = f"pytorch_model-{number + 1:05d}-of-{count:05d}.bin"
        part = dict(list(tensors.items())[number::count])
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, spec: ModelSpec, tokenizer: Path) -> None:
    """Put the tokenizer beside a model: sentencepiece's own file, or the table that Transformers makes of ranks."""
    if spec.by_columns:
        (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    else:
        (folder / "tokenizer.json").write_text(_make_table(tokenizer), encoding="utf-8")


@functools.cache
def _make_table(tokenizer: Path) -> str:
    """Give tokenizer.json."""
    converter = TikTokenConverter(str(tokenizer), extra_special_tokens=_SPECIAL)
    return str(converter.converted().to_str())


def to_meta(tensors: Tensors, spec: ModelSpec) -> Tensors:
    """Give the whole tensors by Meta's names: split halves of a head turned to neighbouring pairs."""
    names = {reference.rename(name): name for name, _shape, _axis in shapes(Spec(layers=spec.layers))}
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = tensor.reshape(-1, 2, spec.head_dim // 2, spec.dim)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)  # noqa: PLW2901
        kept = spec.tokens if "embed" in name or "lm_head" in name else len(tensor)
        found[names[name]] = tensor[:kept]
    return found


def compute_logits(folder: Path, tokens: list[list[int]]) -> torch.Tensor:
    """Let Transformers load a folder and compute in float32; (sequences, length, vocabulary)."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor(tokens)).logits
