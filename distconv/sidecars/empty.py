"""The tensors that a model made of config.json takes, by the names that files have: what ``save_pretrained`` would write."""

from collections.abc import Mapping
from dataclasses import dataclass

from distconv.sidecars.apart import ask, make_question
from distconv.sidecars.settings import read_config
from distconv.storage.base import Storage

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor that a model takes."""

    shape: Shape
    is_float: bool


@dataclass(frozen=True, slots=True)
class EmptyModel:
    """What a model takes, and what of the tensors that there are stands for it."""

    architecture: str
    wanted: Mapping[str, Wanted]
    optional: frozenset[str]
    """Those of ``wanted`` that it takes from others, or makes, where they are not there."""
    others: Mapping[str, tuple[str, ...]]
    """Of tensors that are there under other names, as older versions wrote them: the wanted ones they stand for."""
    ignored: frozenset[str]
    """Tensors that are there and that its loader passes over."""


def read_empty_model(storage: Storage, path: str, shapes: Mapping[str, Shape]) -> EmptyModel:
    """Have the model of a config made and told what it takes; ``shapes`` are of all tensors that there are.

    InputError where none can be made.
    """
    found = ask(path, make_question("takes", read_config(storage, path), shapes, 0))
    return EmptyModel(
        architecture=found["title"],
        wanted={name: Wanted(tuple(shape), is_float) for name, (shape, is_float) in found["wanted"].items()},
        optional=frozenset(found["optional"]),
        others={name: tuple(meant) for name, meant in found["others"].items()},
        ignored=frozenset(found["ignored"]),
    )
