"""checklist.chk of the folder that was made: the MD5 of every file in it."""

import hashlib
from collections.abc import Mapping

from distconv.sidecars.meta_checklist import make_checklist


def make_output_checklist(md5s: Mapping[str, str], files: Mapping[str, bytes]) -> bytes:
    """Make it of the MD5s in hex of the files of weights, and of ``files``, which are still to be written."""
    small = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
    return make_checklist({**md5s, **small})
