"""What one may want to type next."""

import contextlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from distconv.cli.options import Size
from distconv.cli.screen import paint
from distconv.errors import UsageError, escape
from distconv.humanize import write_size

if TYPE_CHECKING:
    from distconv.output.receipt import Conversion


def hint(verb: str, *words: str, repeated: bool = True, why: str = "") -> None:
    """Tell the command that comes next, and why if that is not plain.

    If ``repeated``, with the options given to this one that it takes too. To standard error; nothing to programs, and to who wants quiet.
    """
    context = click.get_current_context()
    if context.params.get("as_json") or context.params.get("quiet"):
        return
    group = context.find_root().command
    assert isinstance(group, click.Group)  # noqa: S101  the root is ours
    place, *rest = words
    # What begins with a dash would be an option.
    typed = ["distconv", verb, f"./{place}" if place.startswith("-") else place, *rest]
    if repeated:
        typed += _repeat(context, group.commands[verb], words)
    shown = " ".join(shlex.quote(escape(word)) for word in typed)
    head = f"next, {why}:" if why else "next:"
    click.echo(f"{paint(head, 'green')} {shown}", err=True)


def _repeat(context: click.Context, following: click.Command, said: tuple[str, ...]) -> Iterator[str]:
    """Give the options of this command line that the following command takes, unless they are said."""
    taken = {option.name for option in following.params}
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if isinstance(option, click.Option) and given and option.name in taken and option.opts[0] not in said:
            value = context.params[option.name]
            if option.is_flag:
                yield option.opts[0] if value else option.secondary_opts[0]
            else:
                yield from (
                    option.opts[0],
                    write_size(value) if isinstance(option.type, Size) else str(value),
                )


def hint_at_mending(output: str, damaged: "Conversion | None") -> None:
    """Tell what makes again what is damaged of an OUTPUT of distconv's, with those of its options that are known."""
    if damaged is None:
        return
    words = [] if damaged.shards is None else ["--to", "meta", "--shards", str(damaged.shards)]
    if damaged.instruct and damaged.shards is None:
        words.append("--instruct")
    hint(
        "convert",
        "INPUT",
        output,
        "--verify",
        *words,
        why="to make again what is damaged, with the options that it had",
    )


def hint_at_speaking(output: str) -> None:
    """Tell how to let OUTPUT speak, unless it is Meta's, has no tokenizer, or lies elsewhere, where nothing could load it."""
    from distconv.verbs.generate import refuse_unloadable, refuse_wordless

    with contextlib.suppress(UsageError):
        refuse_unloadable(output)
        refuse_wordless(output)
        hint("verify", output, "--generate", "Once upon a time", repeated=False)
