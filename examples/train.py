"""Train a model for a step with FSDP2, and save it as trainers do: torchrun --nproc-per-node 2 train.py."""

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

dist.init_process_group("gloo")
model = AutoModelForCausalLM.from_pretrained("llama-3-8b-hf", dtype=torch.float32)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.arange(64).reshape(2, 32)
model(input_ids=tokens, labels=tokens).loss.backward()
optimizer.step()
save({"model": model.state_dict()}, checkpoint_id="run/step-1")
dist.destroy_process_group()
