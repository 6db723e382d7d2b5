"""Run as a process of its own: Meta's model code (llama-models) on the CPU, one process a shard.

Each line of standard input is a request in JSON, as ``tests/meta_model.py`` makes them; each line of
standard output answers one. Meta's code is imported once, and the ranks of every request are forked.
What Meta's code cannot do without CUDA, images or its own vocabulary is replaced around it; how it
finds, reshards and loads shards, and how it computes, is not touched.
"""

import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import sentencepiece
import torch
from fairscale.nn.model_parallel.initialize import initialize_model_parallel
from fairscale.nn.model_parallel.layers import ParallelEmbedding
from torch import distributed
from torch.multiprocessing import _prctl_pr_set_pdeathsig
from torch.multiprocessing.spawn import ProcessContext, ProcessException, start_processes

from tests.meta_images import load_llama_4, run_llama_4, run_vision, shrink_encoder
from tests.meta_model import Images, Request


def import_generation() -> ModuleType:
    """Import Meta's loader, which asks for torchvision though no model needs any of it."""
    transforms = ModuleType("torchvision.transforms")
    transforms.functional = ModuleType("torchvision.transforms.functional")  # type: ignore[attr-defined]
    sys.modules.setdefault("torchvision", ModuleType("torchvision"))
    sys.modules.setdefault("torchvision.transforms", transforms)
    from llama_models.llama3 import generation

    return generation


def adapt(request: Request) -> None:
    """Make Meta's loader take the folder's tokenizer, and the dtype that is asked for.

    Its own tokenizer is the one in its package, and the model has to have as many words.
    """
    generation = import_generation()
    dtype = getattr(torch, request["dtype"])
    torch.set_default_tensor_type = lambda _kind: torch.set_default_dtype(dtype)
    path = Path(request["folder"]) / "tokenizer.model"
    if request["columns"]:
        adapt_to_llama_2(generation, path)
    else:
        tokenizer = generation.Tokenizer(path)
        generation.Tokenizer.get_instance = lambda: tokenizer


def adapt_to_llama_2(generation: Any, path: Path) -> None:
    """Make the model that of Meta's `llama` repository, which PyPI does not have.

    It differs in the embedding, which is cut by columns, in defaults of params.json, and in that it
    takes no notice of ``rope.freqs``.
    """
    from llama_models.llama3 import model

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer.n_words = tokenizer.vocab_size()
    make_args = generation.ModelArgs

    class Llama2(generation.Transformer):
        def load_state_dict(self, state_dict: dict[str, torch.Tensor], strict: bool = True) -> object:  # noqa: FBT002
            state_dict.pop("rope.freqs", None)
            return super().load_state_dict(state_dict, strict=strict)

    model.VocabParallelEmbedding = ParallelEmbedding
    generation.Transformer = Llama2
    generation.Tokenizer.get_instance = lambda: tokenizer
    generation.ChatFormat = lambda _tokenizer: None
    generation.ModelArgs = lambda **params: make_args(
        **{"rope_theta": 1e4} | params | {"vocab_size": tokenizer.n_words}
    )


def compute(rank: int, request: Request) -> np.ndarray:
    """Load this rank's part and run the model on all sequences; logits (sequences, length, vocab), float32."""
    os.environ.update(LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{request['place']}/rendezvous",
        rank=rank,
        world_size=request["processes"],
    )
    logits = run_model(rank, request).numpy()
    distributed.barrier()
    distributed.destroy_process_group()
    return logits


def read_params(request: Request) -> dict[str, object]:
    """Read params.json, whose keys tell the models apart."""
    found: dict[str, object] = json.loads(Path(request["folder"], "params.json").read_text())
    return found


def run_model(rank: int, request: Request) -> torch.Tensor:
    """Let Meta's code for this kind of model load the rank's part, and compute."""
    folder, tokens = Path(request["folder"]), torch.tensor(request["tokens"])
    path = Path(request["place"], "images.pt")
    images = Images(**torch.load(path)) if path.exists() else None
    params = read_params(request)
    if "vision_args" in params:
        initialize_model_parallel(request["processes"])
        with torch.inference_mode():
            return run_llama_4(load_llama_4(folder, rank, tokens), tokens, images)
    adapt(request)
    if "vision_chunk_size" in params:
        shrink_encoder(folder)
    llama = import_generation().Llama3.build(
        request["folder"],
        max_seq_len=tokens.shape[1],
        max_batch_size=tokens.shape[0],
        world_size=request["processes"],
        device="cpu",
    )
    if "vision_chunk_size" not in params:
        return llama.model.forward(tokens, 0)
    with torch.inference_mode():
        return run_vision(llama.model, tokens, images)


def run_rank(rank: int, request: Request) -> None:
    """Be one rank; rank 0 leaves the logits, one that fails its words and when."""
    # A process that waits in gloo hears no other signal handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    place = Path(request["place"])
    try:
        logits = compute(rank, request)
    except Exception:
        failure = [time.monotonic(), rank, traceback.format_exc()]
        (place / f"failure-{rank}.json").write_text(json.dumps(failure))
        raise
    if rank == 0:
        np.save(place / "logits.npy", logits)


def wait(context: ProcessContext, seconds: float) -> bool:
    """Wait for all ranks, and tell whether they ended in time; raises ProcessException when one fails.

    None is left afterwards.
    """
    end = time.monotonic() + seconds
    try:
        while not context.join(timeout=max(0, end - time.monotonic()), grace_period=0):
            if time.monotonic() >= end:
                return False
        return True
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def answer(request: Request) -> str:
    """Run one request; gives what went wrong, or nothing."""
    if "vision_chunk_size" in read_params(request):
        # What its collectives import in each rank takes seconds.
        import_module("torch._dynamo")
    context = start_processes(
        run_rank, (request,), nprocs=request["processes"], join=False, start_method="fork"
    )
    try:
        if not wait(context, request["seconds"]):
            return f"Meta's code did not end within {request['seconds']} s"
    except ProcessException as error:
        # One that fails takes others with it: the first one's words count.
        failures = [json.loads(path.read_text()) for path in Path(request["place"]).glob("failure-*.json")]
        if not failures:
            return str(error)
        _when, rank, words = min(failures)
        return f"rank {rank} of {request['processes']}: {words}"
    return ""


def main() -> None:
    """Answer requests until standard input ends, or who asks does."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    import_generation()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Meta's code prints is no answer
    for line in sys.stdin:
        print(json.dumps({"failure": answer(json.loads(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
