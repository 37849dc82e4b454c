"""The linter of GitHub's workflows accepts ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_action import ROOT, WORKFLOW

ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.7"


@pytest.mark.registry
@pytest.mark.skipif(shutil.which("go") is None, reason="actionlint is a program in Go")
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    """The linter of workflows accepts ours, and the action as the example uses it."""
    workflows = tmp_path / ".github" / "workflows"
    shutil.copytree(ROOT / ".github" / "workflows", workflows)
    shutil.copy(ROOT / "action.yml", tmp_path)
    text, found = re.subn(r"uses: OWNER/labvoice@\S+", "uses: ./", WORKFLOW.read_text())
    assert found == 1
    (workflows / "voice.yml").write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    done = subprocess.run(
        ["go", "run", ACTIONLINT, "-no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
