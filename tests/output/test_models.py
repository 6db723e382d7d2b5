"""What a model made of config.json takes, held against the tensors that there are: names that stand for others, shapes, types."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from distconv.formats.written import Written
from distconv.layout.dtypes import DTYPES, FLOAT32
from distconv.output import models
from distconv.sidecars.empty import EmptyModel, Wanted
from distconv.storage.local import LocalStorage

INT64 = DTYPES["int64"]
MODEL = EmptyModel(
    architecture="Any",
    wanted={
        "a": Wanted((2,), is_float=True), "b": Wanted((2,), is_float=True), "c": Wanted((3,), is_float=True),
        "count": Wanted((), is_float=False),
    },
    optional=frozenset({"count"}),
    others={"old.a": ("a",), "older.a": ("a",), "both": ("b", "c")},
    ignored=frozenset({"mask"}),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_storage: object, _path: str, shapes: Mapping[str, object]) -> EmptyModel:
        return replace(MODEL, others={name: own for name, own in MODEL.others.items() if name in shapes})

    monkeypatch.setattr(models, "read_empty_model", read)


def look(folder: Path, tensors: Mapping[str, Written]) -> Iterator[str]:
    """Tell what does not fit, in words without the folder."""
    (folder / "config.json").touch()
    found = models.find_misfits_of_config(LocalStorage(), str(folder), {"f": dict(tensors)})
    return (words.replace(f"{folder}/", "") for words in found)


def hold(shape: tuple[int, ...], dtype: object = FLOAT32) -> Written:
    return Written("f", 0, dtype, shape)  # type: ignore[arg-type]


WHOLE = {"a": hold((2,)), "b": hold((2,)), "c": hold((3,)), "count": hold((), INT64)}


@pytest.mark.parametrize(
    ("changes", "findings"),
    [
        ({}, []),
        ({"mask": hold((7,))}, []),
        ({"count": None}, []),
        ({"a": None, "old.a": hold((2,))}, []),
        ({"a": None}, ["a: missing, the model of config.json needs it"]),
        ({"d": hold((1,))}, ["d: the model of config.json does not take it"]),
        ({"a": hold((3,))}, ["a: shape (3,), the model of config.json takes (2,)"]),
        ({"a": None, "old.a": hold((3,))}, ["old.a: shape (3,), the model of config.json takes (2,)"]),
        # Of several in one the shape has been looked at by who says so.
        ({"b": None, "c": None, "both": hold((5,))}, []),
        ({"b": None, "c": None, "both": hold((5,), INT64)},
         ["both: stored as int64, the model of config.json takes a floating-point type"] * 2),
        ({"a": hold((2,), INT64)}, ["a: stored as int64, the model of config.json takes a floating-point type"]),
        ({"count": hold(())}, ["count: stored as float32, the model of config.json takes whole numbers"]),
        ({"old.a": hold((2,))}, ["old.a: the same tensor as a for the model of config.json; it is there twice"]),
        ({"a": None, "old.a": hold((2,)), "older.a": hold((2,))},
         ["older.a: the same tensor as old.a for the model of config.json; it is there twice"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_its_name(
    tmp_path: Path, changes: Mapping[str, Written | None], findings: list[str]
) -> None:
    tensors = {name: written for name, written in {**WHOLE, **changes}.items() if written is not None}
    assert list(look(tmp_path, tensors)) == findings
