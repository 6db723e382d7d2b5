"""Options that several commands share, and the values they take."""

import re
from collections.abc import Callable

import click

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


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


def family_options(command: Callable[..., None]) -> Callable[..., None]:
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


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to standard output."
)
tokenizer_option = click.option(
    "--tokenizer", type=click.Path(), help="tokenizer.model, if it lies elsewhere."
)
params_option = click.option("--params", type=click.Path(), help="params.json, if it lies elsewhere.")
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
