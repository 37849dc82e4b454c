"""The committed JavaScript is what its sources build, and its own tests pass: needs `npm ci`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from labvoice.widgets.connect import STATIC
from tests.unit.test_widget_bundle import BUNDLES, JS


@pytest.mark.npm
def test_the_committed_bundles_are_built_from_the_sources(tmp_path: Path) -> None:
    """Building again gives the same bytes; `cd js && npm ci && npm run build` renews them."""
    assert (JS / "node_modules").is_dir(), "run `npm ci` in js/ first"
    node = shutil.which("node")
    assert node, "Node.js is not on PATH"
    subprocess.run([node, "build.mjs", "--out", str(tmp_path)], cwd=JS, check=True, timeout=120)
    for name in BUNDLES:
        assert (tmp_path / name).read_bytes() == (STATIC / name).read_bytes(), name


@pytest.mark.npm
@pytest.mark.parametrize("script", ["check", "test"])
def test_the_javascript_is_sound(script: str) -> None:
    """Its types hold, and its own tests pass."""
    npm = shutil.which("npm")
    assert npm, "npm is not on PATH"
    done = subprocess.run(
        [npm, "run", script], cwd=JS, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
