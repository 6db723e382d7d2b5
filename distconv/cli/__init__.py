"""The command line: the only place that prints, reads the environment or exits."""

import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

from distconv.cli.commands import cli
from distconv.cli.screen import paint
from distconv.cli.streams import mend_streams
from distconv.errors import DistconvError, Interrupted, Stopped, Terminated, describe_os_error


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated("terminated")


def _fail(error: BaseException, message: str, exit_code: int, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    for line in message.splitlines():
        click.echo(f"{paint('error:', 'red')} {line}", err=True)
    sys.exit(exit_code)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code."""
    mend_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # --debug is wanted when a command has just failed, so it is taken anywhere on the line.
    arguments = [argument for argument in arguments if argument != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli.main(arguments, prog_name="distconv", standalone_mode=False)
    except click.exceptions.Abort as error:
        _stop(Interrupted("interrupted"), error, debug=debug)
    except KeyboardInterrupt as error:
        _stop(Interrupted("interrupted"), error, debug=debug)
    except Stopped as error:
        _stop(error, error, debug=debug)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DistconvError as error:
        _fail(error, str(error), error.exit_code, debug=debug)
    except OSError as error:
        _fail(error, describe_os_error(error), 1, debug=debug)


def _stop(stopped: Stopped, error: BaseException, *, debug: bool) -> NoReturn:
    _fail(error, f"{stopped}; run the same command again to go on", stopped.exit_code, debug=debug)
