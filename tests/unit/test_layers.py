"""Recorded runs are read without LiveKit and without a lab."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import labvoice.runs

_FOREIGN = (
    "livekit",
    "labvoice.lab",
    "labvoice.bench",
    "labvoice.stack",
    "labvoice.caller",
    "labvoice.agent",
)
_HEAVY = ("pandas", "scipy", "matplotlib", "pydantic", "jinja2")


def _loaded(*modules: str) -> set[str]:
    """Returns the modules that a new interpreter has loaded after importing these."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(run.stdout.split())


def test_runs_import_neither_livekit_nor_the_lab() -> None:
    """All of `labvoice.runs` can be imported without the packages that a lab needs."""
    names = [info.name for info in pkgutil.iter_modules(labvoice.runs.__path__, "labvoice.runs.")]
    loaded = _loaded(*names)
    assert set(names) <= loaded
    assert not [
        m for m in loaded if m in _FOREIGN or m.startswith(tuple(f"{f}." for f in _FOREIGN))
    ]
    assert "scipy" not in loaded, "only a comparison needs it, and it takes long to load"


def test_the_package_of_runs_loads_nothing_heavy() -> None:
    """Importing `labvoice.runs` alone loads no third-party package."""
    assert not _loaded("labvoice.runs").intersection(_HEAVY)
