"""Logits of Meta's own model code for a folder in Meta's format: llama-models under gloo, on the CPU.

Nothing of distconv takes part: ``Llama3.build`` finds the shards, reshards them where their number is
not that of the processes, loads them strictly, and its ``Transformer`` computes.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch

ROOT = Path(__file__).parents[1]


class Request(TypedDict):
    """What to load, and the sequences to run it on."""

    folder: str
    tokens: list[list[int]]
    processes: int
    dtype: str
    columns: bool
    seconds: float
    place: str
    """A folder for the rendezvous, the ranks' failures, the images if there are any, and the logits."""


@dataclass(frozen=True, slots=True)
class Images:
    """An image for each sequence, as Meta's transforms give it."""

    tiles: torch.Tensor
    """(sequences, tiles, channels, height, width), those that an image has not zeros."""
    ratios: list[tuple[int, int]]
    """Rows and columns of each image's tiles; Llama 4 has no use for them."""
    token: int
    """That stands for the image, or for each of its patches."""


@dataclass(frozen=True, slots=True)
class MetaCode:
    """The process that has Meta's code imported, and the folder for what passes between it and us."""

    process: "subprocess.Popen[str]"
    place: str


@contextlib.contextmanager
def start_meta_code() -> Iterator[MetaCode]:
    """Start the process, and end it with all that it started.

    One serves many requests, since importing Meta's code takes seconds.
    """
    with tempfile.TemporaryDirectory() as place, start(place) as process:
        try:
            yield MetaCode(process, place)
        finally:
            process.kill()  # ranks end with it


def meta_logits(
    code: MetaCode,
    folder: Path,
    tokens: Sequence[Sequence[int]],
    processes: int,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    columns: bool = False,
    images: Images | None = None,
    seconds: float = 120.0,
) -> np.ndarray:
    """Give the logits that Meta's code computes on rank 0: (sequences, length, vocabulary), float32.

    ``folder`` has consolidated.NN.pth, params.json and tokenizer.model; its vocabulary must be the
    tokenizer's. If there are not as many shards as ``processes``, Meta's ``reshard_mp`` makes as many:
    one number must divide the other, and there must be no more processes than key heads.
    ``dtype`` is that in which the model computes, whatever is stored; Meta's own choice is bfloat16.
    ``columns`` is for Llama 1, 2 and Code Llama, whose embedding is cut by columns and whose tokenizer
    is sentencepiece's; their shards must be as many as ``processes``, as those of Llama 4 must.
    ``images`` are for models that see: Llama 3.2 Vision, whose encoder may have any sizes, and Llama 4.
    Raises RuntimeError with the words of the rank that failed first, or when ``seconds`` are over.
    """
    place = tempfile.mkdtemp(dir=code.place)
    request: Request = {
        "folder": str(folder),
        "tokens": [list(sequence) for sequence in tokens],
        "processes": processes,
        "dtype": dtype,
        "columns": columns,
        "seconds": seconds,
        "place": place,
    }
    if images is not None:
        torch.save(asdict(images), Path(place, "images.pt"))
    failure = ask(code.process, request)
    if failure is None:
        log = Path(code.place, "log").read_text(encoding="utf-8", errors="replace")
        failure = f"the process ended: {log[-4000:]}"
    if failure:
        raise RuntimeError(f"{folder}: {failure}")
    return np.load(Path(place, "logits.npy"))


def start(place: str) -> "subprocess.Popen[str]":
    """Start the process; its temporary files and what it says go to ``place``."""
    with Path(place, "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.meta_ranks"],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": place},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def ask(process: "subprocess.Popen[str]", request: Request) -> str | None:
    """Send one request, and give what went wrong: empty if nothing did, None if the process is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    return json.loads(line)["failure"] if line else None
