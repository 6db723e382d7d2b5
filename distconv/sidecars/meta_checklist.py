"""checklist.chk, as Meta's downloads have it and as ``md5sum -c`` reads it."""

from collections.abc import Mapping


def make_checklist(digests: Mapping[str, str]) -> bytes:
    """Write a line ``<md5>  <name>`` for each file, by name; ``digests`` gives the MD5s in hexadecimal."""
    return "".join(f"{md5}  {name}\n" for name, md5 in sorted(digests.items())).encode()
