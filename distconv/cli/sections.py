"""Help under headings: commands by what one wants, and the options of commands that have many by what they are about."""

from functools import partial

import click

COMMANDS = {
    "Get": ("download", "inspect", "check"),
    "Convert": ("plan", "convert", "tokenizer"),
    "Prove": ("verify", "manifest"),
    "Share": ("sign", "push"),
    "Shell": ("completion",),
}
OPTIONS = {
    "What is made": ("to", "shards", "dtype", "max_shard_size", "overwrite", "ignore_free_space"),
    "What INPUT is": ("family", "instruct", "tokenizer", "params", "endpoint_url"),
    "What a trainer saved": ("like", "dialect", "fill_from_like", "each"),
    "Proof": ("check", "verify", "against", "text", "image", "card", "signature", "public_key"),
    "Where it runs": ("device", "workers", "address", "gpus_per_worker", "worker_resources"),
}
"""By parameters' names; all others are under ``_OTHERS``."""
_OTHERS = "Other options"
_MANY = 9
"""Fewer options need no headings."""


class SectionedCommand(click.Command):
    """A command whose options stand under headings where they are many, and whose errors say whose they are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments; click tells of an option without its value with no word of the command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them, in the order of ``OPTIONS``."""
        records = {
            param.name: record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None
        }
        if len(records) < _MANY:
            super().format_options(ctx, formatter)
            return
        named = {name for names in OPTIONS.values() for name in names}
        others = tuple(name for name in records if name not in named)
        for title, names in {**OPTIONS, _OTHERS: others}.items():
            found = [records[name] for name in names if name in records]
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)


class SectionedGroup(click.Group):
    """The commands, under headings."""

    command_class = SectionedCommand

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write them with what each is for, in the order of ``COMMANDS``."""
        for title, names in COMMANDS.items():
            rows = [(name, self.commands[name].get_short_help_str(formatter.width)) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)


command = partial(click.command, cls=SectionedCommand)
"""Makes a command of a function, as ``click.command`` does."""
