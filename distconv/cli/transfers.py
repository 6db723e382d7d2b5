"""The commands that bring models over networks: download and push."""

import os
import sys

import click

from distconv.cli.hints import hint
from distconv.cli.options import Count, Place, json_option, room_option
from distconv.cli.screen import choose_progress, read_url, show
from distconv.cli.sections import command


@command(short_help="Download models by the URL of Meta's e-mail.")
@click.option(
    "--models",
    required=True,
    metavar="NAME,...",
    help="What to download, as 7B,13B-chat or Llama-3.1-8B-Instruct.",
)
@click.option(
    "--to",
    "place",  # a name that no option of the following command has, which repeats what it shares
    required=True,
    type=Place(),
    metavar="DIR",
    help="Where the models' folders go.",
)
@click.option(
    "--connections",
    type=Count(1, 64),
    metavar="N",
    default=8,
    show_default=True,
    help="Requests at once.",
)
@room_option
@click.option("--quiet", is_flag=True, help="No progress; notes are shown.")
@json_option
def download(
    *, models: str, place: str, connections: int, ignore_free_space: bool, quiet: bool, as_json: bool
) -> None:
    """Download models by the URL of Meta's e-mail, and check them.

    The URL is asked for, or read from standard input or from the environment variable
    DISTCONV_URL; it is a secret, so it is no option, and it is shown nowhere. The same command
    run again goes on where an interrupted one stopped, also with a new URL, and completes files
    that wget left cut. Every file that a checklist names is compared by MD5.

    NAME is what Meta's scripts call a model (7B, 70B-chat, 34b-Instruct) or its full name
    (Llama-2-7b, CodeLlama-7b, Meta-Llama-3-8B, Llama-3.1-405B-MP16); a wrong one lists them all.

    \b
    Examples:
      distconv download --models 7B,13B-chat --to llama
      distconv download --models Llama-3.1-8B-Instruct --to . < url.txt
    """  # noqa: D301
    from distconv.downloads.releases import find_release
    from distconv.verbs.download import download as run

    names = [name for name in models.split(",") if name.strip()]
    # Before the URL is asked for.
    if not names:
        raise click.UsageError("--models names no model; give for instance 7B or Llama-3.1-8B-Instruct")
    quantized = {found.folder for found in map(find_release, names) if found.fp8}
    report = run(
        names, place, read_url(), connections=connections, ignore_free_space=ignore_free_space,
        progress=choose_progress(quiet=quiet),
    )  # fmt: skip
    show(report, as_json=as_json)
    for folder in report.folders:
        dtype = ("--dtype", "bfloat16") if os.path.basename(folder) in quantized else ()
        hint("convert", folder, f"{folder.rstrip('/')}-hf", *dtype)


@command(short_help="Upload OUTPUT to the Hugging Face Hub.")
@click.argument("output", metavar="OUTPUT", type=Place())
@click.argument("repo", metavar="REPO")
@click.option("--public", is_flag=True, help="Let everybody see it; Meta's licence says what may be shared.")
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Read the chunks' data first and compare it with its digests (the default), or do not.",
)
@click.option("--quiet", is_flag=True, help="No progress; notes are shown.")
@json_option
def push(*, output: str, repo: str, public: bool, verify: bool, quiet: bool, as_json: bool) -> None:
    """Upload the finished OUTPUT to the Hugging Face Hub as REPO (USER/NAME), private by default.

    OUTPUT must be whole: every file is compared with its digest, or all but the chunks by
    --no-verify. Only what distconv.json names is sent, a README.md, and what `distconv sign` left
    in it as model.sig; links are not followed.
    The token is that of `hf auth login` or HF_TOKEN. A model card says what was converted, how,
    and the digest of every file, unless there is a README.md already. The same command run again
    goes on where an interrupted one stopped.

    \b
    Examples:
      distconv push llama-2-7b-hf me/llama-2-7b
    """  # noqa: D301
    from distconv.verbs.push import push as run

    silent = quiet or not sys.stderr.isatty()
    progress = choose_progress(quiet=quiet)
    show(run(output, repo, public=public, verify=verify, quiet=silent, progress=progress), as_json=as_json)
