"""The model card of what is uploaded: what it is, how it was made, and the digest of each file."""

import posixpath
from collections.abc import Iterator, Mapping

from distconv.errors import OutputError
from distconv.families.known import ALL_FAMILIES
from distconv.families.llama import Family
from distconv.formats.meta.checklist import parse_checklist
from distconv.formats.meta.scales import is_scales_name
from distconv.humanize import format_count
from distconv.output.receipt import Conversion, ModelReceipt
from distconv.output.targets import RECEIPT_NAME, TRANSFORMERS

_LICENCES = {
    "llama-2": "llama2",
    "code-llama": "llama2",
    "code-llama-70b-python": "llama2",
    "llama-guard-1": "llama2",
    "llama-3": "llama3",
    "llama-guard-2": "llama3",
    "llama-3.1": "llama3.1",
    "llama-guard-3": "llama3.1",
    "llama-3.2": "llama3.2",
    "llama-guard-3-1b": "llama3.2",
    "llama-3.3": "llama3.3",
}
"""The hub's names of Meta's licences, by family; Llama 1's has none."""


def make_card(receipt: ModelReceipt, files: Mapping[str, bytes]) -> str:
    """Write the model card; ``files`` are the contents of what stands beside the weights, by name.

    OutputError where the model is of a family that is unknown here.
    """
    from huggingface_hub import ModelCardData

    conversion = receipt.conversion
    if conversion.family not in ALL_FAMILIES:
        raise OutputError(
            f"{RECEIPT_NAME}: family {conversion.family} is unknown here; use the distconv that wrote it"
        )
    known = _LICENCES.get(conversion.family)
    family = ALL_FAMILIES[conversion.family]
    kind = "mistral" if family.is_of_mistral else "llama"
    data = ModelCardData(
        library_name="transformers" if conversion.target is TRANSFORMERS else None,
        pipeline_tag="text-generation", tags=[kind, "distconv"],
        license=known or "other", license_name=None if known else kind,
    )  # fmt: skip
    lines = (
        *_describe(conversion, family),
        *_list_sources(conversion),
        *_list_files(receipt, files),
        f"`{RECEIPT_NAME}` has a digest of every tensor; `distconv verify FOLDER` checks a download against it.",
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _describe(conversion: Conversion, family: Family) -> Iterator[str]:
    what = f"{'Mistral' if family.is_of_mistral else 'Meta'}'s original checkpoint"
    if conversion.shards is not None:
        what = f"A model for Meta's code in {format_count(conversion.shards, 'shard')}"
    yield f"# {family.title}{' (instruct)' if conversion.instruct else ''}"
    yield ""
    scaled = any(is_scales_name(posixpath.basename(source.name)) for source in conversion.sources)
    of_what = ", dequantized from FP8: each value times its scale, rounded" if scaled else ""
    yield f"{what}, converted by distconv {conversion.version}; stored as {conversion.dtype}{of_what}."
    yield "Its use is subject to the licence that it came under."
    yield ""
    yield "```"
    yield f"distconv convert INPUT OUTPUT {' '.join(_list_options(conversion))}"
    yield "```"
    yield ""


def _list_options(conversion: Conversion) -> Iterator[str]:
    """Give the options that make the same files again."""
    if conversion.shards is not None:
        yield f"--to {conversion.target.name} --shards {conversion.shards}"
    elif conversion.instruct:
        yield "--instruct"
    yield f"--family {conversion.family}"
    yield f"--dtype {conversion.dtype}"
    if conversion.max_shard_size is not None:
        yield f"--max-shard-size {conversion.max_shard_size}"


def _list_sources(conversion: Conversion) -> Iterator[str]:
    yield "## Source"
    yield ""
    yield "| file | bytes | SHA-256 of the file, or of its headers |"
    yield "| --- | --- | --- |"
    for source in conversion.sources:
        size = "" if source.size_bytes is None else f"{source.size_bytes:,}"
        digest = f"`{source.sha256}`" if source.size_bytes is None else f"headers `{source.sha256}`"
        yield f"| {_escape(source.name)} | {size} | {digest} |"
    yield ""


def _list_files(receipt: ModelReceipt, files: Mapping[str, bytes]) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "| file | bytes | digest |"
    yield "| --- | --- | --- |"
    checklist = receipt.conversion.target.checklist
    # Of what several workers wrote in parts, the checklist alone has a digest.
    listed = () if checklist is None else parse_checklist(checklist, "", files[checklist])
    md5s = {entry.path: entry.md5 for entry in listed}
    for chunk in receipt.chunks:
        digest = f"XXH3-128 `{chunk.digest}`" if chunk.digest is not None else f"MD5 `{md5s[chunk.name]}`"
        yield f"| {chunk.name} | {chunk.size_bytes:,} | {digest} |"
    for name, sha256 in receipt.files.items():
        yield f"| {name} | | SHA-256 `{sha256}` |"
    yield ""


def _escape(name: str) -> str:
    """Keep a file's name, which may be any text, in its cell of a table."""
    return "".join(sign if sign.isalnum() or sign in " ._-/" else f"&#{ord(sign)};" for sign in name)
