"""Whether what is to be written fits where it is to lie."""

from distconv.errors import OutputError
from distconv.humanize import format_size


def refuse_full(folder: str, needed_bytes: int, free_bytes: int, spare_bytes: int = 0) -> None:
    """Raise OutputError where a folder needs more than its file system has free, of which so much is to spare.

    Compressed, or shared with what is stored already, it may fit all the same: that cannot be known before.
    """
    needed_bytes += spare_bytes
    if needed_bytes > free_bytes:
        spare = f" ({format_size(spare_bytes)} of it for small files)" if spare_bytes else ""
        raise OutputError(
            f"{folder}: {format_size(needed_bytes)} needed{spare}, {format_size(free_bytes)} free; "
            f"free {format_size(needed_bytes - free_bytes)} or give a folder elsewhere; where the file system takes "
            "more than it has free, as one that compresses may, add `ignore_free_space=True`"
        )
