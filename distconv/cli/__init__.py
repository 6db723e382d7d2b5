"""The command line: the only place that prints or exits.

What takes time to import is imported when signals are taken care of.
"""

import sys

from distconv.cli.signals import Signals, make_stop, write_error
from distconv.cli.streams import mend_streams

_RESUMING = {"convert", "download", "push"}
"""Commands that go on where they were stopped; all others begin anew."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code.

    The process's own arguments are run as its last deed, and signals stay taken care of until
    it ends; with others, they are given back.
    """
    mend_streams()
    words = sys.argv[1:] if arguments is None else arguments
    verb = next((word for word in words if not word.startswith("-")), "")
    signals = Signals(resumes=verb in _RESUMING)
    signals.install()
    if arguments is None:
        signals.keep()
    try:
        code = _run_guarded(words, signals)
    finally:
        if arguments is not None:
            signals.restore()
    if code:
        sys.exit(code)


def _run_guarded(arguments: list[str], signals: Signals) -> int:
    """Run a command; gives its exit code, also where it was stopped while it told of another error."""
    try:
        try:
            return _run(arguments, signals)
        finally:
            signals.settle()
    except BaseException:
        if signals.asked is None:
            raise
        stopped = make_stop(signals.asked)
        if not signals.told:
            write_error(f"error: {signals.tell(stopped)}\n")
        return stopped.exit_code


def _run(arguments: list[str], signals: Signals) -> int:
    """Run a command; gives its exit code."""
    from distconv.cli.commands import cli
    from distconv.cli.screen import defused

    debug = "--debug" in arguments
    # --debug is wanted when a command has just failed, so it is taken anywhere on the line.
    arguments = [argument for argument in arguments if argument != "--debug"]
    with defused():
        try:
            cli.main(arguments, prog_name="distconv", standalone_mode=False)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  whatever it says is shown defused
            return _report(error, signals, debug=debug)
    return 0


def _report(error: Exception | KeyboardInterrupt, signals: Signals, *, debug: bool) -> int:
    """Tell a person of an error; gives the exit code."""
    import click

    from distconv.cli.screen import show_error, show_usage_error
    from distconv.errors import DistconvError, Interrupted, Stopped, UsageError, describe_os_error

    if signals.asked is not None:
        # Whatever became of it on its way here.
        stopped = make_stop(signals.asked)
        stopped.__cause__, error = error, stopped
    code = 1
    match error:
        case click.ClickException():
            show_usage_error(error)
            return UsageError.exit_code
        case click.exceptions.Abort() | KeyboardInterrupt():
            message, code = signals.tell(Interrupted("interrupted")), Interrupted.exit_code
        case Stopped():
            message, code = signals.tell(error), error.exit_code
        case DistconvError():
            message, code = str(error), error.exit_code
        case OSError():
            message = describe_os_error(error)
        case _:
            message, debug = f"{type(error).__name__}: {error}; this is a fault in distconv", True
    show_error(error, message, debug=debug)
    return code
