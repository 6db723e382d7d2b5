"""torch without its compiler and its distributed tensors: for a process that makes models without data, and ends.

Transformers imports both with any model: 37 MiB, and a fifth of the time until an answer is there, in which neither has a
part. What decorates functions for the compiler leaves them as they are; whoever wants more of it gets it, late.
"""

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

_COMPILER = "torch._dynamo"
_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")
_Function = Callable[..., object]


class _Late(ModuleType):
    """A package that is run where something is asked of it; its modules can be imported before."""

    def __getattr__(self, name: str) -> object:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]  # a package as others
        spec.loader.exec_module(self)
        return getattr(self, name)


def leave_out_of_torch() -> None:
    """Let what is imported later find no distributed tensors, and a compiler that is not there yet."""
    import torch.distributed

    torch.distributed.is_available = lambda: False
    spec = importlib.util.find_spec(_COMPILER)
    if spec is None or _COMPILER in sys.modules:
        return
    late = importlib.util.module_from_spec(spec)
    late.__class__ = _Late
    for name in _DECORATORS:
        setattr(late, name, _leave)
    sys.modules[_COMPILER] = torch._dynamo = late  # noqa: SLF001  as an import does


def _leave(function: _Function | None = None, *_settings: object, **_named: object) -> object:
    """Decorate, with settings or without, and change nothing."""
    return function or (lambda decorated: decorated)
