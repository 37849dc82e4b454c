"""Measures a run's turns again from its recordings, and compares with the live marks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from labvoice.errors import RunFileError
from labvoice.protocol.vocabulary import TURN_MARKS
from labvoice.runs.endpoints import Segment, find_segments
from labvoice.runs.load import KIND as LOAD
from labvoice.runs.run import Run
from labvoice.runs.statistics import finite
from labvoice.runs.tables import table_text

REMEASURED: Final = ("user_speech_end", "reply_heard", "reply_end")
"""The marks of a turn that are found again."""
_CALLERS: Final = ("interruption_start", "interruption_end", "sound_start", "sound_end")
"""Those of a probe's own sound; it has no reply, and the agent's voice may be all around it."""
_EDGES: Final = {
    "pause_start": ("caller", "end_s"),
    "cut_in_heard": ("heard", "start_s"),
    "agent_yielded": ("heard", "end_s"),
    "agent_resumed": ("heard", "start_s"),
    "new_reply_heard": ("heard", "start_s"),
    "greeting_heard": ("heard", "start_s"),
    "apology_heard": ("heard", "start_s"),
}
"""Marks that are the beginning or the end of a segment, on one side."""
AGREES_S: Final = 0.020
"""Two marks that are not further apart agree, in seconds."""
LEAST_SHARE: Final = 0.95
"""Share of turns whose marks must agree."""
_LIVE_FRAME_S: Final = 0.01
"""A live mark is the beginning of the frame, so long, with the first or the last voiced sample."""
_NEAR_S: Final = 0.3
"""Sound belongs to a turn, or an edge to a mark, if it lies so near to it, in seconds."""
_EARLY_S: Final = 0.05
"""A reply may seem to begin so long before the caller's last sound ends, in seconds."""
_WITHOUT_CALLS: Final = ("burst", "http")
_INTERRUPT: Final = "interrupt"
_COLUMNS: Final = ("trial", "turn", "mark", "live_s", "recorded_s", "difference_s")


@dataclass(frozen=True)
class Remeasured:
    """Marks of a run, live and found again in its recordings.

    Attributes:
        marks: A row for each mark of each recorded turn: trial, turn, mark, live_s (the middle of
            the 10 ms frame whose beginning the mark is) and recorded_s, both since the click and
            NaN where it was not found, difference_s (recorded minus live).
        notices: Recordings that could not be used, a sentence each.
        unit: What has to agree: `turns`, with all their marks; of turn-taking, whose probes have up
            to five, the `marks`; of a run without either the `calls`, with their greetings and
            apologies.
    """

    run_id: str
    marks: pd.DataFrame
    notices: list[str]
    unit: str = "turns"

    @property
    def turns(self) -> pd.Series[bool]:
        """Whether all marks of a turn agree, by (trial, turn); a call's greeting has no turn.

        Where marks are the unit, by (trial, turn, mark).
        """
        rows = self._known
        agree = rows["difference_s"].abs() <= AGREES_S
        by = ["trial", "turn", *(["mark"] if self.unit == "marks" else [])]
        return agree.groupby([rows[name] for name in by], dropna=False).all()

    @property
    def _known(self) -> pd.DataFrame:
        """Marks of which either instant is known."""
        rows = self.marks.dropna(subset=["live_s", "recorded_s"], how="all")
        # A run from before `reply_end` was a mark has nothing to compare it with.
        ends = rows["mark"] == "reply_end"
        return rows if rows.loc[ends, "live_s"].notna().any() else rows[~ends]

    @property
    def share(self) -> float:
        """Share of the :attr:`unit` that agrees; NaN where there is none."""
        return float(self.turns.mean()) if len(self.turns) else math.nan

    @property
    def passed(self) -> bool:
        """Whether at least 95 % of the :attr:`unit` agree within 20 ms."""
        return self.share >= LEAST_SHARE

    def summary(self) -> pd.DataFrame:
        """Returns a row for each mark, in milliseconds.

        Columns: n (marks of which either is known), both (found live and again), median and p95 of
        the absolute difference, within (share of n that agree within 20 ms, in per cent).
        """
        rows = {}
        for mark in self.marks["mark"].unique():
            known = self._known[self._known["mark"] == mark]
            if len(known):
                apart = known["difference_s"].abs().dropna() * 1e3
                rows[mark] = {
                    "n": len(known),
                    "both": len(apart),
                    "median": apart.median(),
                    "p95": apart.quantile(0.95),
                    "within": 100 * (apart <= AGREES_S * 1e3).sum() / len(known),
                }
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.rename_axis("mark").round(1)

    @property
    def verdict(self) -> str:
        """One line: how many turns agree."""
        turns = self.turns
        return (
            f"{int(turns.sum())} of {len(turns)} {self.unit} agree within {AGREES_S * 1e3:.0f} ms"
            f"{f' ({self.share:.0%})' if len(turns) else ''}; "
            f"{LEAST_SHARE:.0%} are required: {'passed' if self.passed else 'failed'}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the machine-readable result, in seconds; None where there is no figure."""
        rows = self.marks.astype(object).where(self.marks.notna(), None)
        summary = self.summary()
        return {
            "run_id": self.run_id,
            "unit": self.unit,
            "turns": len(self.turns),
            "agreeing": int(self.turns.sum()),
            "passed": self.passed,
            "marks": {
                mark: {
                    "n": int(row["n"]),
                    "both": int(row["both"]),
                    "median_s": finite(row["median"] / 1e3),
                    "p95_s": finite(row["p95"] / 1e3),
                    "within": row["within"] / 100,
                }
                for mark, row in summary.to_dict("index").items()
            },
            "differences": rows.to_dict("records"),
            "notices": self.notices,
        }

    def __repr__(self) -> str:
        lines = [f"run {self.run_id}, remeasured from its recordings"]
        if len(self.summary()):
            lines += ["", table_text(self.summary()), "(milliseconds; within 20 ms in per cent)"]
        return "\n".join([*lines, self.verdict, *(f"notice: {each}" for each in self.notices)])


def remeasure(run: Run) -> Remeasured:
    """Finds the end of the caller's speech and both ends of each reply in the recordings.

    Of turn-taking it finds both ends of the caller's sound, and where the agent's voice yields,
    goes on and answers; of a run without turns, its greetings and apologies.

    The detector, :mod:`labvoice.runs.endpoints`, hears the two channels and knows no mark. A live
    mark only tells which segments of the caller's are one turn, whether the turn's reply began
    before the caller had finished, and which edge of the agent's voice is a probe's.

    Raises:
        RunFileError: The run has no recordings, or nothing that a recording could confirm.
    """
    recordings = run.recordings
    if recordings.empty:
        if run.header.kind in _WITHOUT_CALLS or run.header.config.get("calls") is False:
            raise RunFileError(
                f"a {run.header.kind} run without calls has no recordings",
                "runs of `call`, `try`, `test` and of benches that call an agent have some",
            )
        raise RunFileError(
            "the run has no recordings",
            "LABVOICE_RECORDING=ogg records calls; the folder of a run's name must be beside it",
        )
    every = _live_marks(run)
    has_turns = every["turn"].notna().any()
    marks = every[every["turn"].notna() == has_turns]
    rows: list[dict[str, Any]] = []
    notices: list[str] = []
    for each in recordings.to_dict("records"):
        trial, path = int(each["trial"]), Path(each["path"])
        of_trial = marks[marks["trial"] == trial]
        turns: dict[int | None, dict[str, float]] = {}
        for turn, mark, at_s in zip(
            *(of_trial[name] for name in ("turn", "mark", "t_s")), strict=True
        ):
            turns.setdefault(int(turn) if has_turns else None, {})[str(mark)] = float(at_s)
        try:
            caller, heard = _sides(path, float(each["start_s"]))
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            notices.append(f"the recording of call {trial} cannot be read: {error}")
            continue
        for number, live in turns.items():
            if number is None or run.header.kind == _INTERRUPT:
                found = _probe(live, caller, heard)
                rows += [_row(trial, number, mark, live, found) for mark in live]
                continue
            following = [
                t["user_speech_start"]
                for n, t in turns.items()
                if n is not None and n > number and "user_speech_start" in t
            ]  # a turn that was typed has none
            found = _turn(live, caller, heard, min(following, default=math.inf))
            rows += [_row(trial, number, mark, live, found) for mark in REMEASURED]
    if not rows and not notices:
        raise RunFileError(
            "the run has recordings, and no turn, probe or greeting that they could confirm",
            "an agent that greets, or a run of `call`, `try`, `test`, `bench turns`, has some",
        )
    unit = "marks" if run.header.kind == _INTERRUPT else "turns" if has_turns else "calls"
    found_marks = pd.DataFrame(rows, columns=list(_COLUMNS))
    return Remeasured(run.header.run_id, found_marks, notices, unit)


def _live_marks(run: Run) -> pd.DataFrame:
    """The marks that recordings can confirm, where they really were: trial, turn, mark, t_s."""
    marks = run.marks
    marks = marks[marks["mark"].isin([*TURN_MARKS, *_CALLERS, *_EDGES])]
    if run.header.kind != LOAD:
        return marks
    # What a caller under load says counts from when it was due, and it may have begun later.
    late = run.notes.reindex(columns=["trial", "turn", "late_s"]).dropna()
    marks = marks.merge(late, on=["trial", "turn"], how="left")
    spoken = marks["mark"].isin(["user_speech_start", "user_speech_end"])
    return marks.assign(t_s=marks["t_s"] + marks["late_s"].fillna(0.0).where(spoken, 0.0))


def _row(
    trial: int, turn: int | None, mark: str, live: dict[str, float], found: dict[str, float]
) -> dict[str, Any]:
    live_s = live.get(mark, math.nan) + _LIVE_FRAME_S / 2
    recorded_s = found.get(mark, math.nan)
    values = (trial, turn, mark, live_s, recorded_s, recorded_s - live_s)
    return dict(zip(_COLUMNS, values, strict=True))


def _sides(path: Path, start_s: float) -> tuple[list[Segment], list[Segment]]:
    """The segments of both channels, in seconds since the click."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    sides = (find_segments(np.ascontiguousarray(samples[:, side]), rate) for side in (0, -1))
    caller, heard = (
        [Segment(each.start_s + start_s, each.end_s + start_s) for each in side] for side in sides
    )
    return caller, heard


def _turn(
    live: dict[str, float], caller: list[Segment], heard: list[Segment], next_s: float
) -> dict[str, float]:
    """The marks of a turn, as far as they are found."""
    if not {"user_speech_start", "user_speech_end"} <= set(live):
        return {}
    first_s, last_s = live["user_speech_start"] - _NEAR_S, live["user_speech_end"] + _NEAR_S
    said = [each for each in caller if each.start_s <= last_s and each.end_s >= first_s]
    if not said:
        return {}
    end_s = said[-1].end_s
    found = {"user_speech_end": end_s}
    interrupted = live.get("reply_heard", math.inf) < live["user_speech_end"]
    since_s = said[0].start_s if interrupted else end_s - _EARLY_S
    reply = [each for each in heard if since_s <= each.start_s < next_s]
    if reply:
        found |= {"reply_heard": reply[0].start_s, "reply_end": reply[-1].end_s}
    return found


def _probe(live: dict[str, float], caller: list[Segment], heard: list[Segment]) -> dict[str, float]:
    """The marks of a probe, or of a greeting, as far as they are found."""
    found: dict[str, float] = {}
    own_s = [live[mark] for mark in _CALLERS if mark in live]
    if own_s:
        first_s, last_s = min(own_s) - _NEAR_S, max(own_s) + _NEAR_S
        said = [each for each in caller if each.start_s <= last_s and each.end_s >= first_s]
        if said:
            found = {
                mark: said[0].start_s if mark.endswith("_start") else said[-1].end_s
                for mark in _CALLERS
            }
    for mark, (side, edge) in _EDGES.items():
        if mark not in live:
            continue
        edges_s = [getattr(each, edge) for each in (caller if side == "caller" else heard)]
        nearest_s = min(edges_s, key=lambda at_s: abs(at_s - live[mark]), default=math.inf)
        if abs(nearest_s - live[mark]) <= _NEAR_S:
            found[mark] = nearest_s
    return found
