"""Logits of torchtune's models, for folders in Meta's layout that its own checkpointer loads."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

READER = Path(__file__).with_name("torchtune_reader.py")


@dataclass(frozen=True, slots=True)
class TuneModel:
    """A folder of one shard, and how torchtune builds its model.

    ``kind`` is the checkpointer's name of the model's type; ``sizes`` are the builder's arguments.
    """

    folder: Path
    kind: str
    builder: str
    sizes: dict[str, float]


def torchtune_logits(
    python: Path, models: Sequence[TuneModel], tokens: list[list[int]], place: Path
) -> list[np.ndarray]:
    """Give each model's logits for all sequences: (sequences, length, vocabulary), float32."""
    tasks = [
        {
            "folder": str(model.folder),
            "output": str(place / "tune"),
            "type": model.kind,
            "builder": model.builder,
            "sizes": {**model.sizes, "max_seq_len": len(tokens[0])},
            "tokens": tokens,
            "logits": str(place / f"{number}.npy"),
        }
        for number, model in enumerate(models)
    ]
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    ended = subprocess.run([python, READER], input=lines, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [np.load(place / f"{number}.npy") for number in range(len(models))]
