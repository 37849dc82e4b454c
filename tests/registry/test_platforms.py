"""Where the lock files can be installed: asked of uv, for machines that the tests do not run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import uv

_ROOT = Path(__file__).parents[2]
_LETTA = Path("labvoice/stack/letta/requirements.lock")
# Pure Python, and not to be had as wheels.
_LETTA_SOURCES = ("demjson3", "docopt")


@pytest.mark.registry
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(
    "platform", ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin"]
)
@pytest.mark.parametrize(
    ("lock", "sources"), [(Path("requirements.lock"), ()), (_LETTA, _LETTA_SOURCES)]
)
def test_the_lock_has_wheels(
    lock: Path, sources: tuple[str, ...], platform: str, python: str, tmp_path: Path
) -> None:
    """Locked packages have wheels for Linux x86-64 and arm64 and macOS arm64."""
    done = subprocess.run(
        [
            *(uv.find_uv_bin(), "pip", "install", "--dry-run", "--quiet", "--require-hashes"),
            *("--python", sys.executable, "--target", str(tmp_path), "--only-binary", ":all:"),
            *("--python-platform", platform, "--python-version", python),
            *(option for name in sources for option in ("--no-binary", name)),
            *("--requirement", str(lock)),
        ],
        cwd=_ROOT,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},  # older ones get no updates
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
