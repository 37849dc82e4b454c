"""The endpointing bench: several silences before the end of a turn, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labvoice.bench.arms import Arms, choose_endpointing
from labvoice.bench.base import RunOptions
from labvoice.bench.turns import measure_turns
from labvoice.runs.run import Run

if TYPE_CHECKING:
    from labvoice.lab import Lab


async def endpointing(lab: Lab, trials: int, arms: Arms, options: RunOptions) -> Run:
    """Measures silences; see :meth:`labvoice.bench.menu.Bench.endpointing`."""
    chosen = choose_endpointing(arms, lab.settings.max_endpointing_delay_s)
    return await measure_turns(lab, "endpointing", trials, 1, chosen, None, options)
