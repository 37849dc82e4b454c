"""The committed JavaScript is what its sources build, and its own tests pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from labvoice.widgets.connect import STATIC

JS = Path(__file__).parents[2] / "js"
BUNDLES = ("call.js", "monitor.js")


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


def test_the_lock_file_names_no_registry() -> None:
    """Packages come from whatever registry npm is set to, with the hashes of the lock."""
    lock = (JS / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert '"integrity"' in lock


def test_the_bundles_load_nothing_from_elsewhere() -> None:
    """No import, font or script of another host: notebooks work without a network."""
    for name in BUNDLES:
        text = (STATIC / name).read_text(encoding="utf-8")
        assert 'from"http' not in text
        assert "@import" not in text
