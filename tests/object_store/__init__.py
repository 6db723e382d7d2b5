"""A store that speaks S3, for tests and measurements: exact, shaped, and faulty where it is told to be.

``start`` runs one in a process of its own; ``python -m tests.object_store`` does so by hand. It needs the
standard library alone. Not here: TLS, chunked bodies (aws-chunked), copies, versions of objects.
"""

from tests.object_store.bodies import made_up_bytes
from tests.object_store.client import ObjectStore, start
from tests.object_store.faults import Fault
from tests.object_store.records import Record
from tests.object_store.state import SECOND_ACCESS_KEY, SECOND_SECRET_KEY, Settings

__all__ = [
    "SECOND_ACCESS_KEY",
    "SECOND_SECRET_KEY",
    "Fault",
    "ObjectStore",
    "Record",
    "Settings",
    "made_up_bytes",
    "start",
]
