"""Finds tests that read a clock while they are collected: their result depends on the others."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

_TESTS: Final = str(Path(__file__).parent)
_CLOCKS: Final = frozenset(
    getattr(time, name + unit)
    for name in ("time", "monotonic", "perf_counter", "process_time")
    for unit in ("", "_ns")
)
_DATES: Final = ("now", "utcnow", "today")


def _reads_a_clock(function: Any) -> bool:
    if getattr(function, "__name__", "") in _DATES:
        owner = getattr(function, "__self__", None)
        return isinstance(owner, type) and issubclass(owner, datetime.date)
    return getattr(function, "__module__", "") == "time" and function in _CLOCKS


@contextmanager
def clock_reads(folder: str = _TESTS) -> Iterator[list[str]]:
    """Collects the places in a folder's files that read a clock inside the block.

    A clock that the code under test reads for itself, as a rate limiter does, is not the test's.
    """
    found: list[str] = []

    def watch(frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call" or not frame.f_code.co_filename.startswith(folder):
            return
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if _reads_a_clock(function) and place not in found:
            found.append(place)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(before)
