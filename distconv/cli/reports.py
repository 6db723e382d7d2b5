"""The commands that only look: check, plan, inspect, verify and manifest."""

import sys
from typing import TYPE_CHECKING

import click

from distconv.cli.hints import hint, hint_at_mending, hint_at_speaking
from distconv.cli.options import (
    Place,
    dtype_option,
    json_option,
    ray_address,
    shards_option,
    size_option,
    source_options,
    to_option,
    worker_options,
)
from distconv.cli.screen import choose_progress, defuse, paint, show
from distconv.cli.sections import command

if TYPE_CHECKING:
    from distconv.moving.progress import Progress


@command(short_help="Compare INPUT's files with their checksums.")
@click.argument("source", metavar="INPUT", type=Place())
@source_options
@click.option("--quiet", is_flag=True, help="No progress; notes are shown.")
@json_option
def check(
    *, source: str, family: str | None, instruct: bool | None, tokenizer: str | None, params: str | None,
    like: str | None, dialect: str | None, fill_from_like: bool, endpoint_url: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare INPUT's files with their checksums; exit code 1 where something is wrong.

    Files that checklist.chk names are compared by MD5, other shards by the CRC32 of their
    records where these have one. Headers, shapes and params.json are checked as well. Of a
    Transformers folder, index, headers and config.json are held against each other; safetensors
    have no checksums.

    \b
    Examples:
      distconv check Llama-2-7b
    """  # noqa: D301
    from distconv.verbs.check import check as run

    progress = choose_progress(quiet=quiet)
    report = run(
        source, family=family, instruct=instruct, tokenizer=tokenizer, params=params,
        like=like, dialect=dialect, fill_from_like=fill_from_like,
        endpoint_url=endpoint_url, progress=progress,
    )  # fmt: skip
    show(report, as_json=as_json)
    if not report.ok:
        sys.exit(1)


@command(short_help="Show what a conversion would do.")
@click.argument("source", metavar="INPUT", type=Place())
@to_option
@shards_option
@dtype_option
@size_option
@source_options
@json_option
def plan(
    *, source: str, to: str, shards: int | None, dtype: str, max_shard_size: int | None, family: str | None,
    instruct: bool | None, tokenizer: str | None, params: str | None, like: str | None, dialect: str | None,
    fill_from_like: bool, endpoint_url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a conversion of INPUT would do, from its headers and small files, or why it would be refused.

    Each row is a file. What is written in parts has their number: a worker writes one at a time, with --to meta
    the same part of all shards (of one, where OUTPUT is a store).

    \b
    Examples:
      distconv plan Llama-2-70b --max-shard-size 5GB
      distconv plan llama-2-70b-hf --to meta --shards 8
    """  # noqa: D301
    from distconv.verbs.plan import plan as run

    report = run(
        source, to=to, shards=shards, dtype=dtype, max_shard_size=max_shard_size, family=family, instruct=instruct,
        tokenizer=tokenizer, params=params, like=like, dialect=dialect, fill_from_like=fill_from_like,
        endpoint_url=endpoint_url,
    )  # fmt: skip
    show(report, as_json=as_json)
    hint("convert", source, "OUTPUT", *(("--tokenizer", "PATH") if report.lacks_tokenizer else ()))


@command(short_help="Tell what the model in INPUT is.")
@click.argument("source", metavar="INPUT", type=Place())
@source_options
@json_option
def inspect(
    *,
    source: str,
    family: str | None,
    instruct: bool | None,
    tokenizer: str | None,
    params: str | None,
    like: str | None,
    dialect: str | None,
    fill_from_like: bool,
    endpoint_url: str | None,
    as_json: bool,
) -> None:
    """Tell what the model in INPUT is, how that is known, and how Meta's code could have it.

    Of a Transformers folder of another family it tells what is true of any.

    \b
    Examples:
      distconv inspect Llama-2-7b
      distconv inspect llama-2-7b-hf
      distconv inspect Llama-2-7b --json
    """  # noqa: D301
    from distconv.verbs.inspect import inspect as run

    found = run(
        source, family=family, instruct=instruct, tokenizer=tokenizer, params=params, like=like, dialect=dialect,
        fill_from_like=fill_from_like, endpoint_url=endpoint_url,
    )  # fmt: skip
    show(found, as_json=as_json)
    if "family" in found.found:
        hint("plan", source, *(("--to", "meta") if found.found["format"] == "transformers" else ()))
    elif found.found["format"] == "transformers":
        hint("verify", source)


@command(short_help="Check that OUTPUT is a whole model.")
@click.argument("output", metavar="OUTPUT", type=Place())
@click.option(
    "--generate", "text", metavar="TEXT", help="Where nothing is wrong, load it and let it continue TEXT."
)
@click.option(
    "--image",
    type=Place(),
    metavar="FILE",
    help="Show it the image in FILE first: for --generate, if it sees.",
)
@click.option(
    "--against",
    type=Place(),
    metavar="INPUT",
    help="Also compare every tensor with what it was made from, another folder, or a manifest.",
)
@click.option(
    "--card", type=Place(), metavar="FILE", help="Write what was found: Markdown as .md, else JSON."
)
@click.option("--signature", type=Place(), metavar="FILE", help="Check a signature of `distconv sign` too.")
@click.option("--public-key", type=Place(), metavar="FILE", help="The key by which it must be, as PEM.")
@worker_options
@source_options
@click.option("--quiet", is_flag=True, help="No progress; notes are shown.")
@json_option
def verify(
    *, output: str, text: str | None, image: str | None, against: str | None, card: str | None,
    signature: str | None, public_key: str | None, workers: int | None, address: str | None,
    family: str | None, instruct: bool | None, tokenizer: str | None,
    params: str | None, like: str | None, dialect: str | None, fill_from_like: bool, endpoint_url: str | None,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Check that OUTPUT is a whole model; exit code 1 where something is wrong.

    OUTPUT is a folder for Transformers, whoever wrote it and whatever its architecture, or for Meta's
    code. A model made of its config must take every tensor, each must be there once, index and headers
    must say what the files hold, no value may be NaN or infinite and no layer zero, each token of the
    tokenizer must have a row, and nothing else may stand there that would be loaded. Files that distconv.json records must also have their one form and
    their digests. With --against, every tensor is compared with INPUT's: those of a checkpoint are made
    again, of other folders and manifests digests are compared. --generate loads a Transformers folder
    over the GPUs there are, else the CPU, and prints 64 tokens, decoded greedily.

    \b
    Examples:
      distconv verify llama-2-7b-hf
      distconv verify llama-2-7b-hf --against Llama-2-7b
      distconv verify Qwen3-30B-A3B --against qwen3.json --card CARD.md
      distconv verify llama-2-7b-hf --generate "The capital of France is"
      distconv verify vision-hf --image cat.jpg --generate "What is this?"
    """  # noqa: D301
    from distconv.verbs.verify import verify as run

    _refuse_questions(output, text, image)
    progress = choose_progress(quiet=quiet)
    with ray_address(address) as chosen:
        report = run(
            output, against=against, workers=workers, address=chosen, family=family, instruct=instruct,
            tokenizer=tokenizer, params=params, like=like, dialect=dialect, fill_from_like=fill_from_like,
            endpoint_url=endpoint_url, card=card, signature=signature, public_key=public_key, progress=progress,
        )  # fmt: skip
    show(report, as_json=as_json)
    if not report.ok:
        hint_at_mending(output, report.damaged)
        sys.exit(1)
    _let_speak(output, text, image, progress, as_json=as_json)


def _refuse_questions(output: str, text: str | None, image: str | None) -> None:
    """Refuse what cannot be asked of the model, before all of it is read."""
    if text is None:
        if image is not None:
            raise click.UsageError("--image is shown before the TEXT of --generate; give that too")
        return
    from distconv.verbs.generate import refuse_unloadable, refuse_wordless

    refuse_unloadable(output)
    if image is not None:
        from distconv.verbs.image import open_image, refuse_blind

        open_image(image)
        refuse_blind(output)
    refuse_wordless(output)


def _let_speak(
    output: str, text: str | None, image: str | None, progress: "Progress", *, as_json: bool
) -> None:
    """Continue the text, or tell how that is asked for."""
    if text is None:
        hint_at_speaking(output)
        return
    from distconv.verbs.generate import generate

    said = defuse(generate(output, text, image=image, progress=progress))
    if as_json:
        # To standard error: standard output is the report's.
        click.echo(said, err=True)
        return
    click.echo(f"\n{paint('prompt:', 'green')} {defuse(text)}\n{paint('continuation:', 'green')} {said}")


@command(short_help="Write down the digests of INPUT's tensors.")
@click.argument("source", metavar="INPUT", type=Place())
@click.argument("path", metavar="FILE", type=Place())
@worker_options
@source_options
@click.option("--quiet", is_flag=True, help="No progress; notes are shown.")
@json_option
def manifest(
    *, source: str, path: str, workers: int | None, address: str | None, family: str | None, instruct: bool | None,
    tokenizer: str | None, params: str | None, like: str | None, dialect: str | None, fill_from_like: bool,
    endpoint_url: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write the digests of all tensors of INPUT to FILE, whatever files they lie in.

    INPUT is a Transformers folder, whoever wrote it, or a trainer's checkpoint or one of Meta's, whose
    tensors are taken as a conversion would write them. Two models that hold the same have the same manifest, byte
    for byte, however they are cut; `distconv verify OUTPUT --against FILE` compares a folder with one.

    \b
    Examples:
      distconv manifest llama-2-7b-hf llama-2-7b.json
      distconv manifest Llama-2-7b llama-2-7b.json
    """  # noqa: D301
    from distconv.verbs.manifest import manifest as run

    with ray_address(address) as chosen:
        report = run(
            source, path, workers=workers, address=chosen, family=family, instruct=instruct,
            tokenizer=tokenizer, params=params, like=like, dialect=dialect, fill_from_like=fill_from_like,
            endpoint_url=endpoint_url, progress=choose_progress(quiet=quiet),
        )  # fmt: skip
    show(report, as_json=as_json)
    hint("verify", "OUTPUT", "--against", path)


@command(short_help="Sign what OUTPUT holds.")
@click.argument("output", metavar="OUTPUT", type=Place())
@click.option(
    "--key", required=True, type=Place(), metavar="FILE", help="Elliptic-curve private key, as PEM."
)
@click.option(
    "--signature", type=Place(), metavar="FILE", help="Where the signature goes, if not to OUTPUT/model.sig."
)
@click.option("--quiet", is_flag=True, help="No progress; notes are shown.")
@json_option
def sign(*, output: str, key: str, signature: str | None, quiet: bool, as_json: bool) -> None:
    """Sign the SHA-256 of every file of OUTPUT, with what distconv.json says of the conversion.

    OUTPUT must be whole. The signature is an in-toto statement in a bundle of sigstore's, made and checked
    by model-signing (in a clone, pip install '.[sign]'); `model_signing verify key` checks it too. As the
    same conversion gives the same bytes, anybody who has the source can make what was signed again.

    \b
    Examples:
      distconv sign out --key mine.pem
      distconv verify out --signature out/model.sig --public-key mine.pub
    """  # noqa: D301
    from distconv.verbs.sign import sign as run

    report = run(output, key, signature=signature, progress=choose_progress(quiet=quiet))
    show(report, as_json=as_json)
    hint("verify", output, "--signature", report.signature, "--public-key", "FILE")
