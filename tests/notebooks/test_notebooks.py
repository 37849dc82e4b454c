"""Every notebook runs from its top in a clean kernel, and is stored without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
NUMBERS = re.compile(r"^(trials|calls|turns_each) = \d+", re.MULTILINE)
"""Parameters that say how often something is measured: here once, with no warm-up."""


@pytest.mark.smoke
def test_the_story_is_whole() -> None:
    """Ten steps, each with its text source."""
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(1, 11)]
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.py")) == NAMES


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_teaches(name: str) -> None:
    """It has a title, one cell of parameters before all other code, and says what to look at."""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    assert cells[0].source.startswith("# ")
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert ["parameters" in cell.metadata.get("tags", []) for cell in code] == [
        True,
        *[False] * (len(code) - 1),
    ]
    words = " ".join(cell.source for cell in cells if cell.cell_type == "markdown").lower()
    assert re.search(r"\blook at\b", " ".join(words.split()))


@pytest.mark.smoke
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


@pytest.mark.parametrize("name", [pytest.param(NAMES[0], marks=pytest.mark.smoke), *NAMES[1:]])
async def test_the_notebook_runs(name: str, tmp_path: Path) -> None:
    """Every cell runs without an error, and pictures are shown."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    once = NUMBERS.sub(r"\1 = 1", parameters.source)
    parameters.source = once.replace("warmup = 1", "warmup = 0")
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    await client.async_execute()
    kinds = {
        kind
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("display_data", "execute_result")
        for kind in output.data
    }
    assert "image/png" in kinds or "image/svg+xml" in kinds
    assert "text/html" in kinds
