"""The notebook runs from its first cell to its last, and a tool for notebooks would take it."""

import json
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def read_cells(kind: str) -> list[str]:
    """Give what the cells of a kind hold."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Jupyter starts in the notebook's folder, and has that on its path.
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, object] = {}
    for number, cell in enumerate(read_cells("code"), 1):
        exec(compile(cell, f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "Llama 2" in printed
    assert "39 tensors are whole and equal" in printed
    sys.modules.pop("small_models")


def test_the_notebook_holds_no_outputs_and_is_in_the_form_of_version_4() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
