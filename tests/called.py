"""Command lines that are run in this process, which has imported already what takes seconds."""

import contextlib
import io
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from distconv.cli import main


def call(arguments: Sequence[object], script: Path | None = None) -> "CompletedProcess[str]":
    """Run distconv, or a script that calls it, and give what a process would."""
    words, code = [str(argument) for argument in arguments], 0
    out, err, handler = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if script is None:
                main(words)
            else:
                with mock.patch.object(sys, "argv", [str(script), *words]):
                    runpy.run_path(str(script), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())
