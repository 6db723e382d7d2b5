"""Run under an older Transformers: saves models with random weights as that version does.

Each line of standard input is a task in JSON: ``folder``; ``config``, the arguments of a LlamaConfig;
``dtype``; ``safe``, whether to save safetensors or what torch saves.
"""

import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

for line in sys.stdin:
    task = json.loads(line)
    torch.manual_seed(0)
    config = LlamaConfig(**task["config"], torch_dtype=task["dtype"])
    model = LlamaForCausalLM(config).to(getattr(torch, task["dtype"]))
    model.save_pretrained(task["folder"], safe_serialization=task["safe"], max_shard_size="30KB")
