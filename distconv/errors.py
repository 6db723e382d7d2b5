"""What can go wrong, as one tree.

::

    DistconvError
    ├── UsageError         exit 2    options that are wrong or do not go together
    ├── InputError         exit 2    INPUT is not what it should be
    │   └── MismatchError            its parts, or an option and INPUT, are of different models
    ├── OutputError        exit 2    OUTPUT may not be written to
    ├── ConversionError    exit 1    the machine or the cluster failed
    │   ├── ClusterError   exit 1    the Ray cluster that was asked for cannot be reached or used
    │   └── DeviceError    exit 1    a GPU has no memory left, or is lost; what was begun is begun again
    └── Stopped
        ├── Interrupted    exit 130  Ctrl-C
        └── Terminated     exit 143  SIGTERM

Every error takes one argument, the message, so that it crosses process
boundaries (pickle, Ray) as it is. Messages name options as Python does, in
backquotes, ``family='llama-2'``; the command line shows them as one types them.
What the machine refuses, as a full disk, stays Python's OSError.
"""

import errno
from collections.abc import Iterable
from typing import ClassVar


class DistconvError(Exception):
    """Base of all errors that distconv raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(DistconvError):
    """Options that are wrong or do not go together."""

    exit_code = 2


class InputError(DistconvError):
    """INPUT is not a checkpoint that can be converted; one line per finding."""

    exit_code = 2

    @classmethod
    def of(cls, findings: Iterable[str]) -> "InputError":
        """Join all findings, each on a line of its own."""
        return cls("\n".join(findings))


class MismatchError(InputError):
    """Parts of INPUT, or an option and INPUT, belong to different models; one line per finding."""


class OutputError(DistconvError):
    """OUTPUT may not be written to, or is not a folder that distconv wrote."""

    exit_code = 2


class ConversionError(DistconvError):
    """The conversion could not be finished; INPUT and options are not at fault."""


class ClusterError(ConversionError):
    """The Ray cluster that was asked for cannot be reached or used."""


class DeviceError(ConversionError):
    """A GPU has no memory left, or is lost: what was being made may be made again."""


class Stopped(DistconvError):
    """Somebody asked the conversion to stop."""


class Interrupted(Stopped):
    """Ctrl-C was pressed."""

    exit_code = 130


class Terminated(Stopped):
    """SIGTERM was received."""

    exit_code = 143


def name_option(name: str, value: str | int | None) -> str:
    """Name an option, with a value, as messages do: ``dtype='float16'``, ``instruct=True``, ``shards=``, in backquotes."""
    return "".join(("`", name, "=", "" if value is None else repr(value), "`"))


def escape(text: str) -> str:
    r"""Write as escapes what a terminal would obey instead of showing, line ends included.

    Bytes of file names that are no text (PEP 383) become ``\xff``.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _escape_sign(sign) for sign in text)


def escape_lines(text: str) -> str:
    """Escape each line; those after the first are set in, so that none can be taken for one of ours."""
    return "\n  ".join(map(escape, text.split("\n")))


def _escape_sign(sign: str) -> str:
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    if code < 0x100:
        return _SHORT.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_SHORT = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}


def describe_missing_package(package: str, extra: str) -> str:
    """Say how to get a package that only an extra brings: out of a clone, as no package index has distconv."""
    return f"{package} is not installed: in a clone of distconv, `pip install --constraint constraints.txt '.[{extra}]'`"


_ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "your quota is used up: free some space and run the same command again",
    errno.EFBIG: "smaller ones are written by `max_shard_size='2GB'`, or give another folder",
    errno.EROFS: "give a folder that can be written to",
    errno.EACCES: "check its permissions, and those of the folders above it",
    errno.EPERM: "check its permissions, and those of the folders above it",
    errno.EIO: "the disk or network share failed; see its log, then run the same command again",
    errno.ESTALE: "the network share has changed; mount it again and run the same command again",
    errno.ENOENT: "it was there before; put it back and run the same command again",
}


def describe_os_error(error: OSError) -> str:
    """Say what the machine refused, where, and what to do: ``PATH: No space left on device; ...``."""
    where = f"{error.filename}: " if error.filename else ""
    advice = f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    if error.errno == errno.EACCES and "://" in str(error.filename):
        advice = "; have it allowed there, or use other credentials"
    return f"{where}{error.strerror or type(error).__name__ + ': ' + str(error)}{advice}"
