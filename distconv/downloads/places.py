"""Where a download may write: into its own folders, to plain files, through no link.

The folder that a person names may itself be a link. What lies below it has names that are known
before anything is asked for, so all that is in the way is found, and told of, at once.
"""

import os
import stat
from collections.abc import Iterable, Sequence

from distconv.downloads.partial import state_path
from distconv.errors import OutputError
from distconv.storage.base import Storage, join
from distconv.storage.fencing import PARTIAL_SUFFIX, is_attempt


def refuse_what_is_in_the_way(folders: Sequence[str], small: Sequence[str], large: Sequence[str]) -> None:
    """Raise OutputError with each path below the download's folder that may not be written to.

    ``small`` files are replaced as a whole; ``large`` ones arrive under a name of their own, in
    place, where a second name of the same file would change with it.
    """
    findings = [_describe_folder(folder) for folder in folders]
    findings += [_describe_file(path) for path in small]
    for path in large:
        findings += [_describe_file(path), _describe_file(state_path(path)), _describe_partial(path)]
    found = [finding for finding in findings if finding]
    if found:
        raise OutputError("\n".join(found))


def _describe_folder(path: str) -> str | None:
    status = _look(path)
    if status is None or stat.S_ISDIR(status.st_mode):
        return None
    return _describe_link(path, status) or f"{path}: a file is in the way, expected a folder"


def _describe_file(path: str) -> str | None:
    status = _look(path)
    if status is None or stat.S_ISREG(status.st_mode):
        return None
    kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
    return _describe_link(path, status) or f"{path}: a {kind} is in the way, expected a file"


def _describe_partial(path: str) -> str | None:
    path += PARTIAL_SUFFIX
    status = _look(path)
    if status is not None and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        return (
            f"{path}: one of {status.st_nlink} names of one file (hard links), which would all change; put a "
            f"copy in its place, or remove it to begin this file anew"
        )
    return _describe_file(path)


def _describe_link(path: str, status: os.stat_result) -> str | None:
    if not stat.S_ISLNK(status.st_mode):
        return None
    return (
        f"{path}: a link to {os.readlink(path)}; nothing is written through links: remove it or put there what it "
        f"leads to, or give another folder"
    )


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def sweep_attempts(storage: Storage, paths: Iterable[str]) -> None:
    """Remove what killed runs left of writing these files, and nothing that has another name."""
    names: dict[str, list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        names.setdefault(folder, []).append(name)
    for folder, known in names.items():
        for entry in storage.list_folder(folder):
            is_ours = is_attempt(entry.name) and any(entry.name.startswith(f".{name}.") for name in known)
            if is_ours and not entry.is_folder:
                storage.remove(join(folder, entry.name))
