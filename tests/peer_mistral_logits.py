"""Run under another transformers version: load models of Mistral's, and save the logits of a few tokens in each."""

import sys

import torch
from transformers import AutoModelForCausalLM

for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.save(model(tokens[None]).logits[0].double(), f"{folder}/logits.pt")
