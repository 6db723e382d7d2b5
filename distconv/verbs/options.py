"""What a conversion is asked to do."""

from dataclasses import dataclass, field

from distconv.errors import UsageError
from distconv.formats.meta.shards import MOST_SHARDS
from distconv.humanize import is_whole, parse_size
from distconv.moving.executor import Cluster
from distconv.storage.base import PathLike, Storage
from distconv.storage.places import open_places, read_place

DTYPE_CHOICES = ("auto", "float16", "bfloat16", "float32")
DEVICE_CHOICES = ("auto", "cpu", "cuda")
FORMAT_CHOICES = ("transformers", "meta")


@dataclass(frozen=True, slots=True)
class Options:
    """All that ``convert`` is told; UsageError for values that make no sense, or not together."""

    source: str
    output: str
    to: str = "transformers"
    shards: int | None = None
    """Of Meta's: the model-parallel size."""
    dtype: str = "auto"
    max_shard_size: int | None = None
    """In bytes."""
    device: str = "auto"
    family: str | None = None
    instruct: bool | None = None
    """None where nobody said it: a base model, and a note says so."""
    tokenizer: str | None = None
    params: str | None = None
    like: str | None = None
    """The Transformers folder of the model that a trained one is like."""
    dialect: str | None = None
    fill_from_like: bool = False
    check: bool = False
    verify: bool = False
    overwrite: bool = False
    ignore_free_space: bool = False
    trace: PathLike | None = None
    report: PathLike | None = None
    cluster: Cluster = field(default_factory=Cluster)
    endpoint_url: str | None = None
    """Of an S3 service other than Amazon's."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, value, choices in (
            ("dtype", self.dtype, DTYPE_CHOICES),
            ("device", self.device, DEVICE_CHOICES),
            ("to", self.to, FORMAT_CHOICES),
        ):
            if value not in choices:
                raise UsageError(f"{name} {value}: expected one of {', '.join(choices)}")
        if self.shards is not None and self.to != "meta":
            raise UsageError("`shards=` is the number of Meta's shards; it needs `to='meta'`")
        if self.instruct and self.to == "meta":
            raise UsageError(
                "`instruct=True` is about the stop tokens and the chat template of Transformers; Meta's layout has "
                "neither, and `to='meta'` needs no word of it: leave it out"
            )
        if self.fill_from_like and self.like is None:
            raise UsageError(
                "`fill_from_like=True` takes tensors from the folder that `like=` names: give that"
            )
        if self.shards is not None and not (is_whole(self.shards) and 1 <= self.shards <= MOST_SHARDS):
            raise UsageError(f"shards {self.shards!r}: expected a number, 1 to {MOST_SHARDS}")


def open_storage(options: Options, *beside: str | None) -> Storage:
    """Open the places of INPUT and OUTPUT, which may be several, and of what lies beside them."""
    named = (options.source, options.output, options.tokenizer, options.params, options.like, *beside)
    return open_places(*named, endpoint_url=options.endpoint_url)


def parse_size_or_none(size: int | str | None) -> int | None:
    """Take a number of bytes, or what a person writes for one, that need not be given."""
    return None if size is None else parse_size(size)


def read_place_or_none(path: PathLike | None) -> str | None:
    """Take a path or URL that need not be given."""
    return None if path is None else read_place(path)
