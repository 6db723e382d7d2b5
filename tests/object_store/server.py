"""The store: a thread a connection; each request is told, shaped, struck by faults, done and answered."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable

from tests.object_store import control, lists, objects, signatures, uploads, xml
from tests.object_store.connection import Answer, Connection, Pace
from tests.object_store.errors import Disconnected, StoreError
from tests.object_store.faults import Fault, Faults
from tests.object_store.records import SECRET_HEADERS, SECRET_PARAMETERS, Record, Records, without
from tests.object_store.request import Received, Request, receive, understand
from tests.object_store.state import Settings, State

VERBS: dict[str, Callable[[State, Request, Received], Answer]] = {
    "GetObject": objects.get_object,
    "HeadObject": objects.get_object,
    "PutObject": objects.put_object,
    "DeleteObject": objects.delete_object,
    "HeadBucket": objects.head_bucket,
    "CreateBucket": objects.create_bucket,
    "ListObjectsV2": lists.list_objects,
    "ListMultipartUploads": lists.list_uploads,
    "ListParts": lists.list_parts,
    "CreateMultipartUpload": uploads.create,
    "UploadPart": uploads.put_part,
    "CompleteMultipartUpload": uploads.complete,
    "AbortMultipartUpload": uploads.abort,
}


class Server:
    """A store that listens, unless told otherwise, on loopback."""

    def __init__(self, port: int, settings: Settings, host: str = "127.0.0.1") -> None:
        self.state, self.faults, self.records = State(settings), Faults(), Records()
        self._listener = socket.create_server((host, port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Take connections for ever."""
        for number in itertools.count(1):
            connected, _address = self._listener.accept()
            connection = Connection(connected, Pace(connected, lambda: self.state.settings.rate))
            threading.Thread(target=self._converse, args=(number, connection), daemon=True).start()

    def _converse(self, number: int, connection: Connection) -> None:
        with contextlib.suppress(Disconnected), contextlib.closing(connection):
            while True:
                self._handle(number, connection)

    def _handle(self, number: int, connection: Connection) -> None:
        head = connection.read_head()
        if head.target.startswith(control.PREFIX):
            text = bytearray()
            connection.read_body(head, block=text.extend)
            told = control.obey(self.state, self.faults, self.records, head, bytes(text))
            connection.send(told, without_body=False, date=time.time())
            return
        request = understand(head)
        record = self.records.begin(number, request.operation, head.verb, (request.bucket, request.key))
        record.client = connection.client
        record.parameters = without(SECRET_PARAMETERS, request.parameters)
        record.headers = without(SECRET_HEADERS, head.headers)
        faults = self.faults.falling_on(request.operation, f"{request.bucket}/{request.key}")
        record.faults = [fault.action for fault in faults]
        try:
            answer = self._answer(connection, request, record, faults)
            self._send(connection, request, record, answer, faults)
        finally:
            record.ended_s = time.monotonic()

    def _answer(
        self, connection: Connection, request: Request, record: Record, faults: list[Fault]
    ) -> Answer:
        """Do what is asked, or what the faults say."""
        refused = None
        try:
            record.access_key = signatures.identify(request, self.state.settings, self.state.now())
            if request.operation not in VERBS or "x-amz-copy-source" in request.head.headers:
                raise StoreError("NotImplemented", f"{request.head.verb} {request.head.target}")
            if (
                request.head.headers.get("transfer-encoding")
                or request.header("content-encoding") == "aws-chunked"
            ):
                raise StoreError("NotImplemented", "bodies in chunks")
        except StoreError as error:
            refused = error
        limit_bytes = next((fault.bytes for fault in faults if fault.action == "cut request"), None)
        received = receive(
            connection, request, self.state, limit_bytes, uploads.algorithm_of(self.state, request)
        )
        record.bytes_in = request.head.body_bytes
        time.sleep(self.state.settings.latency_s)
        try:
            if refused is not None:
                raise refused
            struck = self._strike(connection, faults, request, after_effect=False)
            answer = struck or VERBS[request.operation](self.state, request, received)
        except StoreError as error:
            answer = xml.refusal(error, request.head.target)
            record.code = error.code
        return self._strike(connection, faults, request, after_effect=True) or answer

    def _strike(
        self, connection: Connection, faults: list[Fault], request: Request, *, after_effect: bool
    ) -> Answer | None:
        """Let faults of one side of the effect happen; give what is answered instead."""
        for fault in faults:
            if fault.after_effect != after_effect:
                continue
            if fault.action == "hold":
                self.faults.hold(fault.gate)
            if fault.action == "reset":
                connection.reset()
            if fault.action in {"error", "error in 200"}:
                error = StoreError(fault.code, "a fault that was asked for")
                return xml.refusal(
                    error, request.head.target, 200 if fault.action == "error in 200" else None
                )
        return None

    def _send(
        self, connection: Connection, request: Request, record: Record, answer: Answer, faults: list[Fault]
    ) -> None:
        # Known before the client has the answer, so that a client that then asks for the records finds it.
        without_body = request.head.verb == "HEAD"
        record.status, record.answered_s = answer.status, time.monotonic()
        record.bytes_out = 0 if without_body else answer.length
        limit_bytes = next((fault.bytes for fault in faults if fault.action == "cut"), None)
        try:
            connection.send(answer, without_body=without_body, date=self.state.now(), limit_bytes=limit_bytes)
        except Disconnected:
            record.bytes_out = connection.sent_bytes
            raise
        if request.head.headers.get("connection", "").lower() == "close":
            raise Disconnected
