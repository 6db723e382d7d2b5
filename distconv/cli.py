"""The command line: the only place that prints, reads the environment or exits."""

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Protocol

import click

from distconv.errors import DistconvError, Interrupted, Stopped, Terminated, describe_os_error
from distconv.version import VERSION

if TYPE_CHECKING:
    from distconv.progress import Progress

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


class Report(Protocol):
    """What every verb returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, and what looks odd."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain values."""

    def lines(self) -> tuple[str, ...]:
        """Give it for people."""


class Size(click.ParamType[int]):
    """A number of bytes: ``5GB``, ``500MB``, ``2GiB`` or a plain number; GB is 10^9, as in Transformers."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it; anything else is a usage error."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip().lower())
        if match is None or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1:
            self.fail(f"{value!r} is not a size; write 5GB, 500MB, 2GiB or a number of bytes", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


def _families() -> list[str]:
    from distconv.families.llama import FAMILIES

    return list(FAMILIES)


def _family_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which a person says what the files cannot."""
    family = click.option(
        "--family", type=click.Choice(_families()), help="What the model is, where the files are ambiguous."
    )
    instruct = click.option(
        "--instruct/--base",
        default=False,
        help="An instruct (chat) model: its stop tokens and chat template.",
    )
    return family(instruct(command))


_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to standard output."
)
_tokenizer_option = click.option(
    "--tokenizer", type=click.Path(), help="tokenizer.model, if it lies elsewhere."
)
_dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float16", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="auto keeps what is stored.",
)
_size_option = click.option(
    "--max-shard-size",
    type=Size(),
    help="Largest output file, as 5GB. [default: from the model's size, at most 5GB]",
)


class Resource(click.ParamType[tuple[str, float]]):
    """A custom resource of a Ray cluster: ``NAME=AMOUNT``."""

    name = "NAME=AMOUNT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Parse it; anything else is a usage error."""
        name, _, amount = str(value).rpartition("=")
        try:
            return name, float(amount) if name else self.fail(f"{value!r} has no name", param, ctx)
        except ValueError:
            self.fail(f"{value!r} is not NAME=AMOUNT, as ssd=0.5", param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, *, debug: bool) -> None:
    """Convert Meta's original Llama checkpoints to Transformers folders.

    INPUT is a folder with consolidated.*.pth and params.json, or one that has them in original/.

    \b
    Examples:
      distconv inspect Llama-2-7b
      distconv check Llama-2-7b
      distconv plan Llama-2-70b
      distconv convert Llama-2-7b llama-2-7b-hf
      distconv convert Meta-Llama-3.1-8B-Instruct out --instruct --verify
      distconv convert Llama-2-70b out --workers 8
    """  # noqa: D301
    context.obj = debug


def _show(report: Report, *, as_json: bool, notes_shown: bool = False) -> None:
    """Print a report: notes to standard error, the rest to standard output."""
    for note in () if notes_shown else report.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else "\n".join(report.lines()))


@cli.command()
@click.argument("source", metavar="INPUT")
@click.argument("output", metavar="OUTPUT")
@_dtype_option
@_size_option
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Convert on Ray with so many workers.")
@click.option("--address", help="Ray cluster to use: auto, local or ADDRESS.")
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of a GPU that a worker of --device cuda takes.",
)
@click.option(
    "--worker-resource",
    "worker_resources",
    type=Resource(),
    multiple=True,
    help="What else a worker takes on its node, as NAME=AMOUNT; may be repeated.",
)
@_family_options
@_tokenizer_option
@click.option("--check", is_flag=True, help="First compare INPUT's files with their checksums.")
@click.option("--verify", is_flag=True, help="Compare every tensor with INPUT before OUTPUT is made whole.")
@click.option("--overwrite", is_flag=True, help="Replace the model in OUTPUT; other files stay.")
@click.option(
    "--trace", type=click.Path(), metavar="FILE", help="Write a trace for Perfetto or chrome://tracing."
)
@click.option("--report", type=click.Path(), metavar="FILE", help="Draw what each worker did when, as a PNG.")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
@_json_option
def convert(
    *, source: str, output: str, dtype: str, max_shard_size: int | None, device: str, workers: int | None,
    address: str | None, gpus_per_worker: float, worker_resources: tuple[tuple[str, float], ...],
    family: str | None, instruct: bool, tokenizer: str | None, check: bool, verify: bool,
    overwrite: bool, trace: str | None, report: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert INPUT into the Transformers folder OUTPUT.

    The same command run again goes on where an interrupted one stopped. Runs in this process,
    or on Ray with --workers, --address, several GPUs, or inside a Ray job.
    """
    from distconv.conversion import convert as run

    if address in {None, "auto"}:
        # Inside a Ray job this names the job's cluster.
        address = os.environ.get("RAY_ADDRESS") or address
    done = run(
        source, output, dtype=dtype, max_shard_size=max_shard_size, device=device, workers=workers,
        address=address, family=family, instruct=instruct, tokenizer=tokenizer, check=check,
        verify=verify, overwrite=overwrite, gpus_per_worker=gpus_per_worker,
        worker_resources=dict(worker_resources), trace=trace, report=report,
        progress=_choose_progress(quiet=quiet),
    )  # fmt: skip
    _show(done, as_json=as_json, notes_shown=True)
    if not as_json and not quiet:
        click.echo(
            "\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"model = AutoModelForCausalLM.from_pretrained({output!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({output!r})"
        )


def _choose_progress(*, quiet: bool) -> "Progress":
    from distconv.progress import BarProgress, LineProgress, SilentProgress

    if quiet:
        return SilentProgress()
    if sys.stderr.isatty():
        return BarProgress(sys.stderr)
    return LineProgress(lambda line: click.echo(line, err=True))


@cli.command()
@click.argument("source", metavar="INPUT")
@_family_options
@_tokenizer_option
@click.option("--quiet", is_flag=True, help="No progress.")
@_json_option
def check(
    *, source: str, family: str | None, instruct: bool, tokenizer: str | None, quiet: bool, as_json: bool
) -> None:
    """Compare INPUT's files with their checksums; exit code 2 where something is wrong.

    Files that checklist.chk names are compared by MD5, other shards by the CRC32 of their
    records where these have one. Headers, shapes and params.json are checked as well.
    """
    from distconv.checking import check as run

    progress = _choose_progress(quiet=quiet)
    report = run(source, family=family, instruct=instruct, tokenizer=tokenizer, progress=progress)
    _show(report, as_json=as_json)
    if not report.ok:
        sys.exit(2)


@cli.command()
@click.argument("source", metavar="INPUT")
@_dtype_option
@_size_option
@_family_options
@_tokenizer_option
@_json_option
def plan(
    *, source: str, dtype: str, max_shard_size: int | None, family: str | None, instruct: bool,
    tokenizer: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a conversion of INPUT would do, from its headers alone."""
    from distconv.survey import plan as run

    report = run(
        source,
        dtype=dtype,
        max_shard_size=max_shard_size,
        family=family,
        instruct=instruct,
        tokenizer=tokenizer,
    )
    _show(report, as_json=as_json)


@cli.command()
@click.argument("source", metavar="INPUT")
@_family_options
@_tokenizer_option
@_json_option
def inspect(*, source: str, family: str | None, instruct: bool, tokenizer: str | None, as_json: bool) -> None:
    """Tell what the checkpoint in INPUT is, and how that is known."""
    from distconv.survey import inspect as run

    _show(run(source, family=family, instruct=instruct, tokenizer=tokenizer), as_json=as_json)


@cli.command()
@click.argument("output", metavar="OUTPUT")
@click.option(
    "--against", metavar="INPUT", help="Also compare every tensor with the checkpoint it was made from."
)
@_family_options
@_tokenizer_option
@click.option("--quiet", is_flag=True, help="No progress.")
@_json_option
def verify(
    *, output: str, against: str | None, family: str | None, instruct: bool, tokenizer: str | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Check that OUTPUT is a whole model; exit code 1 where something is wrong.

    Index, headers and sizes must be in their one form, every file must have the digest that
    distconv.json records, and a model made of config.json must take every tensor. With
    --against, every tensor is also made again from INPUT and compared.
    """
    from distconv.verification import verify as run

    progress = _choose_progress(quiet=quiet)
    report = run(
        output, against=against, family=family, instruct=instruct, tokenizer=tokenizer, progress=progress
    )
    _show(report, as_json=as_json)
    if not report.ok:
        sys.exit(1)


@cli.command()
@click.argument("source", metavar="INPUT")
@click.argument("output", metavar="OUTPUT")
@_family_options
@click.option("--overwrite", is_flag=True, help="Replace a tokenizer in OUTPUT.")
@_json_option
def tokenizer(
    *, source: str, output: str, family: str | None, instruct: bool, overwrite: bool, as_json: bool
) -> None:
    """Convert the tokenizer of INPUT alone into OUTPUT."""
    from distconv.tokenization import convert_tokenizer

    report = convert_tokenizer(source, output, family=family, instruct=instruct, overwrite=overwrite)
    _show(report, as_json=as_json)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated("terminated")


def _fail(error: BaseException, message: str, exit_code: int, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(exit_code)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code."""
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
