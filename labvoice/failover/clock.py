"""A clock that stands still while its event loop does not run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_TICK_S: Final = 0.1
_STEP_S: Final = 0.2
"""Longest time that counts between two readings, in seconds: a loop that runs reads the clock every
0.1 s, and a wake-up may be as late again on a busy machine."""


class LoopClock:
    """Monotonic seconds in which this event loop ran; a stall of it counts 0.2 s at most.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_s = clock()
        self._ran_s = 0.0

    def __call__(self) -> float:
        """Returns the seconds in which the loop has run so far."""
        now_s = self._clock()
        self._ran_s += min(now_s - self._read_s, _STEP_S)
        self._read_s = now_s
        return self._ran_s

    async def run(self) -> None:
        """Keeps the clock going until cancelled."""
        while True:
            self()
            await asyncio.sleep(_TICK_S)
