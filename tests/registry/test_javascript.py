"""The committed JavaScript is what its sources build, and its own tests pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from labvoice.widgets.connect import STATIC
from tests.unit.test_widget_bundle import BUNDLES, JS


@pytest.fixture(scope="module")
def npm() -> str:
    """npm, which has installed what the lock file in js/ names."""
    program = shutil.which("npm")
    assert program, "npm is not on PATH"
    run([program, "ci", "--no-audit", "--no-fund"])
    return program


def run(command: list[str]) -> None:
    """Runs a command in js/; fails with what it says."""
    done = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.npm
@pytest.mark.usefixtures("npm")
def test_the_committed_bundles_are_built_from_the_sources(tmp_path: Path) -> None:
    """Building again gives the same bytes; `cd js && npm ci && npm run build` renews them."""
    node = shutil.which("node")
    assert node, "Node.js is not on PATH"
    run([node, "build.mjs", "--out", str(tmp_path)])
    for name in BUNDLES:
        assert (tmp_path / name).read_bytes() == (STATIC / name).read_bytes(), name


@pytest.mark.npm
@pytest.mark.parametrize("script", ["check", "test"])
def test_the_javascript_is_sound(npm: str, script: str) -> None:
    """Its types hold, and its own tests pass."""
    run([npm, "run", script])
