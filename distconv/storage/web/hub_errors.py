"""What goes wrong with the Hugging Face Hub, in one message each that says what to do, and nothing secret."""

import errno
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from distconv.errors import ConversionError, InputError
from distconv.storage.http.retry import TransientError
from distconv.storage.web.answers import find_wait, is_transient

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


def explain(path: str, endpoint: str, error: Exception) -> Exception:
    """Give the error that one of the hub's library stands for; TransientError where it may pass."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    host = urlsplit(endpoint).netloc
    if isinstance(error, OfflineModeIsEnabled):
        return ConversionError(
            f"{path}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing is asked of {host}; unset it, or "
            "give a folder that was downloaded before"
        )
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(path, endpoint, error)
    if isinstance(error, UnicodeEncodeError):
        return ConversionError(
            f"{path}: HF_TOKEN, or what `hf auth login` left, has a sign that no token has; mend it"
        )
    if isinstance(error, OSError) or is_of_connection(error):
        return describe_unreachable(path, endpoint, error)
    return ConversionError(
        f"{path}: {host} answers what is not the hub's ({type(error).__name__}); is HF_ENDPOINT right?"
    )


def is_of_connection(error: Exception) -> bool:
    """Whether the library by which the hub's own asks says that a connection failed."""
    return type(error).__module__.partition(".")[0].startswith("httpx")


def describe_unreachable(path: str, endpoint: str, error: Exception) -> TransientError:
    """Give the error that a failed connection to the hub stands for."""
    return TransientError(
        errno.EHOSTUNREACH,
        f"{urlsplit(endpoint).netloc} cannot be reached ({type(error).__name__}); is this machine online? "
        "HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy",
        path,
    )


def find_token() -> str | None:
    """Find the token as the hub's library does, in HF_TOKEN or where `hf auth login` left it; it is a secret."""
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _explain_answer(path: str, endpoint: str, error: "HfHubHTTPError") -> Exception:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    status, host = error.response.status_code, urlsplit(endpoint).netloc
    repo = "/".join(path.split("/")[2:4]).partition("@")[0]
    if isinstance(error, RemoteEntryNotFoundError):
        return FileNotFoundError(errno.ENOENT, f"not in {repo} at {host}", path)
    if is_transient(status):
        transient = TransientError(errno.EAGAIN, f"{host} answers {status}", path)
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        transient.after_seconds = find_wait(headers)
        return transient
    refusal = _describe_refusal(repo, endpoint, error)
    if refusal is None:
        return ConversionError(f"{path}: {host} answers {status}; run the same command again")
    return InputError(f"{path}: {refusal}")


def _describe_refusal(repo: str, endpoint: str, error: "HfHubHTTPError") -> str | None:
    """Say why a repository cannot be read, and what to do."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    host, status = urlsplit(endpoint).netloc, error.response.status_code
    has_token = find_token() is not None
    if isinstance(error, GatedRepoError):
        then = (
            "with the account of this token, which has no access yet"
            if has_token
            else "then run `hf auth login` or set HF_TOKEN: no token was sent"
        )
        return f"gated ({status}); ask for access at {endpoint}/{repo}, wait until it is granted, {then}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such branch, tag or commit; give hf://{repo}@REVISION"
    if isinstance(error, DisabledRepoError):
        return f"{host} has disabled {repo}"
    if isinstance(error, RepositoryNotFoundError) or status in {401, 403, 404}:
        hint = (
            "or the token may not see it, or is not valid: `hf auth whoami` tells whose it is"
            if has_token
            else "or it is private: run `hf auth login` or set HF_TOKEN"
        )
        return f"{host} shows no {repo} ({status}); the name is wrong, {hint}"
    return None
