"""What does the end of an attempt mean: shared by all that run units."""

import errno
from collections.abc import Callable

from distconv.errors import ConversionError, DistconvError, describe_os_error
from distconv.moving.scheduler import Failure
from distconv.moving.worker import Job, Receipt
from distconv.planning.plan import Chunk

Convert = Callable[[Job, Chunk, Callable[[int], None], Callable[[], bool]], Receipt]
"""Does one unit: convert(job, chunk, advance, stopped), see ``worker.convert_chunk``."""

Keep = Callable[[Receipt], None]
"""Is told of each finished unit, in the thread that drives the run."""


def forget(_receipt: Receipt) -> None:
    """Keep nothing of a finished unit."""


FINAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""Trying again helps against none of these."""


def classify(unit: str, error: BaseException) -> Failure:
    """Tell whether an attempt that raised may be tried again.

    The error of the failure takes one argument, so it may cross process boundaries whatever
    the original was.
    """
    if isinstance(error, DistconvError):
        return Failure(error, final=True)
    # The class is named because many exceptions say too little by themselves: KeyError: 'wq'.
    reason = describe_os_error(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    described = ConversionError(f"{unit}: {reason}")
    described.__cause__ = error
    may_pass = isinstance(error, OSError) and error.errno not in FINAL_ERRNOS
    return Failure(described, final=not may_pass)
