"""Where the lock files can be installed: asked of uv, for machines that the tests do not run on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import uv

_ROOT = Path(__file__).parents[2]
_LETTA = Path("labvoice/stack/letta/requirements.lock")
_SHIPPED = ("agent", "lab", "service", "notebook")
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


def test_every_dependency_is_locked_and_its_licence_is_stated() -> None:
    """The lock, whose wheels are checked above, and docs/licences.md name every dependency."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    shipped = [*project["dependencies"], *(each for name in _SHIPPED for each in extras[name])]
    names = {re.match(r"[\w.-]+", each)[0] for each in shipped} - {"labvoice"}  # type: ignore[index]
    lock = (_ROOT / "requirements.lock").read_text(encoding="utf-8")
    licences = (_ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    assert {name for name in names if f"\n{name}==" not in lock} == set()
    assert {name for name in names if f"`{name}`" not in licences} == set()
