"""As whom a store is asked, and where it is: credentials, region, endpoint and signatures, as botocore finds them."""

import logging
import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from distconv.errors import ConversionError, DistconvError
from distconv.storage.extras import need
from distconv.storage.http.wire import trust
from distconv.storage.s3.place import Place, check_endpoint

_DEFAULT_REGION = "us-east-1"
_UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(slots=True)
class Access:
    """Signs requests; safe to use from several threads. Nothing of it but ``identity`` may be shown."""

    endpoint: str
    """Scheme and host, and the path before the bucket if there is one."""
    region: str
    is_virtual: bool
    """Whether the bucket stands in the host's name."""
    follows_region: bool
    """Whether another region has another endpoint."""
    identity: str
    """Whose credentials they are, without any of them."""
    sums: bool
    """Whether checksums are sent."""
    _session: object = field(repr=False)
    _credentials: object = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def find_endpoint(self, region: str) -> str:
        """Give the endpoint of a region."""
        if not self.follows_region or region == self.region:
            return self.endpoint
        with self._lock:
            return _resolve(self._session, region)

    def sign(self, method: str, url: str, headers: Mapping[str, str], region: str) -> dict[str, str]:
        """Give the headers of a signed request (Signature Version 4).

        The payload's SHA-256 is not part of it, over http neither: it would cost more than all the rest of
        an upload, and S3 takes ``UNSIGNED-PAYLOAD`` either way. The signed headers have the payload's CRC64NVME.
        """
        auth, awsrequest = need("botocore.auth", "s3"), need("botocore.awsrequest", "s3")
        signer = auth.S3SigV4Auth(self._freeze(), "s3", region)
        signer.payload = lambda _request: _UNSIGNED
        request = awsrequest.AWSRequest(method=method, url=url, headers=dict(headers))
        signer.add_auth(request)
        signed = {name: str(value) for name, value in request.headers.items()}
        if not all(value.isascii() and value.isprintable() for value in signed.values()):
            raise ConversionError(
                f"s3: {self.identity} or the region hold a line's end or a sign that is not ASCII, which no request can "
                "have; is one too many in AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN or AWS_REGION?"
            )
        return signed

    def _freeze(self) -> object:
        with _told(f"the credentials of {self.identity} could not be had: "):
            return self._credentials.get_frozen_credentials()  # type: ignore[attr-defined]


@contextmanager
def _told(what: str = "") -> Iterator[None]:
    """Tell as ConversionError what botocore cannot do: it runs programs, and reads files and answers that others made."""
    exceptions = need("botocore.exceptions", "s3")
    try:
        yield
    except DistconvError:
        raise
    except exceptions.BotoCoreError as error:
        raise ConversionError(f"s3: {what}{' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConversionError(f"s3: {what}{error.filename or ''}: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001
        # Its text may be of what was read.
        raise ConversionError(
            f"s3: {what}AWS's settings, or what they lead to, are not of the form that is expected "
            f"({type(error).__name__}); look at the AWS_ variables, the profile and its credential_process"
        ) from None


def find_access(place: Place) -> Access:
    """Find credentials, region and endpoint; ConversionError where there are no credentials."""
    session_module = need("botocore.session", "s3")
    # What it signs, session tokens included, it tells whoever wants to see all that is logged.
    logging.getLogger("botocore.auth").setLevel(logging.INFO)
    with _told():
        session = session_module.Session(profile=place.profile)
        # As all of AWS's tools but botocore have it.
        chosen = place.region or os.environ.get("AWS_REGION")
        if chosen:
            session.set_config_variable("region", chosen)
        credentials = session.get_credentials()
        region = session.get_config_variable("region") or _DEFAULT_REGION
        given = place.endpoint_url or _find_configured(session)
        endpoint = (given or _resolve(session, region)).rstrip("/")
        style = place.addressing
        if style == "auto":
            style = (session.get_config_variable("s3") or {}).get("addressing_style", "auto")
        sums = (session.get_config_variable("request_checksum_calculation") or "").lower() != "when_required"
    if credentials is None:
        raise ConversionError(
            "s3: no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or give the machine or the pod a role"
        )
    return Access(
        endpoint, region, style == "virtual" or (style == "auto" and not given), not given,
        _name(place, credentials.method), sums, session, credentials,
    )  # fmt: skip


def make_context(place: Place) -> ssl.SSLContext:
    """Trust what the system trusts, and the certificates that botocore brings or is told of."""
    session = need("botocore.session", "s3").Session(profile=place.profile)
    given = session.get_config_variable("ca_bundle")
    return trust(given or need("botocore.httpsession", "s3").get_cert_path(True), "AWS_CA_BUNDLE")


def _find_configured(session: object) -> str | None:
    """Give the endpoint that environment or profile name, in the order in which AWS's own tools look."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):  # type: ignore[attr-defined]
        return None
    profile = session.get_scoped_config()  # type: ignore[attr-defined]
    services = session.full_config.get("services", {})  # type: ignore[attr-defined]
    for given_by, found in (
        *((name, os.environ.get(name)) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")),
        (
            "endpoint_url of the profile's services",
            services.get(profile.get("services"), {}).get("s3", {}).get("endpoint_url"),
        ),
        ("endpoint_url of the profile", profile.get("endpoint_url")),
    ):
        if found:
            check_endpoint(found, given_by)
            return str(found)
    return None


def _resolve(session: object, region: str) -> str:
    """Give AWS's own endpoint of a region, by the domain of what AWS calls a partition."""
    partition = session.get_partition_for_region(region)  # type: ignore[attr-defined]
    partitions = session.get_data("endpoints")["partitions"]  # type: ignore[attr-defined]
    domain = next(found["dnsSuffix"] for found in partitions if found["partition"] == partition)
    return f"https://s3.{region}.{domain}"


def _name(place: Place, method: str) -> str:
    role = os.environ.get("AWS_ROLE_ARN")
    if method == "assume-role-with-web-identity" and role:
        return f"the role {role}"
    if method == "env":
        return "the credentials of the environment"
    profile = place.profile or os.environ.get("AWS_PROFILE")
    return f"the profile {profile}" if profile else f"the credentials found by {method}"


def host_of(endpoint: str) -> str:
    """Give what may be shown of an endpoint."""
    return urlsplit(endpoint).netloc
