"""The commands that only look: check, plan, inspect and verify."""

import sys

import click

from distconv.cli.options import (
    Place,
    dtype_option,
    json_option,
    shards_option,
    size_option,
    source_options,
    to_option,
)
from distconv.cli.screen import choose_progress, defuse, show


@click.command(short_help="Compare INPUT's files with their checksums.")
@click.argument("source", metavar="INPUT", type=Place())
@source_options
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def check(
    *, source: str, family: str | None, instruct: bool, tokenizer: str | None, params: str | None,
    endpoint_url: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare INPUT's files with their checksums; exit code 2 where something is wrong.

    Files that checklist.chk names are compared by MD5, other shards by the CRC32 of their
    records where these have one. Headers, shapes and params.json are checked as well. Of a
    Transformers folder index, headers and config.json are held against each other; safetensors
    have no checksums.

    \b
    Examples:
      distconv check Llama-2-7b
    """  # noqa: D301
    from distconv.verbs.check import check as run

    progress = choose_progress(quiet=quiet)
    report = run(
        source, family=family, instruct=instruct, tokenizer=tokenizer, params=params,
        endpoint_url=endpoint_url, progress=progress,
    )  # fmt: skip
    show(report, as_json=as_json)
    if not report.ok:
        sys.exit(2)


@click.command(short_help="Show what a conversion would do.")
@click.argument("source", metavar="INPUT", type=Place())
@to_option
@shards_option
@dtype_option
@size_option
@source_options
@json_option
def plan(
    *, source: str, to: str, shards: int | None, dtype: str, max_shard_size: int | None, family: str | None,
    instruct: bool, tokenizer: str | None, params: str | None, endpoint_url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a conversion of INPUT would do, from its headers alone.

    Each row is what one worker does at a time: a file, or with --to meta the same part of all shards
    (of one, where OUTPUT is a store).

    \b
    Examples:
      distconv plan Llama-2-70b --max-shard-size 5GB
      distconv plan llama-2-70b-hf --to meta --shards 8
    """  # noqa: D301
    from distconv.verbs.plan import plan as run

    report = run(
        source,
        to=to,
        shards=shards,
        dtype=dtype,
        max_shard_size=max_shard_size,
        family=family,
        instruct=instruct,
        tokenizer=tokenizer,
        params=params,
        endpoint_url=endpoint_url,
    )
    show(report, as_json=as_json)


@click.command(short_help="Tell what the model in INPUT is.")
@click.argument("source", metavar="INPUT", type=Place())
@source_options
@json_option
def inspect(
    *,
    source: str,
    family: str | None,
    instruct: bool,
    tokenizer: str | None,
    params: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> None:
    """Tell what the model in INPUT is, how that is known, and how Meta's code could have it.

    \b
    Examples:
      distconv inspect Llama-2-7b
      distconv inspect llama-2-7b-hf
      distconv inspect Llama-2-7b --json
    """  # noqa: D301
    from distconv.verbs.inspect import inspect as run

    found = run(
        source,
        family=family,
        instruct=instruct,
        tokenizer=tokenizer,
        params=params,
        endpoint_url=endpoint_url,
    )
    show(found, as_json=as_json)


@click.command(short_help="Check that OUTPUT is a whole model.")
@click.argument("output", metavar="OUTPUT", type=Place())
@click.option(
    "--generate", "text", metavar="TEXT", help="Where nothing is wrong, load it and let it continue TEXT."
)
@click.option(
    "--against",
    type=Place(),
    metavar="INPUT",
    help="Also compare every tensor with what it was made from.",
)
@source_options
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def verify(
    *, output: str, text: str | None, against: str | None, family: str | None, instruct: bool, tokenizer: str | None,
    params: str | None, endpoint_url: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Check that OUTPUT is a whole model; exit code 1 where something is wrong.

    OUTPUT is a folder for Transformers or for Meta's code. Index, headers and sizes must be in their
    one form, every file must have the digest that distconv.json records, a model made of config.json
    or params.json must take every tensor, and nothing else may stand there that would be loaded with
    the model or in its place. With --against, every tensor is also made again from INPUT and compared,
    whichever of its formats INPUT has. --generate loads a Transformers folder over the GPUs there are,
    else the CPU, and prints 64 tokens, decoded greedily.

    \b
    Examples:
      distconv verify llama-2-7b-hf
      distconv verify llama-2-7b-hf --against Llama-2-7b
      distconv verify Llama-2-7b-again --against llama-2-7b-hf
      distconv verify llama-2-7b-hf --generate "The capital of France is"
    """  # noqa: D301
    from distconv.verbs.verify import verify as run

    if text is not None:
        from distconv.verbs.generate import refuse_meta

        refuse_meta(output)
    progress = choose_progress(quiet=quiet)
    report = run(
        output, against=against, family=family, instruct=instruct, tokenizer=tokenizer, params=params,
        endpoint_url=endpoint_url, progress=progress,
    )  # fmt: skip
    show(report, as_json=as_json)
    if not report.ok:
        sys.exit(1)
    if text is not None:
        from distconv.verbs.generate import generate

        # To standard error, where --json leaves standard output to the report.
        click.echo(defuse(generate(output, text)), err=as_json)
