"""Which tensors a model of Transformers has, and under which names it is saved.

In memory some models hold tensors in one that are saved apart, as the experts of a mixture.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distconv.errors import InputError
from distconv.sidecars.apart import Answerer, ask, is_asked_here, make_question, start_answerer

Shape = tuple[int, ...]

_TENSORS = 4096
"""Of a model of which INPUT may hold a few only, which is said then."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A tensor as it is saved: the slab of one in memory, whose ``axes`` are the saved one's, in their order."""

    shape: Shape
    memory: str
    first: Shape
    """Where along each axis in memory the slab begins."""
    axes: tuple[int, ...]

    @classmethod
    def whole(cls, name: str, shape: Shape) -> "Saved":
        """Give a tensor that is saved as it is in memory."""
        return cls(shape, name, (0,) * len(shape), tuple(range(len(shape))))

    @property
    def sizes(self) -> dict[int, int]:
        """How far the slab reaches along those axes; along the others it has one place."""
        return dict(zip(self.axes, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's tensors."""

    kind: str
    """As config.json calls it (``model_type``)."""
    title: str
    """The class that is built."""
    memory: Mapping[str, Shape]
    """Names and shapes of the tensors in memory, as ``state_dict`` gives them."""
    integers: frozenset[str]
    """In memory: names of those that are of whole numbers, as counts are; weights never are."""
    saved: Mapping[str, Saved]
    """By the names under which they are saved."""
    tied: Mapping[str, str]
    """In memory: names of tensors that are others, by which of the two is saved."""


_last: dict[str, Architecture] = {}
"""By the question, what was asked last: it is the same for all steps of a run."""


@contextlib.contextmanager
def expect_architecture() -> Iterator[Answerer | None]:
    """Start what ``read_architecture`` asks; None where nothing is gained, as something was asked before."""
    if _last or is_asked_here():
        yield None
    else:
        with start_answerer() as answerer:
            yield answerer


def read_architecture(
    path: str, config: Mapping[str, object], shapes: Mapping[str, Shape], answerer: Answerer | None = None
) -> Architecture:
    """Have the model made that a config.json describes; ``shapes`` are those of INPUT's tensors.

    InputError where that cannot be done.
    """
    _refuse_quantised(path, config)
    question = make_question("saves", config, shapes, _TENSORS)
    found = _last.get(question)
    if found is None:
        found = _make(ask(path, question, answerer))
        _last.clear()
        _last[question] = found
    return found


def _make(found: dict[str, Any]) -> Architecture:
    saved = {
        name: Saved(tuple(shape), memory, tuple(first), tuple(axes))
        for name, (shape, memory, first, axes) in found["saved"].items()
    }
    memory = {name: tuple(shape) for name, shape in found["memory"].items()}
    integers = frozenset(found["integers"])
    return Architecture(found["kind"], found["title"], memory, integers, saved, found["tied"])


def _refuse_quantised(path: str, config: Mapping[str, object]) -> None:
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{path}: has quantization_config; what was trained is not quantised so: give the bf16 model that it is of"
        )
