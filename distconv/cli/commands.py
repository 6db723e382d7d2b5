"""The commands: their options, their help, and the verb that each runs."""

import os
import shlex
from functools import partial
from typing import TYPE_CHECKING

import click

from distconv.cli.hints import hint, hint_at_speaking
from distconv.cli.options import (
    Count,
    Place,
    Resource,
    Share,
    dtype_option,
    endpoint_option,
    family_options,
    json_option,
    params_option,
    ray_address,
    room_option,
    shards_option,
    size_option,
    to_option,
    tokenizer_option,
    trained_options,
)
from distconv.cli.reports import check, inspect, manifest, plan, sign, verify
from distconv.cli.screen import choose_progress, show
from distconv.cli.sections import SectionedGroup
from distconv.cli.transfers import download, push
from distconv.errors import escape
from distconv.version import VERSION

if TYPE_CHECKING:
    from distconv.families.llama import Family
    from distconv.verbs.conversion_report import ConversionReport
    from distconv.verbs.convert_each import EachReport

_EPILOG = """
\b
Environment:
  DISTCONV_URL        the URL of Meta's e-mail, for download
  HF_TOKEN            the hub's token, for hf:// and push
  RAY_ADDRESS         the Ray cluster, set inside a Ray job
  NO_COLOR            no colours, also on a terminal

\b
Exit codes:
  0 done, 1 failed or differences found, 2 wrong usage or bad input,
  130 interrupted, 143 terminated
"""


@click.group(
    cls=SectionedGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, *, debug: bool) -> None:
    """Convert Llama between Meta's and Transformers' layouts, and Mistral to Transformers'.

    INPUT is a folder or URL with a checkpoint of Meta's (consolidated.*.pth and params.json, or these in original/),
    with a Transformers model, or with what a trainer saved; or the one file that holds the model.

    \b
    Examples:
      distconv download --models 7B --to .
      distconv inspect llama-2-7b
      distconv check llama-2-7b
      distconv plan llama-2-7b
      distconv convert llama-2-7b llama-2-7b-hf
      distconv convert Meta-Llama-3.1-8B-Instruct out --instruct --verify
      distconv convert llama-2-70b out --workers 8
      distconv convert llama-2-7b-hf out --to meta
      distconv convert llama-2-70b out --to meta --shards 4
    """  # noqa: D301
    context.obj = debug


@cli.command(short_help="Convert INPUT, to Transformers or to Meta's layout.")
@click.argument("source", metavar="INPUT", type=Place())
@click.argument("output", metavar="OUTPUT", type=Place())
@to_option
@shards_option
@dtype_option
@size_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="What tensors go through; auto is the CPU.",
)
@click.option("--workers", type=Count(1), metavar="N", help="Convert on Ray with so many workers.")
@click.option("--address", metavar="HOST:PORT", help="Ray cluster to use; also auto or local.")
@click.option(
    "--gpus-per-worker",
    type=Share(0, 1, min_open=True),
    metavar="SHARE",
    default=1.0,
    show_default=True,
    help="Share of a GPU that a worker of --device cuda takes.",
)
@click.option(
    "--worker-resource",
    "worker_resources",
    type=Resource(),
    multiple=True,
    help="What else a worker takes on its node, as ssd=0.5; may be repeated.",
)
@family_options
@tokenizer_option
@params_option
@trained_options
@click.option(
    "--each",
    is_flag=True,
    help="Convert all trained checkpoints directly below INPUT, into folders below OUTPUT.",
)
@click.option("--check", is_flag=True, help="First compare INPUT's files with their checksums.")
@click.option("--verify", is_flag=True, help="Compare every tensor with INPUT before OUTPUT is made whole.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the model in OUTPUT: of the same format, whoever wrote it, or one of distconv's. Other files stay.",
)
@room_option
@click.option("--trace", type=Place(), metavar="FILE", help="Write a trace for Perfetto or chrome://tracing.")
@click.option("--report", type=Place(), metavar="FILE", help="Draw what each worker did when, as a PNG.")
@endpoint_option
@click.option("--quiet", is_flag=True, help="No progress; what was assumed is said.")
@json_option
def convert(
    *, source: str, output: str, to: str, shards: int | None, dtype: str, max_shard_size: int | None,
    device: str, workers: int | None, address: str | None, gpus_per_worker: float, worker_resources: tuple[tuple[str, float], ...],
    family: str | None, instruct: bool | None, tokenizer: str | None, params: str | None, like: str | None, dialect: str | None,
    fill_from_like: bool, each: bool, check: bool, verify: bool, overwrite: bool, ignore_free_space: bool,
    trace: str | None, report: str | None, endpoint_url: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert INPUT, of Meta's, Mistral's or a trainer's, into the Transformers folder OUTPUT.

    With --to meta, OUTPUT is for Meta's code: as many consolidated.*.pth as --shards says, params.json and
    tokenizer.model. INPUT is then a Transformers folder, or a checkpoint of Meta's in any number of shards.

    The same command run again goes on where an interrupted one stopped, and of a finished OUTPUT looks at all but
    the weights' data, with --verify at that as well, and mends what is damaged. Runs in this process, or on Ray
    with --workers, --address, several GPUs, or inside a Ray job.

    \b
    Examples:
      distconv convert Llama-2-7b llama-2-7b-hf
      distconv convert Llama-2-70b-chat out --instruct --verify --workers 8
      distconv convert llama-2-7b-hf out --to meta
      distconv convert step-1000 out --like llama-3.1-8b-hf --dtype bfloat16
      ray job submit -- distconv convert /shared/Llama-2-70b /shared/out
    """  # noqa: D301
    from distconv.verbs.convert import convert as run
    from distconv.verbs.convert_each import convert_each

    with ray_address(address) as chosen:
        one = partial(
            run, to=to, shards=shards, dtype=dtype, max_shard_size=max_shard_size, device=device, workers=workers,
            address=chosen, family=family, instruct=instruct, tokenizer=tokenizer, params=params,
            like=like, dialect=dialect, fill_from_like=fill_from_like, check=check, verify=verify, overwrite=overwrite,
            ignore_free_space=ignore_free_space, gpus_per_worker=gpus_per_worker, worker_resources=dict(worker_resources),
            trace=trace, report=report, endpoint_url=endpoint_url, progress=(shown := choose_progress(quiet=quiet)),
        )  # fmt: skip
        every = partial(convert_each, like=like, endpoint_url=endpoint_url, progress=shown)
        done = every(source, output, one) if each else one(source, output)
    show(done, as_json=as_json, notes_shown=True)
    _conclude(source, output, to, done, silent=as_json or quiet)


def _conclude(
    source: str, output: str, to: str, done: "ConversionReport | EachReport", *, silent: bool
) -> None:
    """Tell of steps that were not converted, or how to go on with the one model, or with the last of all."""
    from distconv.storage.base import join
    from distconv.verbs.convert_each import EachReport

    if isinstance(done, EachReport):
        done.check()
        last = done.reports[-1]
        if not last.verified:
            hint("verify", last.output, "--against", join(source, os.path.basename(last.output)))
    elif not silent:
        _show_how_to_go_on(source, output, to, done)


def _show_how_to_go_on(source: str, output: str, to: str, done: "ConversionReport") -> None:
    """Show how the model is loaded, to standard output, and the next command, to standard error."""
    from distconv.families.llama import FAMILIES
    from distconv.storage.places import find_scheme

    # What loads a model reads it from a folder of its own host; Meta's examples are for text models.
    if find_scheme(output) is None and to != "meta":
        click.echo(_load_by_transformers(output, done.family))
    elif find_scheme(output) is None:
        families = {family.title: family for family in FAMILIES.values()}
        if done.family in families:
            click.echo(_load_by_meta(output, done.chunks, families[done.family]))
    if done.unchecked and not done.already_done:
        hint("check", source, why="as INPUT was not compared with its own checksums")
    if done.verified:
        hint_at_speaking(output)
    else:
        hint("verify", output, "--against", source)


def _load_by_transformers(output: str, title: str) -> str:
    """Say how a model is loaded, by its family's title, or by the class of Transformers that a trained one is."""
    from distconv.families.images import IMAGE_FAMILIES
    from distconv.families.known import ALL_FAMILIES

    model, beside = "AutoModelForCausalLM", "AutoTokenizer"
    if title in {family.title for family in IMAGE_FAMILIES.values()}:
        model, beside = "AutoModelForImageTextToText", "AutoProcessor"
    elif title not in {family.title for family in ALL_FAMILIES.values()}:
        model = title
    return (
        f"\nfrom transformers import {', '.join(sorted((model, beside)))}\n"
        f"model = {model}.from_pretrained({output!r})\n"
        f"{beside.removeprefix('Auto').lower()} = {beside}.from_pretrained({output!r})"
    )


def _load_by_meta(output: str, shards: int, family: "Family") -> str:
    """Say how the example of Meta's repository for it loads it: a process for each shard."""
    whole = os.path.abspath(output)
    folder, tokenizer = (
        shlex.quote(escape(path)) for path in (whole, os.path.join(whole, "tokenizer.model"))
    )
    taken = f"--ckpt_dir {folder} --tokenizer_path {tokenizer}"
    if family.tokenizer == "tiktoken":
        repository, program, taken = "llama-models", "-m models.llama3.scripts.completion", folder
    elif family.name.startswith("code-llama"):
        repository, program = "codellama", "example_completion.py"
    else:
        repository, program = "llama", "example_text_completion.py"
    return (
        f"\n# in a checkout of github.com/meta-llama/{repository}\n"
        f"torchrun --nproc_per_node {shards} {program} \\\n    {taken}"
    )


@cli.command(short_help="Convert the tokenizer alone.")
@click.argument("source", metavar="INPUT", type=Place())
@click.argument("output", metavar="OUTPUT", type=Place())
@family_options
@click.option("--overwrite", is_flag=True, help="Replace a tokenizer in OUTPUT.")
@endpoint_option
@json_option
def tokenizer(
    *, source: str, output: str, family: str | None, instruct: bool | None, overwrite: bool,
    endpoint_url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Convert the tokenizer of INPUT alone into OUTPUT.

    \b
    Examples:
      distconv tokenizer Llama-2-7b llama-2-7b-hf
    """  # noqa: D301
    from distconv.verbs.tokenizer import convert_tokenizer

    report = convert_tokenizer(
        source, output, family=family, instruct=instruct, overwrite=overwrite, endpoint_url=endpoint_url
    )
    show(report, as_json=as_json)


@cli.command(short_help="Let a shell complete commands and options.")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print what makes SHELL complete distconv's commands and options.

    \b
    Examples:
      eval "$(distconv completion bash)"      # in ~/.bashrc
      eval "$(distconv completion zsh)"       # in ~/.zshrc
      distconv completion fish > ~/.config/fish/completions/distconv.fish
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None  # noqa: S101  the choices are click's own
    click.echo(made(cli, {}, "distconv", "_DISTCONV_COMPLETE").source())


for command in (check, plan, inspect, verify, manifest, sign, download, push):
    cli.add_command(command)
