"""Run under torchtune: its checkpointer for Meta's files loads a folder of one shard, and its model computes.

Each line of standard input is a task in JSON: ``folder``; ``output``, which may not lie in it; ``type``,
the checkpointer's name of the model; ``builder``, a function in the module of torchtune.models that is
named like it, and its ``sizes``; ``tokens``; ``logits``, the .npy file to write: (sequences, length,
vocabulary), float32.
"""

import json
import sys
from importlib import import_module

import numpy as np
import torch
from torchtune.training import FullModelMetaCheckpointer

for line in sys.stdin:
    task = json.loads(line)
    checkpointer = FullModelMetaCheckpointer(
        checkpoint_dir=task["folder"],
        checkpoint_files=["consolidated.00.pth"],
        model_type=task["type"],
        output_dir=task["output"],
    )
    build = getattr(import_module(f"torchtune.models.{task['builder']}"), task["builder"])
    model = build(**task["sizes"])
    model.load_state_dict(checkpointer.load_checkpoint()["model"], strict=True)
    with torch.inference_mode():
        np.save(task["logits"], model(torch.tensor(task["tokens"])).float().numpy())
