"""What units of work are called."""

import pytest

from distconv.layout.files import File
from distconv.layout.units import Checksum, Examination, Question, Unit, name_units

FILE = File("model.safetensors", (), (), ())


@pytest.mark.parametrize(
    ("units", "name"),
    [
        ([], "chunks"),
        ([FILE], "chunk"),
        ([FILE, FILE], "chunks"),
        ([Checksum("a", 1, ())], "MD5"),
        ([Checksum("a", 1, (), whole=True)], "digest"),
        ([Question("q", ())], "comparison"),
        ([Question("q", ())] * 3, "comparisons"),
        ([Examination("e", ())], "file"),
        ([Examination("e", (), is_part=True)] * 2, "parts"),
        ([FILE, Checksum("a", 1, ())], "chunks and MD5s"),
    ],
)
def test_one_unit_is_named_in_the_singular_and_several_are_in_the_plural(
    units: list[Unit], name: str
) -> None:
    assert name_units(units) == name
