"""Convert a small synthetic Llama 2 on a local Ray, verify it, load it, and let it speak."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SHARDS, DIM, HEADS, KV_HEADS, LAYERS, FFN, VOCAB = 8, 512, 16, 8, 4, 1536, 800


def write_tokenizer(folder: Path) -> None:
    """Train a sentencepiece tokenizer, with Meta's settings, on this project's own licence."""
    import sentencepiece

    text = Path(__file__).parent.parent / "LICENSE"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=VOCAB, model_type="bpe",
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, add_dummy_prefix=True,
        remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()


def write_checkpoint(folder: Path) -> None:
    """Write consolidated.00.pth to .07.pth, cut as Meta cuts them, with random weights."""
    import torch

    params = {
        "dim": DIM, "multiple_of": FFN, "ffn_dim_multiplier": 1.0, "n_heads": HEADS, "n_kv_heads": KV_HEADS,
        "n_layers": LAYERS, "norm_eps": 1e-05, "vocab_size": -1,
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params) + "\n")
    torch.manual_seed(0)
    head = DIM // HEADS

    def part(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns) * 0.05).to(torch.bfloat16)

    for shard in range(SHARDS):
        state = {
            "tok_embeddings.weight": part(VOCAB, DIM // SHARDS),
            "norm.weight": torch.ones(DIM, dtype=torch.bfloat16),
            "output.weight": part(VOCAB // SHARDS, DIM),
            "rope.freqs": torch.ones(head // 2),
        }
        for layer in range(LAYERS):
            prefix = f"layers.{layer}."
            state |= {
                prefix + "attention.wq.weight": part(DIM // SHARDS, DIM),
                prefix + "attention.wk.weight": part(KV_HEADS * head // SHARDS, DIM),
                prefix + "attention.wv.weight": part(KV_HEADS * head // SHARDS, DIM),
                prefix + "attention.wo.weight": part(DIM, DIM // SHARDS),
                prefix + "feed_forward.w1.weight": part(FFN // SHARDS, DIM),
                prefix + "feed_forward.w2.weight": part(DIM, FFN // SHARDS),
                prefix + "feed_forward.w3.weight": part(FFN // SHARDS, DIM),
                prefix + "attention_norm.weight": torch.ones(DIM, dtype=torch.bfloat16),
                prefix + "ffn_norm.weight": torch.ones(DIM, dtype=torch.bfloat16),
            }
        torch.save(state, folder / f"consolidated.{shard:02d}.pth")


def run(*arguments: str) -> None:
    """Run a command as a person would, showing it first."""
    print("\n$ distconv", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "distconv", *arguments], check=True)


def main() -> None:
    """Go the whole way."""
    with tempfile.TemporaryDirectory(prefix="distconv-demo-") as folder:
        source, output = Path(folder, "llama-2-demo"), Path(folder, "llama-2-demo-hf")
        source.mkdir()
        print(f"A synthetic Llama 2 in {SHARDS} shards, {HEADS} heads, {KV_HEADS} key heads: {source}")
        write_tokenizer(source)
        write_checkpoint(source)
        run("inspect", str(source))
        run("convert", str(source), str(output), "--workers", "2", "--max-shard-size", "4MB")
        run("verify", str(output), "--against", str(source))
        from transformers import AutoModelForCausalLM, AutoTokenizer

        print("\nLoading it with AutoModelForCausalLM and AutoTokenizer")
        model = AutoModelForCausalLM.from_pretrained(output)
        tokenizer = AutoTokenizer.from_pretrained(output)
        prompt = tokenizer("Licensed under the", return_tensors="pt")
        made = model.generate(**prompt, max_new_tokens=8, do_sample=False)  # type: ignore[misc]  # of its own self
        print("Its weights are random, and so is what it says:", repr(tokenizer.decode(made[0])))


if __name__ == "__main__":
    main()
