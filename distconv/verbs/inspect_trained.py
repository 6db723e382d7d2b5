"""Tell what a trainer's checkpoint is; reads no tensor's data."""

import math
from collections import Counter
from collections.abc import Mapping

from distconv.families.trained import choose_dialect
from distconv.formats.boxes import Described, TrainedFiles
from distconv.formats.meta.names import is_beside
from distconv.humanize import format_count
from distconv.verbs.trained import TrainedModel

Row = tuple[str, str]


def describe_files(files: TrainedFiles, dialect: str | None) -> tuple[dict[str, object], list[Row]]:
    """Tell what the files alone say: names, types and sizes of tensors, those of optimizers apart."""
    kept = {name: found for name, found in files.tensors.items() if is_beside(name, ()) is None}
    named = choose_dialect(kept, dialect)
    dtypes = sorted({found.dtype.name for found in kept.values()})
    elements = sum(math.prod(found.shape) for found in kept.values())
    beside = _count_beside(files.tensors)
    found: dict[str, object] = {
        "format": "trained",
        "form": files.form,
        "folder": files.folder,
        "files": list(files.weights),
        "dialect": "transformers" if named is None else named.name,
        "tensors": len(kept),
        "elements": elements,
        "dtypes": dtypes,
        "beside": beside,
        "others": len(files.others),
    }
    rows = [
        ("form", files.form),
        ("folder", files.folder),
        ("weights", format_count(len(files.weights), "file")),
        ("named as", "Transformers names them, or as nobody known does" if named is None else named.title),
        ("tensors", f"{len(kept):,}, of {elements:,} elements in all"),
        ("stored as", " and ".join(dtypes) or "nothing"),
        (
            "beside",
            ", ".join(f"{name} ({format_count(count, 'tensor')})" for name, count in beside.items())
            or "nothing",
        ),
    ]
    return found, rows


def _count_beside(tensors: Mapping[str, Described]) -> dict[str, int]:
    return dict(Counter(part for name in tensors if (part := is_beside(name, ())) is not None))


def describe_model(model: TrainedModel) -> tuple[dict[str, object], list[Row]]:
    """Tell what is added by the model that it is like."""
    parameters = sum(math.prod(made.saved.shape) for made in model.made)
    architecture = model.architecture
    found: dict[str, object] = {
        "family": architecture.kind,
        "title": architecture.title,
        "like": model.like.folder,
        "parameters": parameters,
        "tied": bool(architecture.tied),
    }
    rows = [
        ("model", f"{architecture.title}, as {model.like.config_path} says"),
        (
            "parameters",
            f"{parameters:,} in {len(model.made):,} tensors{', tied' if architecture.tied else ''}",
        ),
    ]
    return found, rows
