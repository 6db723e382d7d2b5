"""The verbs on multipart uploads."""

import hashlib
import itertools

from tests.object_store import checksums, objects, xml
from tests.object_store import request as requests
from tests.object_store.bodies import join
from tests.object_store.connection import Answer
from tests.object_store.errors import StoreError
from tests.object_store.request import Received, Request
from tests.object_store.state import Checksum, State, Stored, Upload, random_name


def create(state: State, request: Request, received: Received) -> Answer:
    """Begin an upload; the headers of the object to be come now."""
    asked = request.header("x-amz-checksum-algorithm").upper()
    algorithm = asked or "CRC64NVME"
    if algorithm not in checksums.ALGORITHMS:
        raise StoreError("InvalidRequest", f"x-amz-checksum-algorithm is {algorithm}")
    usual = "FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE"
    kind = request.header("x-amz-checksum-type").upper() or usual
    if kind not in {"FULL_OBJECT", "COMPOSITE"} or (
        kind == "FULL_OBJECT" and algorithm not in checksums.CRCS
    ):
        raise StoreError("InvalidRequest", f"x-amz-checksum-type {kind} with {algorithm}")
    if algorithm == "CRC64NVME" and kind == "COMPOSITE":
        raise StoreError("InvalidRequest", "CRC64NVME is of the full object only")
    state.objects(request.bucket)
    upload = Upload(
        random_name(),
        request.bucket,
        request.key,
        state.now(),
        objects.kept(request),
        algorithm,
        kind,
        bool(asked),
    )
    state.begin_upload(upload)
    headers = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind} if asked else {}
    names = [("Bucket", upload.bucket), ("Key", upload.key), ("UploadId", upload.name)]
    return xml.answer("InitiateMultipartUploadResult", names, headers)


def find(state: State, request: Request) -> Upload:
    """Find the upload that a request is about."""
    state.objects(request.bucket)
    return state.upload(request.bucket, request.key, request.parameters.get("uploadId", ""))


def algorithm_of(state: State, request: Request) -> str:
    """Give the checksum that contents get though their headers do not tell one."""
    upload = state.uploads.get(request.parameters.get("uploadId", ""))
    if state.settings.discard:
        return upload.algorithm if upload is not None and upload.asked else ""
    return upload.algorithm if upload is not None else "CRC64NVME"


def put_part(state: State, request: Request, received: Received) -> Answer:
    """Take a part; a later one of the same number takes its place."""
    number = request.number("partNumber", 0)
    if not 1 <= number <= 10_000:
        raise StoreError("InvalidArgument", f"partNumber is {number}, expected 1 to 10000")
    upload = find(state, request)
    told = requests.told_checksums(request).keys() - {"MD5", "PAYLOAD"}
    if upload.asked and told - {upload.algorithm}:
        raise StoreError(
            "InvalidRequest", f"the upload's checksums are {upload.algorithm}, the part's {told}"
        )
    requests.check(request, received)
    checksum = received.checksum(upload.algorithm, upload.kind)
    part = Stored(received.body, objects.make_etag(state, received.md5), state.now(), {}, checksum)
    with state.locked(request.bucket, request.key):
        find(state, request).parts[number] = part
    headers = {"ETag": part.etag}
    for name in told:
        headers[f"x-amz-checksum-{name.lower()}"] = received.checksums[name]
    return Answer(200, headers)


def chosen(state: State, upload: Upload, named: list[dict[str, str]]) -> list[Stored]:
    """Give the parts that a completion names, if they are what it says."""
    numbers = [int(part["PartNumber"]) for part in named]
    if any(next_one <= number for number, next_one in itertools.pairwise(numbers)):
        raise StoreError("InvalidPartOrder", "the parts are not named in order")
    parts = []
    for number, told in zip(numbers, named, strict=True):
        part = upload.parts.get(number)
        if part is None or not objects.same(part.etag, told["ETag"]) or told["ETag"] == "*":
            raise StoreError("InvalidPart", f"part {number} with ETag {told['ETag']}: not found")
        value = told.get(f"Checksum{upload.algorithm}", "")
        if value and (part.checksum is None or part.checksum.value != value):
            raise StoreError(
                "InvalidPart", f"part {number}: {upload.algorithm} is {part.checksum}, told {value}"
            )
        parts.append(part)
    sizes = [part.size_bytes for part in parts[:-1]]
    if any(size < state.settings.minimum_part_bytes for size in sizes):
        raise StoreError(
            "EntityTooSmall", f"all parts but the last need {state.settings.minimum_part_bytes} bytes"
        )
    if state.settings.equal_parts and (len(set(sizes)) > 1 or (sizes and parts[-1].size_bytes > sizes[0])):
        raise StoreError("InvalidPart", "all parts but the last must have one size")
    return parts


def assemble(state: State, request: Request, upload: Upload, named: list[dict[str, str]]) -> Stored:
    """Make the object that a completion asks for, if all that it says of it is so."""
    parts = chosen(state, upload, named)
    sums = [(part.checksum.value, part.size_bytes) for part in parts if part.checksum is not None]
    checksum = None
    if len(sums) == len(parts):
        value = checksums.of_whole(upload.algorithm, upload.kind, sums)
        checksum = Checksum(upload.algorithm, value, upload.kind)
    for name, value in requests.told_checksums(request).items():
        if name not in {"MD5", "PAYLOAD"} and checksum != Checksum(name, value, upload.kind):
            raise StoreError("BadDigest", f"{name} of the object: told {value}, found {checksum}")
    body = join([part.body for part in parts])
    size = request.header("x-amz-mp-object-size")
    if size and int(size) != body.size_bytes:
        raise StoreError(
            "InvalidRequest", f"x-amz-mp-object-size is {size}, the parts have {body.size_bytes}"
        )
    joined = "" if state.settings.random_etags else "".join(part.etag.strip('"') for part in parts)
    md5 = hashlib.md5(bytes.fromhex(joined), usedforsecurity=False).hexdigest()
    etag = objects.make_etag(state, md5, f"-{len(parts)}")
    return Stored(body, etag, state.now(), upload.headers, checksum)


def complete(state: State, request: Request, received: Received) -> Answer:
    """Make an object of parts, with If-Match and If-None-Match: * exact: of several only one can be first."""
    requests.check(request, received)
    named = xml.read_parts(received.text)
    name = request.parameters["uploadId"]
    with state.locked(request.bucket, request.key) as present:
        before = state.completed.get(name)
        if before is not None and before is present.get(request.key) and not state.settings.forget_completed:
            stored = before
        else:
            upload = find(state, request)
            objects.allow(state, request, "complete", present.get(request.key))
            stored = assemble(state, request, upload, named)
            state.put(present, request.key, stored)
            state.end_upload(upload, stored)
    children: list[xml.Element] = [("Bucket", request.bucket), ("Key", request.key), ("ETag", stored.etag)]
    if stored.checksum is not None:
        children += [(f"Checksum{stored.checksum.algorithm}", stored.checksum.value)]
        children += [("ChecksumType", stored.checksum.kind)]
    return xml.answer("CompleteMultipartUploadResult", children)


def abort(state: State, request: Request, received: Received) -> Answer:
    """Let an upload go."""
    with state.locked(request.bucket, request.key):
        state.end_upload(find(state, request), None)
    return Answer(204)
