"""Tests that depend on how long other tests took are refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.no_clock import clock_reads


@pytest.mark.parametrize(
    "code",
    [
        "import time\nNOW = time.time()",
        "import time\ndef made(): return time.time_ns()\nCASES = [made()]",
        "from time import monotonic\ndef test(now=monotonic()): ...",
        "import time\n@(lambda test, at=time.perf_counter(): test)\ndef test(): ...",
        "import datetime\nclass Test:\n    today = datetime.date.today()",
        "from datetime import UTC, datetime\nNOW = datetime.now(UTC)",
    ],
)
def test_a_clock_at_import_is_found(code: str, tmp_path: Path) -> None:
    """At module level, in a decorator, a default argument, a class, and through a function."""
    assert len(reads(code, tmp_path)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import time\ndef test(): assert time.time() > 0",
        "import datetime\nTHEN = datetime.datetime(2026, 11, 27)",
        "import wave, labvoice.errors",
    ],
)
def test_a_clock_in_a_test_is_none_at_import(code: str, tmp_path: Path) -> None:
    """What runs with the test, a given date, and what other modules do are not found."""
    assert reads(code, tmp_path) == []


def reads(code: str, folder: Path) -> list[str]:
    """Imports a module of that code; returns the lines that read a clock meanwhile."""
    path = folder / "test_some.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("test_some", path)
    assert spec is not None
    assert spec.loader is not None
    with clock_reads(str(folder)) as found:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return found
