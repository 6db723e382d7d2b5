"""Packages that only some places need, and an extra brings."""

import importlib
from types import ModuleType

from distconv.errors import UsageError, describe_missing_package


def need(module: str, extra: str) -> ModuleType:
    """Import a module; UsageError where it is missing, which names the extra of the same name as the URL's scheme."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UsageError(f"{extra}://: {describe_missing_package(name, extra)}") from error
