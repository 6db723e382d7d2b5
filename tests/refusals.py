"""What is refused of INPUT: by whoever would make something of it, in the same words."""

from pathlib import Path
from typing import Any

import pytest

import distconv
from distconv.errors import DistconvError


def refuse(source: Path, output: Path, **options: Any) -> DistconvError:
    """Convert and plan what both must refuse in the same words, with nothing written; give the error."""
    before = output.exists()
    with pytest.raises(DistconvError) as converted:
        distconv.convert(source, output, **options)
    with pytest.raises(DistconvError) as planned:
        distconv.plan(source, **options)
    assert (type(planned.value), str(planned.value)) == (type(converted.value), str(converted.value))
    assert output.exists() == before
    return converted.value
