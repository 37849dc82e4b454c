"""README's example runs in a notebook as it stands, and its calls end with its lab."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from labvoice.settings import load_settings

README = Path(__file__).parents[2] / "README.md"
# What the SDK tries in the background fails within seconds, and prints into the last cell that ran.
AFTERWARDS = """
import asyncio, psutil
await asyncio.sleep(10)
left = [process.cmdline() for process in psutil.Process().children(recursive=True)]
[command for command in left if not any("resource_tracker" in word for word in command)]
"""


async def test_readmes_example_runs_in_a_notebook_and_leaves_nothing(tmp_path: Path) -> None:
    """No error in any output, also after the cell, though the example ends no call itself."""
    (example,) = re.findall(r"^```python\n(.+?)^```$", README.read_text("utf-8"), re.M | re.S)
    once, numbers = re.subn(r"trials=\d+", "trials=1, warmup=0", example)
    assert numbers == 1
    labs = load_settings().data_dir / "labs"
    before = set(labs.glob("*"))
    notebook = new_notebook(cells=[new_code_cell(once), new_code_cell(AFTERWARDS)])
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    await client.async_execute()
    ran, afterwards = (cell.outputs for cell in notebook.cells)
    printed = "".join(each.get("text", "") for each in (*ran, *afterwards))
    assert "resuming connection failed" not in printed
    assert not re.search(r"error|exception|traceback|warning", printed, re.IGNORECASE), printed
    assert [each.data["text/plain"] for each in afterwards if "data" in each] == ["[]"], printed
    assert set(labs.glob("*")) == before
