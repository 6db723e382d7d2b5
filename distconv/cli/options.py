"""Options that several commands share, and the values they take."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator

import click

from distconv.errors import ClusterError, UsageError
from distconv.humanize import parse_size
from distconv.storage.places import take_name


class Size(click.ParamType[int]):
    """A number of bytes: ``5GB``, ``500MB``, ``2GiB`` or a plain number; GB is 10^9, as in Transformers."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it; anything else is a usage error."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Count(click.IntRange):
    """How many of something, as click has it, but called what people call it."""

    name = "whole number"


class Share(click.FloatRange):
    """How much of something, called likewise."""

    name = "number"


class Place(click.Path):
    """A file or folder, there or not; an empty name, as of a variable that is not set, would mean this folder."""

    def __init__(self) -> None:
        """Look at nothing: what is wrong with a place, the verbs say better."""
        super().__init__(readable=False)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Take any name but the empty one."""
        try:
            take_name(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


def _families() -> list[str]:
    from distconv.families.known import ALL_FAMILIES

    return list(ALL_FAMILIES)


def _dialects() -> list[str]:
    from distconv.families.trained import DIALECTS

    return list(DIALECTS)


def family_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which a person says what the files cannot."""
    family = click.option(
        "--family",
        type=click.Choice(_families()),
        metavar="NAME",
        help="What the model is, where the files are ambiguous, as llama-2; a wrong one lists all.",
    )
    instruct = click.option(
        "--instruct/--base",
        default=None,
        help="An instruct (chat) model: its stop tokens and chat template.",
    )
    return family(instruct(command))


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to standard output."
)
room_option = click.option(
    "--ignore-free-space",
    is_flag=True,
    help="Begin where too little space is free: for file systems that compress what they store.",
)
tokenizer_option = click.option(
    "--tokenizer", type=Place(), help="tokenizer.model or tekken.json, if it lies elsewhere."
)
params_option = click.option("--params", type=Place(), help="params.json, if it lies elsewhere.")
endpoint_option = click.option(
    "--endpoint-url",
    metavar="URL",
    help="Where s3:// URLs lead, if not to Amazon; else AWS_ENDPOINT_URL or the profile's.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float16", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="auto keeps what is stored.",
)
size_option = click.option(
    "--max-shard-size",
    type=Size(),
    help="Largest output file, as 5GB; of Meta's shards, the largest part that is written at a time. "
    "[default: from the model's size, at most 5GB, of parts 1GB]",
)
to_option = click.option(
    "--to",
    type=click.Choice(["transformers", "meta"]),
    default="transformers",
    show_default=True,
    help="The format of OUTPUT.",
)
shards_option = click.option(
    "--shards",
    type=Count(1),
    metavar="P",
    help="With --to meta: the model-parallel size, a consolidated.NN.pth each. [default: 1]",
)


def trained_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what can be said of a trainer's checkpoint."""
    like = click.option(
        "--like",
        type=Place(),
        metavar="FOLDER",
        help="Of a trained checkpoint: the Transformers folder, local or hf://, of the model that was trained.",
    )
    dialect = click.option(
        "--dialect",
        type=click.Choice(_dialects()),
        metavar="NAME",
        help="How a trained checkpoint's tensors are named, where names mislead; a wrong one lists all.",
    )
    fill = click.option(
        "--fill-from-like", is_flag=True, help="Take tensors that a trained checkpoint lacks from --like."
    )
    return like(dialect(fill(command)))


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add all that can be said of INPUT besides where it is."""
    return family_options(tokenizer_option(params_option(trained_options(endpoint_option(command)))))


def worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add who reads where that is much."""
    workers = click.option("--workers", type=Count(1), metavar="N", help="Read on Ray with so many workers.")
    address = click.option("--address", metavar="HOST:PORT", help="Ray cluster to use; also auto or local.")
    return workers(address(command))


class Resource(click.ParamType[tuple[str, float]]):
    """A custom resource of a Ray cluster: ``NAME=AMOUNT``."""

    name = "NAME=AMOUNT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Parse it; anything else is a usage error."""
        name, _, amount = str(value).rpartition("=")
        try:
            found = float(amount)
        except ValueError:
            found = math.nan
        if not name or not math.isfinite(found):
            self.fail(f"{value!r} is not NAME=AMOUNT, as ssd=0.5", param, ctx)
        return name, found


@contextlib.contextmanager
def ray_address(given: str | None) -> Iterator[str | None]:
    """Give the address of the Ray cluster to use, and say in its errors where that was not given but found."""
    found = os.environ.get("RAY_ADDRESS") if given in {None, "auto"} else None
    try:
        # Inside a Ray job the variable names the job's cluster.
        yield found or given
    except (ClusterError, UsageError) as error:
        if not found or found not in str(error):
            raise
        raise type(error)(
            f"{error}; the environment variable RAY_ADDRESS chose this address: unset it, or give --address local"
        ) from error
