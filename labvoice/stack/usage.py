"""Processor time and memory of processes while something is measured."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Final

import psutil

from labvoice.stack.processes import memory_of, tree_of

_SAMPLE_EVERY_S: Final = 0.5


class Usage:
    """Processor time and memory of the parts that run here, their child processes included.

    Args:
        roots: Process ids of each part.
    """

    def __init__(self, roots: Mapping[str, Sequence[int]]) -> None:
        self._roots = roots
        self._seen: dict[tuple[int, float], float] = {}
        self._used_s = dict.fromkeys(roots, 0.0)
        self._memory: dict[str, int] = {}
        self._begun_s = self._ended_s = time.monotonic()

    async def follow(self, memory_after_s: float) -> None:
        """Samples until it is cancelled; a process that ends between two samples loses one."""
        await asyncio.to_thread(self._sample, first=True)
        self._begun_s = self._ended_s = time.monotonic()
        while True:
            await asyncio.sleep(_SAMPLE_EVERY_S)
            await asyncio.to_thread(self._sample)
            self._ended_s = time.monotonic()
            if not self._memory and self._ended_s - self._begun_s > memory_after_s:
                self._memory = await asyncio.to_thread(
                    lambda: {name: sum(map(memory_of, pids)) for name, pids in self._roots.items()}
                )

    def _sample(self, *, first: bool = False) -> None:
        for name, pids in self._roots.items():
            for pid in pids:
                for process in tree_of(pid):
                    with contextlib.suppress(psutil.Error):
                        key, times = (process.pid, process.create_time()), process.cpu_times()
                        used_s = times.user + times.system
                        self._used_s[name] += used_s - self._seen.get(key, used_s if first else 0.0)
                        self._seen[key] = used_s

    def facts(self) -> dict[str, float]:
        """Returns the mean number of cores that each part used, and its memory in bytes."""
        lasted_s = max(self._ended_s - self._begun_s, _SAMPLE_EVERY_S)
        return {
            **{f"cpu_{name}": used_s / lasted_s for name, used_s in self._used_s.items()},
            **{f"memory_bytes_{name}": float(size) for name, size in self._memory.items()},
        }
