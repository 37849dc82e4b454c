"""From the lines of a run to its tidy frames: marks become stages, failures stay rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CONNECTION_STAGES,
    FAILOVER_STAGES,
    TRANSPORT,
    TURN_STAGES,
    Stage,
)
from labvoice.runs.lines import (
    FRAME_COLUMNS,
    Line,
    MarkLine,
    NoteLine,
    OutcomeLine,
    RunLine,
    StageLine,
    TrialLine,
)

UNFINISHED = "the run ended before an outcome was recorded"

_Unit = tuple[int, int | None]
"""A trial's connection (its turn is None) or one of its turns."""


class _Span(NamedTuple):
    start_s: float
    duration_s: float
    plausible: bool = True


_UNMEASURED = _Span(math.nan, math.nan)


class Frames(NamedTuple):
    """All tables of a run; see the properties of :class:`labvoice.runs.run.Run`."""

    stages: pd.DataFrame
    marks: pd.DataFrame
    notes: pd.DataFrame
    outcomes: pd.DataFrame


def build(header: RunLine, lines: Iterable[Line]) -> Frames:
    """Computes the frames of a run.

    Args:
        header: The run's first line.
        lines: The other lines, in the order in which they were written.
    """
    lines = list(lines)
    trials = {line.trial: line for line in lines if isinstance(line, TrialLine)}
    marks = [line for line in lines if isinstance(line, MarkLine)]
    origins = _origins(trials, marks)
    outcomes = _outcomes(trials, lines)
    return Frames(
        stages=_stage_frame(header, trials, lines, origins, outcomes),
        marks=_table(
            ["run_id", "trial", "room", "turn", "mark", "t_s", "clock", "uncertainty_s"],
            [
                {
                    "run_id": header.run_id,
                    "trial": line.trial,
                    "room": trials[line.trial].room,
                    "turn": line.turn,
                    "mark": line.mark,
                    "t_s": line.t_s - origins[line.trial],
                    "clock": line.clock,
                    "uncertainty_s": line.uncertainty_s,
                }
                for line in marks
            ],
        ),
        notes=_note_frame(header, trials, lines),
        outcomes=_table(
            ["run_id", "trial", "room", "turn", "arm", "warmup", "outcome", "detail"],
            [
                {
                    "run_id": header.run_id,
                    "trial": trial,
                    "room": trials[trial].room,
                    "turn": turn,
                    "arm": trials[trial].arm,
                    "warmup": trials[trial].warmup,
                    "outcome": line.outcome,
                    "detail": line.detail,
                }
                for (trial, turn), line in outcomes.items()
            ],
        ),
    )


def _table(columns: Sequence[str], rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype({"turn": "Int64"})


def _origins(trials: Mapping[int, TrialLine], marks: Iterable[MarkLine]) -> dict[int, float]:
    """Finds each trial's zero: its click, or its first mark where there is no click."""
    clicks: dict[int, float] = {}
    firsts: dict[int, float] = {}
    for line in marks:
        if line.mark == "click":
            clicks.setdefault(line.trial, line.t_s)
        firsts[line.trial] = min(line.t_s, firsts.get(line.trial, math.inf))
    return {trial: clicks.get(trial, firsts.get(trial, 0.0)) for trial in trials}


def _outcomes(trials: Mapping[int, TrialLine], lines: Iterable[Line]) -> dict[_Unit, OutcomeLine]:
    """Gives every trial and every turn its outcome; one that has none was cut off."""
    units: dict[_Unit, None] = {}
    written: dict[_Unit, OutcomeLine] = {}
    for line in lines:
        if isinstance(line, TrialLine):
            units[line.trial, None] = None
        elif isinstance(line, MarkLine | StageLine | NoteLine | OutcomeLine):
            units[line.trial, line.turn] = None
        if isinstance(line, OutcomeLine):
            written[line.trial, line.turn] = line
    return {
        (trial, turn): written.get(
            (trial, turn), OutcomeLine(trial=trial, turn=turn, outcome="error", detail=UNFINISHED)
        )
        for trial, turn in sorted(
            units, key=lambda unit: (unit[0], -1 if unit[1] is None else unit[1])
        )
    }


def _spans(lines: Iterable[Line]) -> dict[_Unit, dict[str, _Span]]:
    """Computes what was measured, on the caller's clock: stages from marks, then the reported."""
    instants: dict[_Unit, dict[str, float]] = defaultdict(dict)
    spans: dict[_Unit, dict[str, _Span]] = defaultdict(dict)
    for line in lines:
        if isinstance(line, MarkLine):
            instants[line.trial, line.turn].setdefault(line.mark, line.t_s)
    for unit, at in instants.items():
        for stage in (*_derived(unit), *FAILOVER_STAGES):
            # A reply into the caller's turn has no latency: its outcome is `interrupted`.
            before = stage in TURN_STAGES and at.get(stage.end, 0.0) < at.get(stage.start, 0.0)
            if stage.start in at and stage.end in at and not before:
                spans[unit][stage.name] = _Span(at[stage.start], at[stage.end] - at[stage.start])
    for line in lines:
        if isinstance(line, StageLine):
            start_s = math.nan if line.start_s is None else line.start_s
            unit = line.trial, line.turn
            plausible = line.stage not in AGENT_TURN_STAGES or (
                0 <= line.duration_s <= _turn_length_s(instants[unit])
            )
            spans[unit][line.stage] = _Span(start_s, line.duration_s, plausible)
    for span in spans.values():
        if "voice_to_voice" in span and "e2e_latency" in span and span["e2e_latency"].plausible:
            rest_s = span["voice_to_voice"].duration_s - span["e2e_latency"].duration_s
            # It lies before and after the agent's part, so it has no one start.
            span[TRANSPORT] = _Span(math.nan, rest_s)
    return spans


def _rounds(header: RunLine, trials: Mapping[int, TrialLine]) -> dict[int, int]:
    """Each trial's round; where a closed loop does not say, the k-th trials of the arms are one."""
    counts: dict[tuple[str, bool], int] = defaultdict(int)
    rounds = {}
    for number, line in trials.items():
        # Warm-ups come first, so those before and those that count are numbered apart.
        told = 0 if header.loop == "open" else counts[line.arm, line.warmup]
        rounds[number] = told if line.round is None else line.round
        counts[line.arm, line.warmup] += 1
    return rounds


def _turn_length_s(at: Mapping[str, float]) -> float:
    """Returns what no figure of a turn can exceed: from the first sample said to the reply heard.

    A turn of which either was not seen bounds nothing but its sign.
    """
    return at.get("reply_heard", math.inf) - at.get("user_speech_start", 0.0)


def _derived(unit: _Unit) -> tuple[Stage, ...]:
    return CONNECTION_STAGES if unit[1] is None else TURN_STAGES


def _stage_frame(
    header: RunLine,
    trials: Mapping[int, TrialLine],
    lines: list[Line],
    origins: Mapping[int, float],
    outcomes: Mapping[_Unit, OutcomeLine],
) -> pd.DataFrame:
    """Makes one row for each unit and each stage that its like has in this run.

    A unit that lacks a stage (it failed first) has a row without a duration. Where no unit
    of a sort succeeded, the headline stages stand for what should have been measured.
    """
    spans = _spans(lines)
    rounds = _rounds(header, trials)
    said: dict[_Unit, Any] = {
        (line.trial, line.turn): line.facts["said"]
        for line in lines
        if isinstance(line, NoteLine) and line.turn is not None and line.facts.get("said")
    }
    expected: dict[bool, list[str]] = {}
    for is_turn in (False, True):
        units = [unit for unit in outcomes if (unit[1] is not None) == is_turn]
        names = dict.fromkeys(name for unit in units for name in spans.get(unit, {}))
        if units and all(outcomes[unit].outcome != "ok" for unit in units):
            due = FAILOVER_STAGES if header.kind == "failover" else _derived(units[0])
            names |= dict.fromkeys(stage.name for stage in due)
        expected[is_turn] = list(names)
    rows = []
    for (trial, turn), line in outcomes.items():
        for name in expected[turn is not None]:
            span = spans.get((trial, turn), {}).get(name, _UNMEASURED)
            rows.append(
                {
                    "run_id": header.run_id,
                    "trial": trial,
                    "room": trials[trial].room,
                    "turn": turn,
                    "stage": name,
                    "start_s": span.start_s - origins[trial],
                    "duration_s": span.duration_s,
                    "outcome": line.outcome,
                    "arm": trials[trial].arm,
                    "warmup": trials[trial].warmup,
                    "plausible": span.plausible,
                    "unit": trials[trial].unit,
                    "round": rounds[trial],
                    "said": said.get((trial, turn)),
                }
            )
    frame = _table(FRAME_COLUMNS, rows).astype({"round": "int64", "said": object})
    frame = frame.astype({"start_s": float, "duration_s": float, "warmup": bool, "plausible": bool})
    for column in dict.fromkeys(name for arm in header.arms.values() for name in arm):
        values = {arm: columns.get(column) for arm, columns in header.arms.items()}
        types = {type(value) for value in values.values()} - {type(None)}
        if len(types) > 1 and not types <= {int, float}:
            # One column has one type, or Parquet refuses it.
            values = {arm: None if v is None else str(v) for arm, v in values.items()}
        frame[column] = [values[arm] for arm in frame["arm"]]
    return frame


def _note_frame(
    header: RunLine, trials: Mapping[int, TrialLine], lines: Iterable[Line]
) -> pd.DataFrame:
    """Merges the notes of each unit into one row; a later fact replaces an earlier."""
    merged: dict[_Unit, dict[str, Any]] = defaultdict(dict)
    for line in lines:
        if isinstance(line, NoteLine):
            merged[line.trial, line.turn].update(line.facts)
    columns = dict.fromkeys(name for facts in merged.values() for name in facts)
    return _table(
        ["run_id", "trial", "room", "turn", *columns],
        [
            {
                **facts,
                "run_id": header.run_id,
                "trial": trial,
                "room": trials[trial].room,
                "turn": turn,
            }
            for (trial, turn), facts in merged.items()
        ],
    )
