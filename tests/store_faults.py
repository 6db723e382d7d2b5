"""Conversions between places in a store that fails now and then: what comes of them is whole and right, or told as failed."""

import random
from collections import Counter

import distconv
from distconv.errors import DistconvError
from distconv.storage.http import retry
from tests.faults import digest_folder, looks_whole
from tests.object_store import Fault, ObjectStore
from tests.stored import AnyPath, StoredPath

CODES = ("InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "ConditionalRequestConflict")
READS = ("GetObject", "HeadObject", "ListObjectsV2", "ListParts", "ListMultipartUploads")
CONDITIONAL = ("PutObject", "CompleteMultipartUpload", "DeleteObject")
"""What may be answered with a conflict."""
WRITES = (
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "DeleteObject",
    "AbortMultipartUpload",
)


def draw_fault(chance: random.Random) -> Fault:
    """Draw something that goes wrong with some requests of a kind."""
    operation = chance.choice((*READS, *WRITES, "*"))
    action = chance.choice(("error", "error", "reset", "cut"))
    code = chance.choice(CODES if operation in CONDITIONAL else CODES[:4])
    if operation == "UploadPart" and chance.random() < 0.3:
        action = "cut request"
    if operation == "CompleteMultipartUpload" and chance.random() < 0.3:
        action = "error in 200"
    return Fault(
        action,
        operation,
        first=chance.randint(1, 6),
        times=chance.choice((1, 2, 3, 40)),
        probability=chance.choice((1.0, 0.5, 0.2)),
        seed=chance.randrange(1 << 30),
        after_effect=action in {"error", "reset"}
        and code != "ConditionalRequestConflict"
        and chance.random() < 0.5,
        code=code,
        bytes=chance.choice((0, 1, 100, 5000)),
    )


def convert_among_faults(
    source: AnyPath,
    place: AnyPath,
    store: ObjectStore,
    expected: dict[str, str],
    rounds: int,
    seed: int,
    **options: object,
) -> Counter[str]:
    """Convert again and again, each time among other faults; gives how the runs ended.

    What fails is gone on with once nothing goes wrong any more. ``expected`` are the digests of all files.
    """
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    for number in range(rounds):
        output = place / f"{number}"
        for _fault in range(chance.randint(1, 4)):
            store.fault(draw_fault(chance))
        if chance.random() < 0.3:
            store.fault(Fault("error", code="SlowDown", probability=0.1, times=None, seed=number))
        try:
            distconv.convert(source, output, **options)  # type: ignore[arg-type]
        except (DistconvError, OSError) as error:
            ends[type(error).__name__] += 1
        else:
            ends["whole"] += 1
            store.clear_faults()
            assert digest_folder(output) == expected, f"round {number} of seed {seed}: told as whole"
        store.clear_faults()
        found = digest_folder(output)
        assert not looks_whole(output) or expected.items() <= found.items(), (
            f"round {number} of seed {seed}: looks whole"
        )
        distconv.convert(source, output, **options)  # type: ignore[arg-type]
        assert digest_folder(output) == expected, f"round {number} of seed {seed}: gone on with"
        if isinstance(output, StoredPath):
            # Of an upload whose beginning was not told to who asked for it, nothing is stored.
            assert output.parts() == [], f"round {number} of seed {seed}"
    return ends


def hurry() -> None:
    """Let what fails be tried again soon: a store of one's own does not mind."""
    retry._FIRST_SECONDS = 0.005
    retry._LONGEST_SECONDS = 0.05
