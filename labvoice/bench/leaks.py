"""Looks for leaks: what worker, lab and server hold before and after many calls."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from typing import Final

import pandas as pd
import psutil
from livekit import api

from labvoice.errors import UsageError
from labvoice.lab import Lab

_WARMUP: Final = 3
"""Calls before the first look: caches and pools have filled by then."""
_SETTLE_S: Final = 120.0


async def leaks(
    lab: Lab, calls: int = 100, *, progress: Callable[[str], None] = lambda _: None
) -> pd.DataFrame:
    """Dispatches an agent into one room after the other, deletes the room, and compares.

    Args:
        lab: With a worker, and with nothing else to do.
        calls: How many calls lie between the two looks.
        progress: Told a line now and then.

    Returns:
        A row for each figure: `before`, `after` and `change`. Memory is in MiB, with the job
        processes in `worker_pss` and without them in `worker_rss`.

    Raises:
        UsageError: The number makes no sense.
        DispatchError: An agent did not come.
    """
    if calls < 1:
        raise UsageError("no call is no test", "pass `--calls 1` or more")
    await _call(lab, _WARMUP, progress)
    before = await _figures(lab)
    await _call(lab, calls, progress)
    after = await _figures(lab)
    frame = pd.DataFrame({"before": before, "after": after})
    return frame.assign(change=frame["after"] - frame["before"])


async def _call(lab: Lab, calls: int, progress: Callable[[str], None]) -> None:
    for number in range(calls):
        room = f"leaks-{secrets.token_hex(4)}"
        await lab.dispatcher.dispatch(room, lab.settings.agent_name, timeout_s=30)
        await lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room))
        if (number + 1) % 10 == 0:
            progress(f"{number + 1}/{calls} calls")
    await lab.pool.settle(_SETTLE_S)
    await asyncio.sleep(1)


async def _figures(lab: Lab) -> dict[str, float]:
    worker = psutil.Process(lab.pool.workers[0].process.pid)
    own = psutil.Process(os.getpid())
    rooms = await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
    server = next(part for part in lab.parts() if part.name == "LiveKit server")
    return {
        "worker_pss": lab.pool.workers[0].process.memory_bytes() / 2**20,
        "worker_rss": worker.memory_info().rss / 2**20,
        "worker_processes": len(worker.children(recursive=True)),
        "worker_files": worker.num_fds(),
        "worker_threads": worker.num_threads(),
        "lab_rss": own.memory_info().rss / 2**20,
        "lab_files": own.num_fds(),
        "lab_tasks": len(asyncio.all_tasks()),
        "server_pss": (server.memory_bytes or 0) / 2**20,
        "server_rooms": len(rooms.rooms),
    }
