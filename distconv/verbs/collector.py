"""Millions of small objects are made at once: the garbage collector, which would look at them again and again, waits."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def held_collector() -> Iterator[None]:
    """Let no cycles be looked for in the block; what it makes has none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
