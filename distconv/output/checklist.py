"""checklist.chk of the folder that was made: the MD5 of every file in it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

from distconv.moving.progress import Progress
from distconv.sidecars.meta_checklist import make_checklist
from distconv.storage.base import Storage, join, opened
from distconv.storage.blocks import read_blocks
from distconv.storage.parallel import map_at_once

_LANES = 4


def make_output_checklist(
    storage: Storage, output: str, names: Sequence[str], files: Mapping[str, bytes], progress: Progress
) -> bytes:
    """Read the files of these names in OUTPUT, several at once; ``files`` are still to be written there.

    MD5 takes bytes in their order, so that it can only be made of whole files. An interruption stops all of them.
    """

    def digest(name: str, stopped: Callable[[], bool]) -> str:
        found = hashlib.md5(usedforsecurity=False)
        with opened(storage, join(output, name)) as reader:
            for block in read_blocks(reader, 0, reader.size_bytes, stopped):
                found.update(block)
        return found.hexdigest()

    progress.note("computing the MD5 of every file for checklist.chk")
    made = dict(zip(names, map_at_once(digest, names, _LANES), strict=True))
    made |= {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
    return make_checklist(made)
