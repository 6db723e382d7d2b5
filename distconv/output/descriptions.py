"""What is said of a conversion that a folder holds: how far it is, and in what it is another than one that is asked for."""

import contextlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping

from distconv.errors import InputError, name_option
from distconv.families.known import ALL_FAMILIES
from distconv.humanize import format_count, list_first, write_size
from distconv.moving.shared import UnfinishedFile
from distconv.output.state import Found, read_record
from distconv.output.targets import JOURNAL_NAME, RECEIPT_NAME, TARGETS, TRANSFORMERS, Target
from distconv.output.values import WORD, show
from distconv.storage.base import Storage, is_folder, join

_UNSAID = {"to": TRANSFORMERS.name}
"""What a conversion's identity means where it does not say it."""
_OPTIONS = ("to", "shards", "family", "instruct", "dialect", "dtype", "max_shard_size")
"""What of an identity may have been asked for, each by the name of its option."""
_DECIDED = {
    "distconv": "version",
    "tied": "output layer tied",
    "kv_replication": "copies of each key head",
    "source": "INPUT",
}
"""What else of it people can read, by what they call it."""
_MOST_SHOWN = 4
_NUMBERED = re.compile(r".*-of-(\d{5,6})\.[a-z]+")


def describe_unfinished(storage: Storage, folder: str) -> str | None:
    """Say what a folder is that has the journal of a conversion, how far that is, and how it goes on; None of any other."""
    names = storage.list_names(folder) if is_folder(storage, folder) else ()
    if JOURNAL_NAME not in names:
        return None
    try:
        conversion, digests, unfinished = read_record(storage, join(folder, JOURNAL_NAME))
    except FileNotFoundError:
        return None
    told = _UNSAID | conversion if isinstance(conversion, dict) else {}
    target = TARGETS.get(str(told.get("to")), TRANSFORMERS)
    asked = "".join(f"{_name(key, told[key])}, " for key in ("to", "shards", "instruct") if told.get(key))
    recorded = [name for name in digests if isinstance(name, str) and target.is_weights(name)]
    done = [name for name in recorded if name in names]
    total = _tell_total(told.get("shards"), (*recorded, *unfinished))
    reached = f"{_count_done(len(done), total, target)}{_count_parts(unfinished, {*names} - {*done})}"
    return (
        f"{folder}: a conversion{_name_family(told.get('family'))} into it is not finished "
        f"({asked}{reached}); run the same conversion again, and it "
        f"goes on: `distconv convert INPUT {folder}`, with the options that it had"
    )


@contextlib.contextmanager
def telling_unfinished(storage: Storage, folder: str) -> Iterator[None]:
    """Say of a folder in which a block does not find what it reads there that a conversion into it is not finished, if so."""
    try:
        yield
    except InputError as error:
        words = describe_unfinished(storage, folder)
        if words is None:
            raise
        raise InputError(words) from error


def _name_family(name: object) -> str:
    if not isinstance(name, str) or not WORD.fullmatch(name):
        return ""
    # A trained model's is what config.json calls it.
    return f" of {ALL_FAMILIES[name].title if name in ALL_FAMILIES else name}"


def _tell_total(shards: object, files: Iterable[str]) -> int | None:
    """Tell of how many files of weights a model is to consist; None where nothing of it is recorded yet."""
    if type(shards) is int:
        return shards
    for name in files:
        match = _NUMBERED.fullmatch(name)
        return 1 if match is None else int(match[1])
    return None


def _count_done(done: int, total: int | None, target: Target) -> str:
    """Say how many files of weights are there, of how many, or what is missing where these are not."""
    if total is None:
        return f"{format_count(done, target.noun)} so far"
    if done < total:
        return f"{done:,} of {format_count(total, target.noun)} so far"
    if total == 1:
        return f"its {target.noun} is written, what stands beside it is not"
    return f"all {format_count(total, target.noun)} are written, what stands beside them is not"


def _count_parts(unfinished: Mapping[str, UnfinishedFile], names: set[str]) -> str:
    """Count the durable parts of files that are not finished, and there under the name that they were begun as."""
    count = sum(len(file.parts) for file in unfinished.values() if posixpath.basename(file.attempt) in names)
    return f", and {format_count(count, 'part')} of what is begun" if count else ""


def describe_difference(found: Found, identity: Mapping[str, object]) -> str:
    """Say what stands in OUTPUT that is not this very conversion, each option as before and as now."""
    if JOURNAL_NAME not in found.entries and RECEIPT_NAME not in found.entries:
        return f"other files ({list_first(sorted(found.entries), _MOST_SHOWN)})"
    if not isinstance(found.conversion, dict):
        return f"an unreadable {JOURNAL_NAME if JOURNAL_NAME in found.entries else RECEIPT_NAME}"
    before = _UNSAID | found.conversion
    changes = [
        _describe_change(key, before.get(key), now)
        for key, now in {**_UNSAID, **identity}.items()
        if before.get(key) != now and key != "plan_sha256"
    ]
    return f"another conversion ({'; '.join(changes) or 'another plan'})"


def _describe_change(key: str, before: object, now: object) -> str:
    if isinstance(now, dict):
        then = before if isinstance(before, dict) else {}
        changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        return f"{_DECIDED.get(key, key)} is another, or changed since: {list_first(changed, _MOST_SHOWN)}"
    if key not in _OPTIONS:
        return f"{_DECIDED.get(key, key)} {_show(before)} before, {_show(now)} now"
    return f"{_name(key, before, now)} before, {_name(key, now, before)} now"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else show(value).strip("'")


def _name(key: str, value: object, other: object = None) -> str:
    """Give an option as it is asked for so; where it is not, say so by the name that ``other`` gives it."""
    if value is None or value is False:
        return f"no {name_option(key, True if other is True else None)}"
    if key == "max_shard_size" and type(value) is int and value > 0:
        return name_option(key, write_size(value))
    if isinstance(value, int) or (isinstance(value, str) and WORD.fullmatch(value)):
        return name_option(key, value)
    return f"{name_option(key, None)} {show(value)}"
