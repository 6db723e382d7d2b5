"""Questions about models of Transformers, answered in a process of their own.

What Transformers and torch take when they are imported is several times what moving takes, and goes with that process.
Where they are imported already, nothing is gained by another one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from distconv.errors import ConversionError, InputError, escape

_MODULE = "distconv.sidecars.looks"
_ROOT = str(Path(__file__).parents[2])
"""Where this package is found, which may be by the folder in which one is."""
_LIMIT_BYTES = 256 << 20
"""Of an answer, which names a model's tensors."""


def make_question(
    kind: str, config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], least_tensors: int
) -> str:
    """Make a question of the arguments of ``looks.look``."""
    return json.dumps([kind, config, shapes, least_tensors])


class Answerer:
    """A process that answers one question, and imports meanwhile what it needs for that."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        """Ask ``process``, which writes what is wrong to ``said``."""
        self._process, self._said = process, said

    def answer(self, path: str, question: str) -> dict[str, Any]:
        """Ask and wait, see ``ask``; once only."""
        answer = _exchange(self._process, f"{question}\n".encode())
        if self._process.wait() == 0:
            found: dict[str, Any] = json.loads(answer)
            return found
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").splitlines()
        raise ConversionError(
            f"{path}: the process that makes a model of it without data {_describe_end(self._process.returncode)}"
            + (f" ({escape(words[-1]):.200})" if words else "")
        )


@contextlib.contextmanager
def start_answerer() -> Iterator[Answerer]:
    """Start what a question is answered by, which has ended when the block does."""
    # What can be imported there is what can be here, this package too, and nothing of the folder in which it is started.
    paths = sys.path if _ROOT in sys.path else [_ROOT, *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(os.path.isabs, paths))}
    command = [sys.executable, "-P", "-m", _MODULE]
    with tempfile.TemporaryFile() as said, subprocess.Popen(  # noqa: S603  a module of our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment,
        cwd=os.sep,  # in a folder that is gone torch's libraries do not load
    ) as process:  # fmt: skip
        try:
            yield Answerer(process, said)
        finally:
            process.kill()
            _close(process.stdin)


def is_asked_here() -> bool:
    """Whether a question is answered by this process, as it has imported what that takes."""
    return "transformers" in sys.modules


def ask(path: str, question: str, answerer: Answerer | None = None) -> dict[str, Any]:
    """Give the answer to a question about the config at ``path``, see ``looks.look``; InputError where there is none.

    Without an ``answerer`` one is started.
    """
    if is_asked_here():
        found = _look_here(question)
    elif answerer is not None:
        found = answerer.answer(path, question)
    else:
        with start_answerer() as started:
            found = started.answer(path, question)
    if "wrong" in found:
        raise InputError(f"{path}: no model can be made of it ({found['wrong']})")
    if "refused" in found:
        raise InputError(f"{path}: {found['refused']}")
    return found


def _look_here(question: str) -> dict[str, Any]:
    from distconv.sidecars.looks import look

    kind, config, shapes, least_tensors = json.loads(question)
    return look(kind, config, {name: tuple(shape) for name, shape in shapes.items()}, least_tensors)


def _exchange(process: subprocess.Popen[bytes], question: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  both are pipes
    with contextlib.suppress(BrokenPipeError):  # it ended, and why is told by how
        process.stdin.write(question)
        process.stdin.flush()
    # It ends by itself where its standard input does.
    with process.stdout as stream:
        return stream.read(_LIMIT_BYTES)


def _close(stream: IO[bytes] | None) -> None:
    """Close a pipe in which a question may still be that nobody reads."""
    if stream is not None:
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    return f"was ended by {signal.Signals(-code).name}; where memory is short that is why"
