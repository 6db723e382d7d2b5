"""All tensors of a checkpoint, wherever in its containers they lie."""

from collections.abc import Iterator

from distconv.errors import InputError
from distconv.formats.marks import TensorMark, describe

LIMIT_TENSORS = 1 << 15
"""Of one file: a whole 405B has 1,137, and an optimizer three times as many beside them."""
_DEEPEST = 64
_MOST_STEPS = 1 << 20
_MOST_CHARACTERS = 64 << 20


def flatten_state(state: object) -> dict[str, TensorMark]:
    """Give all tensors in a checkpoint by dotted path: those of the model, and what lies beside it.

    Dicts, lists and tuples are gone through; what lies under a key that is no text and no
    whole number is left out. Raises InputError where there is no dict or no tensor, where two
    tensors have one path, and where going through would take unbounded time or memory.
    """
    if not isinstance(state, dict):
        message = f"it holds {describe(state)}, expected a dict of tensors: save model.state_dict()"
        raise InputError(message)
    tensors: dict[str, TensorMark] = {}
    for path, tensor in _walk(state):
        if path in tensors:
            message = f"two tensors are called {path:.80}"
            raise InputError(message)
        if len(tensors) == LIMIT_TENSORS:
            message = f"more than {LIMIT_TENSORS:,} tensors in one file; refused as unsafe"
            raise InputError(message)
        tensors[path] = tensor
    if not tensors:
        keys = ", ".join(key[:40] for key in list(state)[:8] if isinstance(key, str)) or "none"
        message = f"no tensors in it; its keys are {keys}"
        raise InputError(message)
    return tensors


def _walk(root: dict[object, object]) -> Iterator[tuple[str, TensorMark]]:
    """Go through containers in their order, each as often as it is reached."""
    stack = [("", _entries(root))]
    characters = 0
    for _step in range(_MOST_STEPS):
        if not stack:
            return
        prefix, entries = stack[-1]
        key, value = next(entries, (None, None))
        if key is None:
            stack.pop()
        elif isinstance(value, TensorMark | dict | list | tuple):
            characters += len(prefix) + len(key)
            if characters > _MOST_CHARACTERS or len(stack) > _DEEPEST:
                break
            if isinstance(value, TensorMark):
                yield prefix + key, value
            else:
                stack.append((f"{prefix}{key}.", _entries(value)))
    message = f"containers of more than {_MOST_STEPS:,} entries, or nested {_DEEPEST} deep; refused as unsafe"
    raise InputError(message)


def _entries(
    container: dict[object, object] | list[object] | tuple[object, ...],
) -> Iterator[tuple[str, object]]:
    if isinstance(container, dict):
        return ((str(key), value) for key, value in container.items() if type(key) in {str, int})
    return ((str(number), value) for number, value in enumerate(container))
