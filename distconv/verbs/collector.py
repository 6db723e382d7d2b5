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
            if not gc.get_freeze_count():
                # As if they had been looked at: or the first look would be at all of them.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
