"""What was asked of a store, request by request."""

import threading
import time
from dataclasses import asdict, dataclass, field

SECRET_HEADERS = {"authorization", "x-amz-security-token"}
SECRET_PARAMETERS = {"X-Amz-Credential", "X-Amz-Signature", "X-Amz-Security-Token"}


@dataclass(slots=True)
class Record:
    """One request; times are of a monotonic clock, in seconds.

    ``status`` is 0 as long as nothing is answered, and where the connection was reset instead. ``bytes_out``
    is what the answer's body is to have, and once it ended (``ended_s``) what went.
    """

    number: int
    connection: int
    operation: str
    verb: str
    bucket: str
    key: str
    parameters: dict[str, str]
    headers: dict[str, str]
    client: str = ""
    access_key: str = ""
    began_s: float = 0.0
    answered_s: float = 0.0
    ended_s: float = 0.0
    status: int = 0
    code: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def range(self) -> str:
        """The Range header, or nothing."""
        return self.headers.get("range", "")


class Records:
    """All requests since the list was cleared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Record] = []
        self._count = 0

    def begin(self, connection: int, operation: str, verb: str, where: tuple[str, str]) -> Record:
        """Add a request that has come."""
        with self._lock:
            self._count += 1
            record = Record(
                self._count, connection, operation, verb, *where, {}, {}, began_s=time.monotonic()
            )
            self._all.append(record)
        return record

    def give(self, *, clear: bool) -> list[dict[str, object]]:
        """Give all as JSON's values, and forget them if told so."""
        with self._lock:
            found = [asdict(record) for record in self._all]
            if clear:
                self._all.clear()
        return found


def without(secrets: set[str], values: dict[str, str]) -> dict[str, str]:
    """Leave secrets out."""
    return {name: value for name, value in values.items() if name not in secrets}
