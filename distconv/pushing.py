"""Upload a finished OUTPUT to the Hugging Face Hub, private unless it is said otherwise."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distconv.digests import ALGORITHM
from distconv.errors import ConversionError, OutputError, UsageError
from distconv.families.llama import FAMILIES
from distconv.proof import read_headers
from distconv.resuming import digest_receipt
from distconv.storage import LocalStorage, Storage, join
from distconv.survey import PathLike
from distconv.target.finalise import RECEIPT_NAME
from distconv.target.written import list_chunks, read_object

CARD_NAME = "README.md"
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


@dataclass(frozen=True, slots=True)
class PushReport:
    """What was uploaded, and where it is now."""

    url: str
    files: int
    private: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {"url": self.url, "files": self.files, "private": self.private, "notes": list(self.notes)}

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        return (f"{self.url}: {self.files} files, {'private' if self.private else 'public'}",)


def push(output: PathLike, repo: str, *, public: bool = False, quiet: bool = True) -> PushReport:
    """Upload OUTPUT's own files to ``repo`` (``USER/NAME``), with a model card where there is none.

    The token is the one of ``hf auth login`` or HF_TOKEN. An interrupted upload goes on when it
    is called again: what is there is not sent twice. Raises OutputError where OUTPUT is not a
    finished conversion, UsageError for a refused token, a bad name, or a public repository
    without ``public``; ConversionError for everything else that the hub or the network does.
    """
    storage, output_path = LocalStorage(), os.fspath(output)
    receipt = _read_finished(storage, output_path)
    names = [*(str(row["name"]) for row in _rows(receipt)), *_mapping(receipt, "files"), RECEIPT_NAME]
    card = None if storage.find(join(output_path, CARD_NAME)) else make_card(receipt)
    if card is None:
        names.append(CARD_NAME)
    return _upload(output_path, repo, names, card, public=public, quiet=quiet)


def _read_finished(storage: Storage, output: str) -> Mapping[str, object]:
    """Read the receipt of a conversion that is whole as far as headers and sizes tell."""
    _headers, findings = read_headers(storage, output, list_chunks(storage, output))
    if findings:
        raise OutputError("\n".join((f"{output}: not a whole model, and so not uploaded", *findings)))
    if storage.find(join(output, RECEIPT_NAME)) is None:
        raise OutputError(
            f"{output}: no {RECEIPT_NAME} in it, so distconv did not finish it; run `distconv convert` again"
        )
    receipt = read_object(storage, join(output, RECEIPT_NAME))
    if receipt.get("sha256") != digest_receipt(receipt):
        raise OutputError(f"{output}/{RECEIPT_NAME}: damaged or changed; see `distconv verify {output}`")
    for name in _mapping(receipt, "files"):
        if storage.find(join(output, name)) is None:
            raise OutputError(f"{output}/{name}: missing; see `distconv verify {output}`")
    return receipt


def make_card(receipt: Mapping[str, object]) -> str:
    """Write the model card: what this is, how it was made, and the digest of each file."""
    from huggingface_hub import ModelCardData

    conversion = _mapping(receipt, "conversion")
    name = str(conversion["family"])
    family = FAMILIES[name]
    known = _LICENCES.get(name)
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["llama", "distconv"],
        license=known or "other", license_name=None if known else "llama",
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_describe(conversion, family.title, receipt)) + "\n"


def _describe(conversion: Mapping[str, object], title: str, receipt: Mapping[str, object]) -> Iterator[str]:
    options = [
        f"--family {conversion['family']}",
        *(["--instruct"] if conversion["instruct"] else []),
        f"--dtype {conversion['dtype']}",
        f"--max-shard-size {conversion['max_shard_size']}",
    ]
    yield f"# {title}{' (instruct)' if conversion['instruct'] else ''}"
    yield ""
    yield f"Meta's original checkpoint, converted by distconv {conversion['distconv']}; stored as {conversion['dtype']}."
    yield "Its use is subject to the licence that it came under."
    yield ""
    yield "```"
    yield f"distconv convert INPUT OUTPUT {' '.join(options)}"
    yield "```"
    yield ""
    yield "## Source"
    yield ""
    yield "| file | bytes | SHA-256 of the file, or of its headers |"
    yield "| --- | --- | --- |"
    for name, row in _mapping(conversion, "source").items():
        size = f"{row['size_bytes']:,}" if "size_bytes" in row else ""
        digest = f"`{row['sha256']}`" if "sha256" in row else f"headers `{row['headers_sha256']}`"
        yield f"| {name} | {size} | {digest} |"
    yield ""
    yield "## Files"
    yield ""
    yield "| file | bytes | digest |"
    yield "| --- | --- | --- |"
    for chunk in _rows(receipt):
        yield f"| {chunk['name']} | {chunk['size_bytes']:,} | XXH3-128 `{chunk[ALGORITHM]}` |"
    for name, sha256 in _mapping(receipt, "files").items():
        yield f"| {name} | | SHA-256 `{sha256}` |"
    yield ""
    yield f"`{RECEIPT_NAME}` has a digest of every tensor; `distconv verify FOLDER` checks a download against it."


def _upload(
    output: str, repo: str, names: list[str], card: str | None, *, public: bool, quiet: bool
) -> PushReport:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    notes = []
    shown = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        api = HfApi(library_name="distconv")
        place = api.create_repo(repo, private=not public, exist_ok=True)
        private = bool(api.repo_info(place.repo_id).private)
        if not private and not public:
            raise UsageError(
                f"{repo}: is public already; add --public if that is meant, or give another name"
            )
        api.upload_folder(
            repo_id=place.repo_id,
            folder_path=output,
            allow_patterns=names,
            commit_message="Upload a converted model",
        )
        if card is not None and api.file_exists(place.repo_id, CARD_NAME):
            notes.append(f"{repo} has a {CARD_NAME} already, which stays as it is")
        elif card is not None:
            api.upload_file(
                path_or_fileobj=card.encode(), path_in_repo=CARD_NAME, repo_id=place.repo_id,
                commit_message="Describe how the model was made",
            )  # fmt: skip
            names = [*names, CARD_NAME]
    except (LocalTokenNotFoundError, HFValidationError) as error:
        raise UsageError(f"{repo}: {error}") from None
    except HfHubHTTPError as error:
        raise _explain(repo, error.response.status_code, str(error.server_message or "")) from None
    except (OSError, UsageError):
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise ConversionError(
            f"{repo}: {type(error).__name__}: {first}; run the same command again to go on"
        ) from error
    finally:
        if quiet and shown:
            enable_progress_bars()
    return PushReport(str(place), len(names), private, tuple(notes))


def _explain(repo: str, status: int, said: str) -> UsageError | ConversionError:
    words = f" ({said})" if said else ""
    if status == 401:
        return UsageError(f"{repo}: the hub wants a token{words}; run `hf auth login` or set HF_TOKEN")
    if status in {403, 404}:
        return UsageError(
            f"{repo}: the token may not write there{words}; use one with write access, and check the name before the /"
        )
    return ConversionError(f"{repo}: the hub answered {status}{words}; run the same command again to go on")


def _mapping(receipt: Mapping[str, object], key: str) -> Mapping[str, dict[str, object]]:
    found = receipt[key]
    assert isinstance(found, dict)  # noqa: S101  its digest was right, so distconv wrote it
    return found


def _rows(receipt: Mapping[str, object]) -> list[dict[str, object]]:
    found = receipt["chunks"]
    assert isinstance(found, list)  # noqa: S101  its digest was right, so distconv wrote it
    return found
