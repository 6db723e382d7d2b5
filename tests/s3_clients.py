"""A client of S3 that is not ours, botocore's: it tries each request once and adds nothing of its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import ClientError


@contextlib.contextmanager
def make_client(url: str, access_key: str, secret_key: str, **options: Any) -> Iterator[BaseClient]:
    """Give a client, and close it; ``options`` are those of botocore's Config."""
    with contextlib.closing(open_client(url, access_key, secret_key, **options)) as client:
        yield client


def open_client(url: str, access_key: str, secret_key: str, **options: Any) -> BaseClient:
    """Open a client; ``options`` are those of botocore's Config."""
    config = Config(
        **{
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "max_pool_connections": 64,
            "proxies": {},
        }
        | options
    )
    session = botocore.session.Session()
    session.set_credentials(access_key, secret_key)
    return session.create_client("s3", region_name="us-east-1", endpoint_url=url, config=config)


def code_of(error: ClientError) -> str:
    """Give S3's code of an error; of an answer to HEAD, which has no body, the status."""
    return str(error.response["Error"]["Code"])
