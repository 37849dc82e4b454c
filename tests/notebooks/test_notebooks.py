"""Every notebook runs from its top in a clean kernel, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    """The tests below would prove nothing without any."""
    assert "01-first-call" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_text_and_notebook_are_the_same(name: str) -> None:
    """The paired text source holds the same cells, and no output is stored."""
    stored = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    source = jupytext.read(NOTEBOOKS / f"{name}.py")
    assert [(c.cell_type, c.source) for c in stored.cells] == [
        (c.cell_type, c.source) for c in source.cells
    ]
    for cell in stored.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
async def test_the_notebook_runs(name: str, tmp_path: Path) -> None:
    """Every cell runs without an error, and pictures are shown."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}})
    await client.async_execute()
    shown = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("display_data", "execute_result")
    ]
    kinds = {kind for output in shown for kind in output.data}
    assert "image/png" in kinds or "image/svg+xml" in kinds
    assert "text/html" in kinds
