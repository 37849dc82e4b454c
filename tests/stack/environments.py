"""Environments of agents that are not labvoice's, made by uv from its cache or the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import uv

_TIMEOUT_S = 300


def python_with(folder: Path, *packages: str) -> Path:
    """Makes an environment with these packages; returns its interpreter."""
    program = uv.find_uv_bin()
    python = folder / "bin" / "python"
    _run(program, "venv", "--quiet", "--python", sys.executable, folder)
    _run(program, "pip", "install", "--quiet", "--python", python, *packages)
    return python


def node_with(folder: Path, *packages: str) -> Path:
    """Installs packages from npm; returns the folder."""
    folder.mkdir()
    _run("npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", folder, *packages)
    return folder


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=_TIMEOUT_S)
