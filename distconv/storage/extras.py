"""Packages that only some places need, and an extra brings."""

import importlib
from types import ModuleType

from distconv.errors import UsageError


def need(module: str, extra: str) -> ModuleType:
    """Import a module; UsageError where it is missing, which names the extra of the same name as the URL's scheme."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UsageError(
            f"{extra}:// needs {name}, which is not installed: pip install 'distconv[{extra}]'"
        ) from error
