"""What no trained model has: types that differ between layers or from config.json, NaN, infinity, and zeros alone."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from distconv.formats.written import Headers, Written
from distconv.humanize import list_some
from distconv.layout.dtypes import DType
from distconv.output.contents import Seen
from distconv.output.findings import Finding

_NUMBER = re.compile(r"\d+")
_LAYER = re.compile(r"(.*?\.?(?:layers?|h|blocks?))\.(\d+)\.")
_MOST_SHOWN = 4


def find_odd_dtypes(headers: Headers, declared: str | None, config: str) -> tuple[list[str], list[str]]:
    """Tell of weights in another type than the same ones of other layers, or than config.json says.

    A wider type of the same tensor of all layers loses nothing, and is only a note. Gives findings and notes.
    """
    weights = {
        name: written
        for tensors in headers.values()
        for name, written in tensors.items()
        if written.dtype.is_float
    }
    counts: Counter[DType] = Counter()
    for written in weights.values():
        counts[written.dtype] += written.elements
    if not counts:
        return [], []
    usual = counts.most_common(1)[0][0]
    findings = []
    if declared not in {None, usual.name}:
        findings.append(f"{config}: says that its weights are {declared}, most of them are {usual}")
    wider = []
    for kind, members in sorted(_group(weights).items()):
        types = Counter(written.dtype for written in members.values())
        own = max(types, key=lambda dtype: (types[dtype], dtype == usual))
        strays = [name for name, written in members.items() if written.dtype != own]
        if strays:
            found = members[strays[0]].dtype
            findings.append(f"{list_some(strays, _MOST_SHOWN)}: stored as {found}, in other layers as {own}")
        if own != usual and own.size_bytes <= usual.size_bytes:
            shown = list_some(list(members), _MOST_SHOWN)
            findings.append(f"{shown}: stored as {own}, most weights as {usual}")
        elif own != usual:
            wider.append(kind)
    shown = list_some(wider, _MOST_SHOWN)
    return findings, [
        f"{shown}: stored as a wider type than {usual}, which most weights have"
    ] if wider else []


def _group(weights: Mapping[str, Written]) -> dict[str, dict[str, Written]]:
    """Give the weights that are alike but for the numbers in their names, by their name with stars instead."""
    kinds: dict[str, dict[str, Written]] = {}
    for name, written in weights.items():
        kinds.setdefault(_NUMBER.sub("*", name), {})[name] = written
    return kinds


def find_odd_values(tensors: Mapping[tuple[str, str], Seen]) -> tuple[list[Finding], list[str]]:
    """Tell of NaN, infinities, and of matrices and layers that are zero; gives findings and notes.

    A vector that is zero, as a bias is before it is trained, is a note.
    """
    findings = [Finding(words, file) for (file, name), seen in tensors.items() for words in _tell(name, seen)]
    zero = {name: seen.written for (_file, name), seen in tensors.items() if seen.tally.zero}
    layers: dict[str, list[tuple[str, bool]]] = {}
    for _file, name in tensors:
        if match := _LAYER.match(name):
            layers.setdefault(f"{match[1]}.{match[2]}", []).append((name, name in zero))
    for layer, members in layers.items():
        if len(members) > 1 and all(is_zero for _name, is_zero in members):
            findings.append(Finding(f"{layer}: all its {len(members)} tensors are zero"))
            zero = {name: written for name, written in zero.items() if not name.startswith(f"{layer}.")}
    matrices = [name for name, written in zero.items() if _is_matrix(written)]
    findings += [Finding(f"{name} in {zero[name].path}: every value is zero") for name in matrices]
    vectors = sorted(zero.keys() - set(matrices))
    return findings, [f"{list_some(vectors, _MOST_SHOWN)}: every value is zero"] if vectors else []


def _is_matrix(written: Written) -> bool:
    return sum(extent > 1 for extent in written.shape) > 1


def _tell(name: str, seen: Seen) -> Iterator[str]:
    """Tell of what is no number in a tensor."""
    counts = ((seen.tally.nan, "NaN"), (seen.tally.infinite, "infinite"))
    found = " and ".join(f"{count:,} {word}" for count, word in counts if count)
    if found:
        yield f"{name} in {seen.written.path}: {found} of {seen.written.elements:,} values"
