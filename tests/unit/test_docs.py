"""The documentation builds without a warning; `make docs` executes its notebooks besides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_the_docs_build_without_a_warning(tmp_path: Path) -> None:
    """Every page, every docstring that the reference shows, every link between them."""
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)],
        cwd=_ROOT,
        env={name: value for name, value in os.environ.items() if name != "LABVOICE_DOCS_EXECUTE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in (
        "lab.Lab",
        "stack.workers.pool.Pool",
        "failover.supervisor.Supervisor",
        "widgets.connect",
    ):
        assert f'id="labvoice.{name}' in reference
    assert (tmp_path / "gallery" / "01-first-call.html").is_file()
