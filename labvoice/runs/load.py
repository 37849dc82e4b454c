"""Load: what each number of callers came to, the knee, and the sentence that sizes a machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from labvoice.protocol.vocabulary import TRANSPORT
from labvoice.runs.statistics import bootstrap_interval, figures, measured, percentile

if TYPE_CHECKING:
    from labvoice.runs.run import Run

KIND: Final = "load"
LIMIT_S: Final = 1.2
"""Default limit of the 95th percentile of `voice_to_voice`, in seconds."""
LATE_S: Final = 0.05
"""A level whose callers were later than this themselves is void, in seconds: it is what the
calibration of an idle machine leaves no room for, and a tenth of a usual `voice_to_voice`."""
LOST_SHARE: Final = 0.01
"""Share of turns and joins that may be lost within the limit."""
_BUSY: Final = 0.9
"""Share of the cores from which on the processor counts as used up."""
_GROWN_S: Final = 0.05
"""A stage that takes so much longer than at the level before names the limit, in seconds."""
PARTS: Final = ("worker", "server", "model", "callers")
"""Whose processor time is counted: agents, LiveKit server, language model, Dask workers here."""
_STAGES: Final[Mapping[str, str]] = {
    "end_of_turn_delay": "speech recognition and the end of turn",
    "llm_node_ttft": "the model",
    "tts_node_ttfb": "speech synthesis",
    TRANSPORT: "the media path",
}


class Level(NamedTuple):
    """What one number of callers came to.

    Attributes:
        callers: How many called at once.
        turns: Turns that were due.
        lost: Turns without an answer, those of calls that failed included.
        joins: Connections that were due.
        failed_joins: Connections that failed.
        refused: Connections for which no worker was free.
        p50_s: Median of `voice_to_voice` from the intended start, in seconds; NaN where unknown.
        p50_ci95_s: Bootstrap 95 % interval of the median, calls resampled.
        p95_ci95_s: The same of the 95th percentile.
        late_s: How late the callers themselves were, in seconds: the larger of the 95th percentile
            of starts after their intended instant, and of the 99th of the event loops' lag.
        upset: Share of turns that a stall upset; they are in no percentile while others are left.
        stages_s: Medians of the agent's own stages, in seconds.
        cpu: Cores used by each of :data:`PARTS` that runs here.
        memory_bytes: Memory of each of these in the middle of the level.
        ended: Callers whose process ended, or had to be ended, before their calls did.
    """

    arm: str
    callers: int
    turns: int
    lost: int
    joins: int
    failed_joins: int
    refused: int
    p50_s: float
    p95_s: float
    p50_ci95_s: tuple[float, float]
    p95_ci95_s: tuple[float, float]
    late_s: float
    upset: float
    stages_s: Mapping[str, float]
    cpu: Mapping[str, float]
    memory_bytes: Mapping[str, float]
    ended: int = 0

    @property
    def void(self) -> bool:
        """Whether the callers were late themselves, or ended: it says nothing of the agent."""
        return self.late_s > LATE_S or self.ended > 0

    @property
    def void_words(self) -> str:
        """Why it is void; empty where it is not."""
        if self.ended:
            return f"the calls of {self.ended} ended with their processes"
        late = f"the callers themselves were late by {self.late_s * 1e3:.0f} ms"
        return late if self.void else ""

    def within(self, limit_s: float) -> bool:
        """Whether it was fast enough, and lost no more than :data:`LOST_SHARE`."""
        due, lost = self.turns + self.joins, self.lost + self.failed_joins
        return due > 0 and lost <= LOST_SHARE * due and self.p95_s <= limit_s

    def to_json(self) -> dict[str, Any]:
        """Returns the figures under their names; None where there is none."""
        every: dict[str, Any] = figures(self._asdict())
        return every | {"void": self.void}


class Knee(NamedTuple):
    """Where a ramp of callers bends.

    Attributes:
        within: The last level within the limit; None where the first was not.
        beyond: The first level that was not, or that is void; None where the ramp ended before.
    """

    within: Level | None
    beyond: Level | None


def knee(levels: Sequence[Level], limit_s: float) -> Knee:
    """Finds the knee by stepping through the levels, fewest callers first."""
    within: Level | None = None
    for level in sorted(levels, key=lambda each: each.callers):
        if level.void or not level.within(limit_s):
            return Knee(within, level)
        within = level
    return Knee(within, None)


def number(value: object, otherwise: float) -> float:
    """Returns a number of a run's header; `otherwise` where it is none, or zero."""
    return float(value) if isinstance(value, int | float) and value else otherwise


def levels_of(run: Run) -> list[Level]:
    """Returns the levels of a run of `labvoice bench load` that were made, fewest callers first.

    Empty for other runs.
    """
    if run.header.kind != KIND:
        return []
    frame, outcomes, notes = run.frame, run.outcomes, run.notes
    frame, outcomes = frame[~frame["warmup"]], outcomes[~outcomes["warmup"]]
    heard = measured(frame[frame["stage"] == "voice_to_voice"])
    medians = measured(frame[frame["stage"].isin(list(_STAGES))])
    found = []
    for arm, columns in run.header.arms.items():
        tries = outcomes[outcomes["arm"] == arm]
        if tries.empty:
            continue
        is_turn, failed = tries["turn"].notna(), tries["outcome"] != "ok"
        facts = notes[notes["trial"].isin(tries["trial"])]
        rows = heard[heard["arm"] == arm]
        turns = frame[(frame["arm"] == arm) & (frame["stage"] == "voice_to_voice")]
        values, units = rows["duration_s"].to_numpy(np.float64), rows["unit"].array
        of_arm = medians[medians["arm"] == arm].groupby("stage", observed=True)["duration_s"]
        found.append(
            Level(
                arm=arm,
                callers=int(columns["callers"] or 0),
                turns=int(is_turn.sum()),
                lost=int((is_turn & failed).sum()),
                joins=int((~is_turn).sum()),
                failed_joins=int((~is_turn & failed).sum()),
                refused=int((~is_turn & tries["outcome"].isin(["worker_full", "no_worker"])).sum()),
                p50_s=percentile(values, 50),
                p95_s=percentile(values, 95),
                p50_ci95_s=bootstrap_interval(values, units),
                p95_ci95_s=bootstrap_interval(values, units, 95),
                late_s=max(
                    percentile(_facts(facts, "caller_late_s"), 95),
                    _facts(facts, "loop_lag_s").max(initial=0.0),
                ),
                upset=float(turns["upset"].mean()) if len(turns) else 0.0,
                stages_s={str(name): float(value) for name, value in of_arm.median().items()},
                cpu=_of_parts(facts, "cpu"),
                memory_bytes=_of_parts(facts, "memory_bytes"),
                ended=int(_facts(facts, "caller_ended").sum()),
            )
        )
    return sorted(found, key=lambda level: level.callers)


def _facts(notes: pd.DataFrame, name: str) -> Any:
    """A fact of all notes that have it, as an array of floats."""
    if name not in notes:
        return np.zeros(0)
    return notes[name].dropna().to_numpy(np.float64)


def _of_parts(notes: pd.DataFrame, name: str) -> dict[str, float]:
    found = {part: _facts(notes, f"{name}_{part}") for part in PARTS}
    return {part: float(values[0]) for part, values in found.items() if values.size}


def sizing(levels: Sequence[Level], limit_s: float, *, workers: int, cores: int) -> str:
    """Returns the sentence that sizes a machine; empty where there is no level.

    Args:
        levels: The levels of the run.
        limit_s: Limit of the 95th percentile of `voice_to_voice`, in seconds.
        workers: How many workers shared the calls.
        cores: Cores of the machine.
    """
    if not levels:
        return ""
    within, beyond = knee(levels, limit_s)
    at = f"p95 <= {limit_s:g} s"
    there = f"on this machine ({cores} cores)"
    if within is None:
        assert beyond is not None
        if beyond.void:
            return f"No figure: {_void_words(beyond)}."
        return f"Not one level is within {at} {there}: {_beyond_words(beyond)}."
    each = within.callers / workers
    calls = f"{each:g} call{'' if each == 1 else 's'} a worker"
    if workers > 1:
        calls += f" ({within.callers} on {workers} workers)"
    if beyond is None:
        return f"At least {calls} at {at} {there}: the ramp ended before the knee."
    if beyond.void:
        return f"At least {calls} at {at} {there}: {_void_words(beyond)}."
    return f"{calls} at {at} {there}; {_beyond_words(beyond)}; {_limit(within, beyond, cores)}."


def _void_words(level: Level) -> str:
    return (
        f"with {level.callers} {level.void_words}, so that this level is void: "
        "spread them over more Dask workers or machines"
    )


def _beyond_words(level: Level) -> str:
    words = f"with {level.callers} it is {level.p95_s:.2f} s"
    if math.isnan(level.p95_s):
        words = f"with {level.callers} no turn was answered"
    lost = [
        f"{count} of {due} {what}"
        for count, due, what in (
            (level.lost, level.turns, "turns"),
            (level.failed_joins, level.joins, "joins"),
        )
        if count
    ]
    return f"{words}, {' and '.join(lost)} lost" if lost else words


def _limit(within: Level, beyond: Level, cores: int) -> str:
    """Says what stands in the way of more calls."""
    if 2 * beyond.refused > beyond.failed_joins:
        return "the workers' limit of jobs is the limit"
    grown = {
        name: beyond.stages_s[name] - within.stages_s[name]
        for name in _STAGES
        if name in beyond.stages_s and name in within.stages_s
    }
    words = ""
    stage = max(grown, key=lambda name: grown[name], default=None)
    if stage is not None and grown[stage] > _GROWN_S:
        words = f"{_STAGES[stage]} is the limit ({stage} takes {grown[stage]:.2f} s more)"
    used = sum(beyond.cpu.values())
    if used >= _BUSY * cores:
        most = max(beyond.cpu, key=lambda part: beyond.cpu[part])
        busy = f"{used:.1f} of {cores} cores are used, {beyond.cpu[most]:.1f} of them by the {most}"
        return f"{words}; {busy}" if words else f"the processor is the limit: {busy}"
    return words or "neither a stage of the agent nor the processor says what the limit is"


def table(levels: Sequence[Level]) -> pd.DataFrame:
    """Returns the levels for display: times in milliseconds, memory in MiB.

    The index is the number of callers. Columns: turns, lost, joins, failed, p50, p50_lo, p50_hi,
    p95, p95_lo, p95_hi, late, void, and for each part that runs here its cores (`cpu_…`) and its
    memory (`mib_…`).
    """
    rows = []
    for level in levels:
        times = (level.p50_s, *level.p50_ci95_s, level.p95_s, *level.p95_ci95_s, level.late_s)
        names = ("p50", "p50_lo", "p50_hi", "p95", "p95_lo", "p95_hi", "late")
        rows.append(
            {
                "callers": level.callers,
                "turns": level.turns,
                "lost": level.lost,
                "joins": level.joins,
                "failed": level.failed_joins,
                **{
                    name: round(at_s * 1e3) if math.isfinite(at_s) else math.nan
                    for name, at_s in zip(names, times, strict=True)
                },
                "void": "void" if level.void else "",
                **{f"cpu_{part}": f"{used:.2f}" for part, used in level.cpu.items()},
                **{f"mib_{part}": round(size / 2**20) for part, size in level.memory_bytes.items()},
            }
        )
    return pd.DataFrame(rows).set_index("callers") if rows else pd.DataFrame()
