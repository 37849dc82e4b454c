"""The leak bench: resources of worker, lab and server before and after many calls."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import os
from collections.abc import Callable
from typing import Final

import pandas as pd
import psutil
from livekit import api

from labvoice.bench.arms import DEFAULT, Arm
from labvoice.bench.base import (
    RunOptions,
    call_trial,
    connect_and_greet,
    refuse_speakers,
    surrounded,
)
from labvoice.bench.facts import columns, host_facts, surroundings
from labvoice.errors import LabvoiceError, UsageError
from labvoice.lab import Lab
from labvoice.runs.run import Run, RunWriter
from labvoice.speech.utterances import Pcm
from labvoice.stack.processes import memory_of

_JOIN_TIMEOUT_S: Final = 30.0
"""The worker's warm process may just be taken."""
_IDLE_TIMEOUT_S: Final = 120.0
_FAILED_SHARE: Final = 0.1
TOLERANCES: Final = {
    "worker_pss": 50.0,
    "worker_rss": 35.0,
    "worker_processes": 0.0,
    "worker_files": 5.0,
    "worker_threads": 2.0,
    "lab_rss": 60.0,
    "lab_files": 5.0,
    "lab_tasks": 3.0,
    "server_pss": 90.0,
    "server_rooms": 0.0,
}
"""Allowed growth of each figure, for any number of calls: the difference between two measurements
of an idle lab, and what an allocator keeps. A figure that keeps growing exceeds it after enough
calls."""


async def leaks(lab: Lab, calls: int, options: RunOptions) -> tuple[Run, pd.DataFrame]:
    """Makes short calls, one after the other, and compares the resources before and after them.

    In each a caller joins with a microphone, hears the greeting and hangs up.

    Args:
        lab: An idle lab with a worker.
        calls: Number of calls between the two measurements.
        options: Options of the run; `warmup` calls go before the first measurement: caches and
            pools have filled by then.

    Returns:
        The run of the calls, with their recordings; and a row for each figure: `before`,
        `halfway`, `after`, `change` (from before to after), `allowed` and whether it is `ok`.
        Memory is in MiB, with the job processes in `worker_pss` and without them in `worker_rss`;
        `lab_rss` is what is in use, without what the allocator keeps. A growth that levels off is
        in the first half alone.

    Raises:
        UsageError: The number is out of range.
        LabvoiceError: More than a tenth of the calls failed. Fewer failures are warnings: what a
            failed call leaves behind counts as well.
        RunFileError: The run file exists already.
    """
    if calls < 1:
        raise UsageError("no call is no test", "pass `--calls 1` or more")
    refuse_speakers(options)
    (arm,), around = await surrounded(lab.settings, [DEFAULT], options)
    path = options.path("leaks")
    config = {**options.told, "calls": calls}
    arms = {arm.name: {**columns(lab.settings), **surroundings(arm.link, arm.conditions)}}
    make_calls = functools.partial(
        _call, lab, arm, around=around.get(arm.name), progress=options.progress
    )
    facts = await host_facts(lab)
    with RunWriter(path, kind="leaks", config=config, arms=arms, host_facts=facts) as run:
        half, every = options.warmup + calls // 2, options.warmup + calls
        await make_calls(run, range(options.warmup), warmup=True)
        before = await _figures(lab)
        await make_calls(run, range(options.warmup, half))
        halfway = await _figures(lab)
        await make_calls(run, range(half, every))
        after = await _figures(lab)
    frame = pd.DataFrame({"before": before, "halfway": halfway, "after": after})
    frame["change"] = frame["after"] - frame["before"]
    frame["allowed"] = [TOLERANCES[name] for name in before]
    return Run.load(path), frame.assign(ok=frame["change"] <= frame["allowed"])


async def _call(
    lab: Lab,
    arm: Arm,
    run: RunWriter,
    numbers: range,
    *,
    around: Pcm | None,
    progress: Callable[[str], None],
    warmup: bool = False,
) -> None:
    failed = 0
    for done, number in enumerate(numbers, 1):
        async with call_trial(
            lab,
            run,
            number,
            arm,
            round_number=number,
            warmup=warmup,
            around=around,
            timeout_s=_JOIN_TIMEOUT_S,
        ) as (this, call):
            await connect_and_greet(this, call)
        if this.failed:
            failed += 1
            progress(f"warning: call {number + 1} failed: {this.words}")
            if failed > len(numbers) * _FAILED_SHARE:
                raise LabvoiceError(
                    f"{failed} of {done} calls failed, the last one so: {this.words}",
                    f"{run.path} has them all",
                )
        if this.warning:
            progress(f"warning: {this.warning}")
        if done % 10 == 0:
            progress(f"{done}/{len(numbers)} calls")
    await lab.wait_idle(_IDLE_TIMEOUT_S)
    lab.recent_calls.clear()  # they hold what was heard
    await asyncio.sleep(1)


async def _figures(lab: Lab) -> dict[str, float]:
    # A process with many objects makes a full collection rarely: what waits for one is no leak,
    # nor is what glibc keeps.
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    worker = psutil.Process(lab.pool.workers[0].process.pid)
    own = psutil.Process(os.getpid())
    rooms = await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
    server = next(part for part in lab.parts() if part.name == "LiveKit server")
    return {
        "worker_pss": memory_of(lab.pool.workers[0].process.pid) / 2**20,
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
