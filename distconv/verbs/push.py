"""Upload a finished OUTPUT to the Hugging Face Hub, private unless it is said otherwise."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.errors import ConversionError, DistconvError, OutputError, UsageError
from distconv.moving.progress import Progress
from distconv.moving.progress_default import take_progress
from distconv.output.findings import Depth
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.output.proof import prove
from distconv.output.receipt import ModelReceipt, read_receipt
from distconv.output.targets import CARD_NAME, RECEIPT_NAME
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.local import LocalStorage
from distconv.storage.pinning import make_stamp
from distconv.storage.places import read_local
from distconv.storage.web.hub_errors import describe_unreachable, is_of_connection
from distconv.verbs.card import make_card
from distconv.verbs.reports import Report
from distconv.verbs.sign import SIGNATURE_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True, slots=True, repr=False)
class PushReport(Report):
    """What was uploaded, and where it is now."""

    url: str
    files: int
    private: bool
    examined: str
    """What was looked at before anything was sent, for people."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "url": self.url,
            "files": self.files,
            "private": self.private,
            "examined": self.examined,
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        seen = "private" if self.private else "public"
        return (f"{self.url}: {self.files} files, {seen}; looked at: {self.examined}",)


def push(
    output: PathLike,
    repo: str,
    *,
    public: bool = False,
    verify: bool = True,
    quiet: bool = True,
    progress: Progress | None = None,
) -> PushReport:
    """Upload ``output``'s own files to ``repo`` ("USER/NAME"), a signature in it too, with a model card where there is none.

    ``output`` must be whole: structure and small files, and with ``verify`` the digests of all data. The token is the
    one of ``hf auth login`` or HF_TOKEN. The repository is private unless ``public`` is given. An interrupted upload
    goes on when it is called again: what is there is not sent twice. ``progress`` is told of the proof; the hub's own
    bars show the upload unless ``quiet``. Raises OutputError where ``output`` is not a finished conversion, UsageError
    for a refused token, a bad name, or a public repository without ``public``; ConversionError for everything else
    that the hub or the network does.
    """
    storage, output_path = LocalStorage(), read_local(output)
    _refuse_bad_name(repo)
    depth = Depth.DATA if verify else Depth.STRUCTURE
    # Before the proof, so that what is sent is what was proved.
    before = _list_chunks(storage, output_path)
    proof = prove(storage, output_path, depth, take_progress(progress))
    findings = [finding.words for finding in proof.findings]
    if proof.receipt is None and not findings:
        findings.append(
            f"no {RECEIPT_NAME} in it, so distconv did not finish it; run `distconv convert` again"
        )
    if proof.receipt is None or findings:
        raise OutputError("\n".join((f"{output_path}: not a whole model, and so not uploaded", *findings)))
    files = _read_files(output_path, proof.receipt)
    model = _Model(output_path, before, files, make_card(proof.receipt, files))
    with _without_bars(quiet=quiet):
        return _upload(model, repo, proof.examined, public=public)


def _refuse_bad_name(repo: str) -> None:
    """Raise UsageError for a name that the hub would refuse, which may be after hours of reading."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(
            f"{repo!r}: no name of a repository on the hub; expected USER/NAME of letters, digits, -, _ and ., each with "
            "a letter or digit at both ends, without -- and .., and not ending in .git"
        ) from None


@dataclass(frozen=True, slots=True)
class _Model:
    """What is sent."""

    output: str
    chunks: Mapping[str, str]
    """By name, what each looked like before it was proved."""
    files: Mapping[str, bytes]
    """Everything else, as it was read and proved, a README.md that is there already included."""
    card: str


def _look(path: str) -> str:
    """Tell a regular file from one that was changed or put in its place; OutputError where it is a link or no file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise OutputError(f"{path}: missing; see `distconv verify`") from None
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{path}: a link, folder or device, expected a file of its own; not uploaded")
    return f"{found.st_dev} {make_stamp(found)}"


def _list_chunks(storage: Storage, output: str) -> dict[str, str]:
    """Look at the chunks that the receipt names; none where there is no good one, which the proof tells."""
    path = join(output, RECEIPT_NAME)
    if storage.find(path) is None:
        return {}
    _look(path)
    try:
        names = [chunk.name for chunk in read_receipt(storage, path).chunks]
    except OutputError:
        return {}
    return {name: _look(join(output, name)) for name in names if os.path.lexists(join(output, name))}


def _read_files(output: str, receipt: ModelReceipt) -> dict[str, bytes]:
    """Read what stands beside the chunks; what is sent is these bytes."""
    files = {name: _read_own(join(output, name)) for name in receipt.files}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != receipt.files[name]:
            raise OutputError(
                f"{join(output, name)}: changed while it was read; not uploaded, run the same command again"
            )
    for name in (CARD_NAME, SIGNATURE_NAME):
        if os.path.lexists(join(output, name)):
            files[name] = _read_own(join(output, name))
    return files | {RECEIPT_NAME: receipt.content}


def _read_own(path: str) -> bytes:
    """Read a small regular file, following no link."""
    _look(path)
    # Between the two it may have become a link, or a pipe that would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        content = file.read(SMALL_FILE_BYTES + 1)
    if len(content) > SMALL_FILE_BYTES:
        raise OutputError(f"{path}: more than {SMALL_FILE_BYTES:,} bytes; not uploaded")
    return content


def _upload(model: _Model, repo: str, examined: str, *, public: bool) -> PushReport:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    notes = []
    files = dict(model.files)
    try:
        api = HfApi(library_name="distconv")
        place = api.create_repo(repo, private=not public, exist_ok=True)
        private = bool(api.repo_info(place.repo_id).private)
        if not private and not public:
            raise UsageError(
                f"{repo}: is public already; add `public=True` if that is meant, or give another name"
            )
        if CARD_NAME not in files and api.file_exists(place.repo_id, CARD_NAME):
            notes.append(f"{repo} has a {CARD_NAME} already, which stays as it is")
        else:
            files.setdefault(CARD_NAME, model.card.encode())
        _send(api, place.repo_id, model, files)
    except LocalTokenNotFoundError:
        raise _explain(repo, 401, "") from None
    except HfHubHTTPError as error:
        raise _explain(repo, error.response.status_code, str(error.server_message or "")) from None
    except (OSError, DistconvError):
        raise
    except Exception as error:
        if is_of_connection(error):
            raise describe_unreachable(repo, constants.ENDPOINT, error) from None
        first = next(iter(str(error).splitlines()), "")
        raise ConversionError(
            f"{repo}: {type(error).__name__}: {first}; run the same command again to go on"
        ) from error
    return PushReport(str(place), len(model.chunks) + len(files), private, examined, tuple(notes))


@contextmanager
def _without_bars(*, quiet: bool) -> Iterator[None]:
    """Let the hub's library draw no bars for the block, where nothing is to be shown."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet and shown:
            enable_progress_bars()


def _send(api: "HfApi", repo_id: str, model: _Model, files: Mapping[str, bytes]) -> None:
    """Send the chunks, and, if they are still the ones that were proved, make all of it one commit."""
    from huggingface_hub import CommitOperationAdd

    _check_unchanged(model)
    chunks = [CommitOperationAdd(name, join(model.output, name)) for name in model.chunks]
    api.preupload_lfs_files(repo_id, chunks, free_memory=False)
    _check_unchanged(model)
    small = [CommitOperationAdd(name, content) for name, content in files.items()]
    api.create_commit(repo_id, [*chunks, *small], commit_message="Upload a converted model")


def _check_unchanged(model: _Model) -> None:
    for name, before in model.chunks.items():
        if _look(join(model.output, name)) != before:
            raise OutputError(
                f"{join(model.output, name)}: changed since it was looked at; nothing was committed, run the same command again"
            )


def _explain(repo: str, status: int, said: str) -> UsageError | ConversionError:
    words = f" ({said})" if said else ""
    if status == 401:
        return UsageError(f"{repo}: the hub wants a token{words}; run `hf auth login` or set HF_TOKEN")
    if status in {403, 404}:
        return UsageError(
            f"{repo}: the token may not write there{words}; use one with write access, and check the name before the /"
        )
    return ConversionError(f"{repo}: the hub answered {status}{words}; run the same command again to go on")
