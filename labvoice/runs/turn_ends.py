"""The trade of finding the end of a turn: turns cut in on, against the delay after the real end.

A detector is asked in each silence of the caller. Where it takes the turn for ended, the agent
waits `min_delay`, else `max_delay`, as LiveKit's endpointing does; a pause that lasts longer is cut
in on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from labvoice.runs.exact import exact_interval
from labvoice.runs.statistics import figures, mean_intervals, measured

if TYPE_CHECKING:
    from labvoice.runs.run import Run

KIND: Final = "endpointing"
DELAYS_S: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
"""Delays of which every pair is a setting of the curve, in seconds."""
TAKEN_AFTER_S: Final = 0.25
"""Silence after which LiveKit takes a turn for ended at the earliest where its own voice detector
says so: what it demands of that beside a detector of audio (1.8.9, `voice/audio_recognition.py`,
`_check_vad_silence_requirement`)."""
POLICIES: Final = tuple(itertools.combinations_with_replacement(DELAYS_S, 2))
"""Pairs of `min_delay` and `max_delay`."""
BUDGET: Final = 0.05
"""Share of turns that may be cut in on: that of eot-bench's headline."""


class Heard(NamedTuple):
    """A turn as a detector took it.

    Attributes:
        pauses_s: Length of each silence in it.
        ended: Whether the detector took the turn for ended, at each of these and at its end.
        least_s: How long the detector itself waits before it says so, likewise, but for no longer
            than the longer delay; not at all where not given.
    """

    pauses_s: Sequence[float]
    ended: Sequence[bool]
    least_s: Sequence[float] = ()

    def cut(self, min_delay_s: float, max_delay_s: float) -> bool:
        """Whether the agent would begin to speak in one of the pauses."""
        return any(
            pause_s > self._after_s(place, min_delay_s, max_delay_s)
            for place, pause_s in enumerate(self.pauses_s)
        )

    def delay_s(self, min_delay_s: float, max_delay_s: float) -> float:
        """How long after the real end the turn is taken for ended."""
        return self._after_s(-1, min_delay_s, max_delay_s)

    def _after_s(self, place: int, min_delay_s: float, max_delay_s: float) -> float:
        """Silence after which the agent would begin to speak in one of the silences."""
        if not self.ended[place]:
            return max_delay_s
        if not len(self.least_s):
            return min_delay_s
        longest_s = max(max_delay_s, TAKEN_AFTER_S)
        return max(min_delay_s, min(self.least_s[place], longest_s))


class Point(NamedTuple):
    """What one setting does.

    Attributes:
        min_delay_s: As LiveKit's `endpointing` has it.
        max_delay_s: The same.
        cut: How many turns it cuts in on.
        turns: Of how many.
        delay_s: Mean delay after the real end.
        delay_ci95_s: Bootstrap 95 % interval of it; NaN below two turns.
    """

    arm: str
    min_delay_s: float
    max_delay_s: float
    cut: int
    turns: int
    delay_s: float
    delay_ci95_s: tuple[float, float]

    @property
    def share(self) -> float:
        """Share of the turns that are cut in on."""
        return self.cut / self.turns

    @property
    def ci95(self) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval of the share."""
        return exact_interval(self.cut, self.turns)

    @property
    def setting(self) -> str:
        """The setting in words."""
        delays = f"{self.min_delay_s:g} s"
        if self.max_delay_s != self.min_delay_s:
            delays += f", {self.max_delay_s:g} s where it hears no end"
        return f"{self.arm} with {delays}" if not math.isnan(self.min_delay_s) else self.arm

    def to_json(self) -> dict[str, Any]:
        """Returns the figures under their names."""
        known = {name: each for name, each in self._asdict().items() if name != "arm"}
        found: dict[str, Any] = figures(known | {"ci95": self.ci95})
        return found


def sweep(arm: str, turns: Sequence[Heard]) -> list[Point]:
    """Returns the curve of a detector: the settings that no other of its own betters.

    Args:
        turns: What it made of each turn; a turn is the unit of resampling.
    """
    delays = np.array([[turn.delay_s(*policy) for policy in POLICIES] for turn in turns])
    intervals = mean_intervals(delays)
    return frontier(
        Point(
            arm,
            *policy,
            sum(turn.cut(*policy) for turn in turns),
            len(turns),
            float(delays[:, column].mean()),
            (float(intervals[column][0]), float(intervals[column][1])),
        )
        for column, policy in enumerate(POLICIES)
    )


def frontier(points: Iterable[Point]) -> list[Point]:
    """Returns the points that no faster one equals in turns cut in on, fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.delay_s, each.cut, each.max_delay_s)):
        if not best or point.cut < best[-1].cut:
            best.append(point)
    return best


def fastest(points: Iterable[Point], share: float) -> Point | None:
    """Returns the fastest point that cuts in on no larger share of the turns; None without one."""
    allowed = [point for point in points if point.share <= share]
    return min(allowed, key=lambda each: (each.delay_s, each.cut), default=None)


def curves(run: Run) -> dict[str, list[Point]]:
    """Returns the curve of each detector of a run on recorded audio; of calls, a point each.

    An arm without a figure is left out. Other runs have no curves.
    """
    if run.header.kind != KIND:
        return {}
    notes = run.notes
    if "ended" in notes:
        found = notes.dropna(subset=["ended"]).merge(
            run.outcomes[["trial", "turn", "arm"]], on=["trial", "turn"]
        )
        told = [name for name in Heard._fields if name in found]  # `least_s` came later
        return {
            arm: sweep(arm, [Heard(*row) for row in rows[told].itertuples(index=False)])
            for arm in run.arms
            if len(rows := found[found["arm"] == arm])
        }
    return {arm: [point] for arm in run.arms if (point := _measured(run, arm)) is not None}


def _measured(run: Run, arm: str) -> Point | None:
    """What the calls of an arm came to: cut in on is what was interrupted or taken for several."""
    attempts = run.attempts
    attempts = attempts[attempts["turn"].notna() & (attempts["arm"] == arm)]
    attempts = attempts[attempts["outcome"].isin(("ok", "interrupted"))]
    notes = run.notes
    if "user_messages" in notes:
        attempts = attempts.merge(notes[["trial", "turn", "user_messages"]], on=["trial", "turn"])
    frame = run.frame
    rows = measured(frame[(frame["stage"] == "end_of_turn_delay") & (frame["arm"] == arm)])
    if attempts.empty or rows.empty:
        return None
    cut = attempts["outcome"] == "interrupted"
    if "user_messages" in attempts:
        cut |= attempts["user_messages"] > 1
    of_calls = rows.groupby("unit", observed=True)["duration_s"].mean().to_numpy(np.float64)
    (interval,) = mean_intervals(of_calls[:, None])
    columns = run.header.arms[arm]
    low_s, high_s = (
        float(value) if isinstance(value := columns.get(name), int | float) else math.nan
        for name in ("min_endpointing_delay_s", "max_endpointing_delay_s")
    )
    if columns.get("turn_detector") == "vad":
        high_s = low_s
    return Point(
        arm,
        low_s,
        high_s,
        int(cut.sum()),
        len(attempts),
        float(rows["duration_s"].mean()),
        (float(interval[0]), float(interval[1])),
    )


def recommendation(found: dict[str, list[Point]], budget: float = BUDGET) -> list[str]:
    """Says in words which setting to take, and what it costs.

    Args:
        found: As :func:`curves` returns them.
        budget: Share of turns that may be cut in on.
    """
    every = [point for points in found.values() for point in points]
    if not every:
        return []
    chosen = fastest(every, budget)
    if chosen is None:
        least = min(every, key=lambda each: (each.share, each.delay_s))
        return [
            f"No setting cuts in on at most {budget:.0%} of the turns; the fewest has "
            f"{_description(least)}."
        ]
    words = [f"Recommended for at most {budget:.0%} of turns cut in on: {_description(chosen)}."]
    quickest = min(every, key=lambda each: (each.delay_s, each.cut))
    if quickest.delay_s < chosen.delay_s:
        words.append(
            f"Its cost: {chosen.delay_s - quickest.delay_s:.2f} s a turn against the fastest, "
            f"{quickest.setting}, which cuts in on {quickest.share:.0%} of the turns."
        )
    others = [
        f"{arm} {point.delay_s - chosen.delay_s:.2f} s" if point else f"{arm} cannot"
        for arm, points in found.items()
        if arm != chosen.arm
        for point in [fastest(points, budget)]
    ]
    if others:
        words.append(f"Later than that, with as few turns cut in on: {', '.join(others)}.")
    if chosen.ci95[1] > budget:
        words.append(
            f"{chosen.turns} turns do not show that the share is below {budget:.0%}: it may be "
            f"{chosen.ci95[1]:.0%}. The setting was chosen on the turns that it is judged by."
        )
    return words


def _description(point: Point) -> str:
    low, high = point.ci95
    low_s, high_s = point.delay_ci95_s
    interval = "" if math.isnan(low_s) else f" (95 % interval {low_s:.2f} to {high_s:.2f})"
    return (
        f"{point.setting}. It cuts in on {point.cut} of {point.turns} turns (95 % interval "
        f"{low:.1%} to {high:.1%}) and ends a turn {point.delay_s:.2f} s after its last word at "
        f"the mean{interval}"
    )
