"""The connection bench: fresh room, dispatch, join, greeting; one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labvoice.bench.arms import CONNECT_ARMS, Arms, choose
from labvoice.bench.base import (
    RunOptions,
    Trial,
    connect_and_greet,
    measure_calls,
    refuse_speakers,
)
from labvoice.caller.call import Call
from labvoice.runs.run import Run

if TYPE_CHECKING:
    from labvoice.lab import Lab


async def connect(lab: Lab, trials: int, arms: Arms, options: RunOptions) -> Run:
    """Measures connections; see :meth:`labvoice.bench.menu.Bench.connect`."""
    refuse_speakers(options)
    return await measure_calls(
        lab, "connect", trials, choose(arms, CONNECT_ARMS), options, _connect
    )


async def _connect(this: Trial, call: Call, _: int) -> str:
    await connect_and_greet(this, call)
    took_s = call.marks[call.ready_by] - call.marks["click"]
    return f"ready after {took_s * 1000:.0f} ms"
