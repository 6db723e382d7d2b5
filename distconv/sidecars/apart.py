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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def ask(path: str, question: str) -> dict[str, Any]:
    """Give the answer to a question about the config at ``path``, see ``looks.look``; InputError where there is none."""
    found = _look_here(question) if "transformers" in sys.modules else _look_apart(path, question)
    if "wrong" in found:
        raise InputError(f"{path}: no model can be made of it ({found['wrong']})")
    if "refused" in found:
        raise InputError(found["refused"])
    return found


def _look_here(question: str) -> dict[str, Any]:
    from distconv.sidecars.looks import look

    kind, config, shapes, least_tensors = json.loads(question)
    return look(kind, config, {name: tuple(shape) for name, shape in shapes.items()}, least_tensors)


def _look_apart(path: str, question: str) -> dict[str, Any]:
    # What can be imported there is what can be here, this package too, and nothing of the folder in which it is started.
    paths = sys.path if _ROOT in sys.path else [_ROOT, *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(os.path.isabs, paths))}
    command = [sys.executable, "-P", "-m", _MODULE]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(  # noqa: S603  a module of our own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment,
            cwd=os.sep,  # in a folder that is gone torch's libraries do not load
        ) as process:  # fmt: skip
            try:
                answer = _exchange(process, f"{question}\n".encode())
            except BaseException:
                process.kill()
                raise
        if process.returncode == 0:
            found: dict[str, Any] = json.loads(answer)
            return found
        said.seek(0)
        words = said.read().decode(errors="replace").splitlines()
    raise ConversionError(
        f"{path}: the process that makes a model of it without data {_describe_end(process.returncode)}"
        + (f" ({escape(words[-1]):.200})" if words else "")
    )


def _exchange(process: subprocess.Popen[bytes], question: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  both are pipes
    with contextlib.suppress(BrokenPipeError):  # it ended, and why is told by how
        process.stdin.write(question)
        process.stdin.flush()
    # It ends by itself where its standard input does.
    return process.stdout.read(_LIMIT_BYTES)


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    return f"was ended by {signal.Signals(-code).name}; where memory is short that is why"
