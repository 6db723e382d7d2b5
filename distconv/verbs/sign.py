"""Sign what a folder holds, and what it was made of, with a key of one's own; check such a signature.

The statement is the in-toto one of model-signing, which lists the SHA-256 of every file, so that its own command
checks it too. What distconv.json says of the conversion stands in it beside that: the source's digests and the
options, of which the same bytes can be made again. Only what is on a local disk can be signed.
"""

import base64
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distconv.errors import OutputError, UsageError, describe_missing_package
from distconv.humanize import format_count
from distconv.moving.progress import Progress
from distconv.moving.progress_default import take_progress
from distconv.output.findings import Depth
from distconv.output.proof import prove
from distconv.output.targets import CARD_NAME
from distconv.storage.base import PathLike
from distconv.storage.given import refuse_other
from distconv.storage.local import LocalStorage
from distconv.storage.places import find_scheme, open_places, read_local, read_place, read_small_output
from distconv.verbs.reports import Report

SIGNATURE_NAME = "model.sig"
_MISSING = describe_missing_package("model-signing", "sign")
_OF_GIT = re.compile(r"\.git(/|ignore$|attributes$|hub/)")
_PUBLIC = "the public key as PEM"
_KEYS = "an elliptic-curve key as PEM, without a password: openssl ecparam -genkey -name prime256v1 -noout"


@dataclass(frozen=True, slots=True, repr=False)
class SignReport(Report):
    """What was signed."""

    output: str
    signature: str
    files: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "output": self.output,
            "signature": self.signature,
            "files": self.files,
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        return (f"{self.signature}: signs {format_count(self.files, 'file')} of {self.output}",)


def sign(
    output: PathLike,
    key: PathLike,
    *,
    signature: PathLike | None = None,
    progress: Progress | None = None,
) -> SignReport:
    """Look at all data of ``output``, and sign it with the private ``key``, an elliptic-curve key as a PEM file.

    The ``signature``, a bundle of sigstore's, goes to that file, or to model.sig in ``output``. ``progress`` is told how
    far along it is. Raises OutputError where ``output`` is not whole, UsageError where the key is none that can be used.
    """
    try:
        from model_signing._signing import sign_ec_key
        from model_signing._signing.signing import Payload
        from model_signing.hashing import Config
    except ImportError:
        raise UsageError(_MISSING) from None
    folder = read_place(output)
    if find_scheme(folder) is not None:
        raise UsageError(f"{folder}: only a folder of this host can be signed; copy it here")
    path = _take_path(signature or os.path.join(folder, SIGNATURE_NAME))
    _refuse_missing(key, _KEYS)
    try:
        signer = sign_ec_key.Signer(Path(key))
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"{os.fspath(key)}: {error}; expected {_KEYS}") from None
    proof = prove(open_places(folder), folder, Depth.DATA, take_progress(progress))
    if proof.findings:
        raise OutputError(
            "\n".join((f"{folder}: not whole, and so not signed", *(found.words for found in proof.findings)))
        )
    config = Config()  # type: ignore[no-untyped-call]
    manifest = config.set_ignored_paths(paths=_find_inside(folder, path)).hash(folder)
    payload = Payload(manifest)
    if proof.receipt is not None:
        payload.statement.pb.predicate.update({"conversion": dict(proof.receipt.identity)})
    signer.sign(payload).write(path)
    files = sum(1 for _ in manifest.resource_descriptors())
    return SignReport(folder, str(path), files, proof.notes)


def _take_path(signature: PathLike) -> Path:
    """Take where the signature goes; UsageError where something else is."""
    path = read_small_output(read_local(signature))
    refuse_other(LocalStorage(), path, _is_signature, "signature")
    return Path(path)


def _is_signature(head: bytes) -> bool:
    return head.startswith(b"{") and b"application/vnd.dev.sigstore.bundle" in head


def _refuse_missing(path: PathLike, expected: str) -> None:
    """Raise UsageError where there is no such file."""
    if not Path(path).is_file():
        raise UsageError(f"{os.fspath(path)}: no such file; expected {expected}")


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature is worth."""

    false: str | None = None
    """Why it is not that of the folder by the key; None where it is."""
    notes: tuple[str, ...] = ()
    """What in the folder it does not sign, and does no harm."""


def read_signature(signature: PathLike, public_key: PathLike) -> Callable[[str], Signed]:
    """Give what compares a signature by this key with a folder.

    UsageError where there is no such file, or no key in it.
    """
    try:
        from model_signing.verifying import Config
    except ImportError:
        raise UsageError(_MISSING) from None
    _refuse_missing(public_key, _PUBLIC)
    try:
        config = Config()  # type: ignore[no-untyped-call]
        verifier = config.use_elliptic_key_verifier(public_key=Path(public_key)).set_ignore_unsigned_files(
            True
        )
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"{os.fspath(public_key)}: {error}; expected {_PUBLIC}") from None
    path = Path(signature)
    _refuse_missing(path, "a signature that distconv sign made")

    def compare(output: str) -> Signed:
        words = f"{path}: not a signature by this key of what {output} holds"
        try:
            verifier.verify(Path(output), path)
            unsigned = _list_files(output) - _list_signed(path) - set(_find_inside(output, path))
        # Whatever a damaged signature makes of the library, it is the signature's fault.
        except Exception as error:  # noqa: BLE001
            return Signed(f"{words}: {_describe(error)}")
        if others := sorted(unsigned - {CARD_NAME}):
            return Signed(f"{words}: Extra files: {', '.join(others)}")
        # Whoever publishes a model writes one, and no loader reads it.
        return Signed(notes=tuple(f"{os.path.join(output, name)}: not signed" for name in unsigned))

    return compare


def _list_files(folder: str) -> set[str]:
    """Give the paths in a folder of all that model-signing would sign, links to folders too: not what git has there."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        within = [os.path.join(place, name) for name in folders]
        found += [os.path.join(place, name) for name in names] + list(filter(os.path.islink, within))
    return {path for each in found if not _OF_GIT.match(path := os.path.relpath(each, folder))}


def _list_signed(signature: Path) -> set[str]:
    """Give the paths that a good signature's statement lists."""
    bundle = json.loads(signature.read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return {row["name"] for row in statement["predicate"]["resources"]}


def _find_inside(folder: str, path: Path) -> list[str]:
    """Give the signature's own path in the folder, if it goes there: it is no part of what is signed."""
    inside = os.path.relpath(path, folder)
    return [] if inside.startswith(os.pardir) else [inside]


def _describe(error: Exception) -> str:
    """Say briefly what model-signing says: its digests are Python's bytes."""
    text = " ".join(str(error).split())
    changed = re.findall(r"Hash mismatch for '([^']+)'", text)
    others = re.findall(r"(?:Extra|Missing) files [^\"\]]*", text)
    said = [*([f"changed: {', '.join(changed)}"] if changed else []), *others]
    return "; ".join(said) or f"{type(error).__name__}: {text}"
