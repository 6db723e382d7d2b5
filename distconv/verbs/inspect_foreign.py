"""Tell what a Transformers folder holds whose model is of no family here: what is true of any folder."""

import math

from distconv.formats.safetensors.catalog import read_transformers_catalog
from distconv.formats.safetensors.folder import TransformersFiles
from distconv.formats.safetensors.names import keep_names
from distconv.humanize import format_count, format_size, list_some
from distconv.layout.dtypes import name_dtypes
from distconv.output.values import show
from distconv.sidecars.settings import read_config
from distconv.storage.base import Storage

Row = tuple[str, str]
_MOST_SHOWN = 4


def describe_foreign(storage: Storage, files: TransformersFiles) -> tuple[dict[str, object], list[Row]]:
    """Tell what config.json calls the model, and what tensors there are; InputError where these do not fit together."""
    config = read_config(storage, files.config)
    catalog = read_transformers_catalog(storage, files, keep_names)
    views = catalog.tensors.values()
    elements = sum(math.prod(view.shape) for view in views)
    dtypes = name_dtypes(view.dtype for view in views)
    kind, built = config.get("model_type"), config.get("architectures")
    classes = [name for name in built if isinstance(name, str)] if isinstance(built, list) else []
    found: dict[str, object] = {
        "format": "transformers",
        "model_type": kind if isinstance(kind, str) else None,
        "architectures": classes,
        "folder": files.folder,
        "files": list(files.weights),
        "size_bytes": catalog.size_bytes,
        "tensors": len(views),
        "elements": elements,
        "dtypes": dtypes,
    }
    rows = [
        ("model", "not named" if kind is None else show(kind).strip("'")),
        ("class", list_some(classes, _MOST_SHOWN) or "not named"),
        ("folder", f"{files.folder}, in Transformers' format"),
        ("weights", f"{format_count(len(files.weights), 'file')} ({format_size(catalog.size_bytes)})"),
        ("tensors", f"{len(views):,}, of {elements:,} elements in all"),
        ("stored as", " and ".join(dtypes)),
    ]
    return found, rows
