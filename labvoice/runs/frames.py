"""Builds tidy frames from a run file's columns: marks become stages, failures stay as rows."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CONNECTION_STAGES,
    FAILOVER_STAGES,
    INTERRUPTION_STAGES,
    JITTER_BUFFER,
    MEMORY_STAGES,
    READY_MARKS,
    TRANSPORT,
    TRANSPORT_PARTS,
    TURN_STAGES,
    WIRE_STAGES,
    Stage,
)
from labvoice.runs.lines import FRAME_COLUMNS, RunLine
from labvoice.runs.reader import NO_TURN, Columns

UNFINISHED = "the run ended before an outcome was recorded"

_Floats = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]


class _Spans(NamedTuple):
    """One stage: a value for each unit.

    Attributes:
        start_s: Shape (units,); NaN where there is no one start.
        duration_s: Shape (units,).
        measured: Shape (units,): which units have it.
        plausible: Shape (units,).
        order: Shape (2,): where it comes among the stages of a unit that has it.
    """

    start_s: _Floats
    duration_s: _Floats
    measured: npt.NDArray[np.bool_]
    plausible: npt.NDArray[np.bool_]
    order: tuple[int, int]


class Frames:
    """All tables of a run, each computed at first use.

    See the properties of :class:`labvoice.runs.run.Run`. A unit is a trial's connection or one
    of its turns.
    """

    def __init__(self, header: RunLine, columns: Columns) -> None:
        self._header = header
        self._columns = columns
        trials = columns.trials.drop_duplicates("trial", keep="last")
        counts = trials.groupby(["arm", "warmup"], observed=True).cumcount()
        # A closed loop that does not say: the k-th trials of the arms are one round. Warm-ups
        # come first, so those before and those that count are numbered apart.
        told = 0 * counts if header.loop == "open" else counts
        rounds = trials["round"].fillna(told).astype("int64")
        self._trials = trials.assign(round=rounds).sort_values("trial", ignore_index=True)
        self._number = self._trials["trial"].to_numpy(np.int64)
        tables = (columns.marks, columns.stages, columns.notes, columns.outcomes)
        turns = np.unique(np.concatenate([[NO_TURN], *(pd.unique(t["turn"]) for t in tables)]))
        self._turns = turns.astype(np.int64)
        places = [self._places(table) for table in tables]
        widths = np.ones(len(self._number), np.int64)  # places of a trial: its connection is one
        for trial, turn in places:
            np.maximum.at(widths, trial, turn + 1)
        first = np.cumsum(widths) - widths
        is_unit = np.zeros(widths.sum(), bool)
        is_unit[first] = True
        for trial, turn in places:
            is_unit[first[trial] + turn] = True
        number = np.cumsum(is_unit) - 1
        self._unit_of_marks, self._unit_of_stages, self._unit_of_notes, self._unit_of_outcomes = (
            number[first[trial] + turn] for trial, turn in places
        )
        self._trial = np.repeat(np.arange(len(widths)), widths)[is_unit]
        self._turn = self._turns[(np.arange(len(is_unit)) - np.repeat(first, widths))[is_unit]]

    def _trial_of(self, table: pd.DataFrame) -> _Integers:
        """The place of each row's trial."""
        trials, numbers = table["trial"].to_numpy(np.int64), self._number
        if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:
            places: _Integers = trials - numbers[0]  # none is left out: nothing to search
            return places
        return np.searchsorted(numbers, trials).astype(np.int64)

    def _places(self, table: pd.DataFrame) -> tuple[_Integers, _Integers]:
        """The places of each row's trial and turn."""
        turns = np.searchsorted(self._turns, table["turn"].to_numpy(np.int64))
        return self._trial_of(table), turns.astype(np.int64)

    def _of_trial(self, name: str, places: _Integers) -> Any:
        """A column of the trials, for the trials at these places."""
        return self._labels[name].take(places)

    @cached_property
    def _labels(self) -> dict[str, Any]:
        """Words of the trials, each stored once."""
        return {
            name: self._trials[name].astype("category").array for name in ("room", "arm", "unit")
        }

    def _run_id(self, rows: int) -> Any:
        return _categorical(np.zeros(rows, np.int8), [self._header.run_id])

    @cached_property
    def _origins(self) -> _Floats:
        """Each trial's zero: its click, or its first mark where there is no click."""
        marks = self._columns.marks
        trial, at_s = self._trial_of(marks), marks["t_s"].to_numpy()
        zero_s = np.full(len(self._number), np.inf)
        np.minimum.at(zero_s, trial, at_s)
        zero_s[np.isinf(zero_s)] = 0.0
        clicks = np.flatnonzero((marks["mark"] == "click").to_numpy())[::-1]  # the first one stays
        zero_s[trial[clicks]] = at_s[clicks]
        return zero_s

    @property
    def clicks(self) -> pd.Series:
        """The wall clock's time of each trial's zero, in seconds since 1970; index: trial.

        Of a run that does not say, its first mark is at its start.
        """
        started = datetime.fromisoformat(self._header.started_at)
        started = started if started.tzinfo else started.replace(tzinfo=UTC)
        zero_s = self._header.started_s
        if zero_s is None:
            zero_s = float(self._columns.marks["t_s"].min())
        has_marks = np.isin(self._number, self._columns.marks["trial"].to_numpy())
        at_s = started.timestamp() + self._origins - zero_s
        return pd.Series(at_s[has_marks], self._number[has_marks])

    @cached_property
    def marks(self) -> pd.DataFrame:
        """One row for each mark."""
        marks = self._columns.marks
        trial = self._trial_of(marks)
        return pd.DataFrame(
            {
                "run_id": self._run_id(len(marks)),
                "trial": marks["trial"],
                "room": self._of_trial("room", trial),
                "turn": _turns(marks["turn"].to_numpy()),
                "mark": marks["mark"],
                "t_s": marks["t_s"].to_numpy() - self._origins[trial],
                "clock": marks["clock"],
                "uncertainty_s": marks["uncertainty_s"],
            }
        )

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """Every trial's and every turn's outcome; one that has none was cut off."""
        return pd.DataFrame(
            {
                "run_id": self._run_id(len(self._trial)),
                "trial": self._number[self._trial],
                "room": self._of_trial("room", self._trial),
                "turn": _turns(self._turn),
                "arm": self._of_trial("arm", self._trial),
                "warmup": self._trials["warmup"].to_numpy(bool)[self._trial],
                "outcome": self._last("outcome", "error").astype("str"),
                "detail": self._last("detail", UNFINISHED).astype("str"),
            }
        )

    def _last(self, name: str, otherwise: str) -> Any:
        """What the last outcome of each unit says; `otherwise` where it has none."""
        written = self._columns.outcomes
        last = np.full(len(self._trial), -1)
        last[self._unit_of_outcomes] = np.arange(len(written))
        words = sorted({otherwise, *written[name].cat.categories})
        codes = written[name].cat.set_categories(words).cat.codes.to_numpy()
        return _categorical(np.append(codes, words.index(otherwise))[last], words)

    def _spans(self) -> dict[str, _Spans]:
        """Computes what was measured, on the caller's clock: from marks, then the reported."""
        count = len(self._trial)
        is_turn = self._turn != NO_TURN
        spans: dict[str, _Spans] = {}
        at = self._instants()
        missing, nowhere = np.full(count, np.nan), np.zeros(count, bool)
        derived = (
            *CONNECTION_STAGES,
            *TURN_STAGES,
            *FAILOVER_STAGES,
            *INTERRUPTION_STAGES,
            *WIRE_STAGES,
        )
        told, untold = (at.get(mark, missing) for mark in READY_MARKS)
        by_audio = (self._ready_by == 1)[self._trial]
        ends = at | {READY_MARKS[0]: np.where(by_audio, untold, told)}
        for place, stage in enumerate(derived):
            if stage.start not in at or stage.end not in ends:
                spans[stage.name] = _Spans(missing, missing, nowhere, ~nowhere, (0, place))
                continue
            start, end = at[stage.start], ends[stage.end]
            lasts = end - start
            measured = ~np.isnan(lasts)
            if stage in TURN_STAGES + INTERRUPTION_STAGES:
                # A reply into the caller's turn has no latency: its outcome is `interrupted`.
                measured &= is_turn & (lasts >= 0)
            elif stage in CONNECTION_STAGES:
                measured &= ~is_turn
            # One that ends on the worker's clock may end before it begins, as no call does.
            spans[stage.name] = _Spans(start, lasts, measured, ~(lasts < 0), (0, place))
        # No figure of a turn exceeds the time from the first sample said to the reply heard, to
        # the answer where a filler came before it. A turn of which either was not seen bounds
        # nothing but its sign.
        heard = np.fmax(at.get("reply_heard", missing), at.get("answer_heard", missing))
        heard = np.nan_to_num(heard, nan=np.inf)
        length = heard - np.nan_to_num(at.get("user_speech_start", missing), nan=0.0)
        stages = self._columns.stages
        units = self._unit_of_stages
        for code, name in enumerate(stages["stage"].cat.categories):
            rows = np.flatnonzero(stages["stage"].cat.codes.to_numpy() == code)
            start, lasts, measured = missing.copy(), missing.copy(), np.zeros(count, bool)
            start[units[rows]] = stages["start_s"].to_numpy()[rows]
            lasts[units[rows]] = stages["duration_s"].to_numpy()[rows]
            measured[units[rows]] = True
            plausible = np.ones(count, bool)
            if name in AGENT_TURN_STAGES + MEMORY_STAGES:
                longest = length if name in AGENT_TURN_STAGES else np.inf
                plausible = ~measured | ((lasts >= 0) & (lasts <= longest))
            here = rows[units[rows] == units[rows].min()]
            spans[name] = _Spans(start, lasts, measured, plausible, (1, int(here[0])))
        voice, agent = spans["voice_to_voice"], spans.get("e2e_latency")
        if agent is not None:
            # It is before and after the agent's part, so it has no single start.
            measured = voice.measured & agent.measured & agent.plausible
            # Longer than until a filler was heard: it is the figure of the answer.
            answer = spans["answer"].measured & (agent.duration_s > voice.duration_s)
            heard_s = np.where(answer, spans["answer"].duration_s, voice.duration_s)
            rest = heard_s - agent.duration_s
            spans[TRANSPORT] = _Spans(missing, rest, measured, np.ones(count, bool), (2, 0))
        for place, (name, part) in enumerate(self._transport(at, spans, missing).items()):
            known = ~np.isnan(part)
            spans[name] = _Spans(missing, part, known, np.ones(count, bool), (3, place))
        return spans

    def _transport(
        self, at: dict[str, _Floats], spans: dict[str, _Spans], missing: _Floats
    ) -> dict[str, _Floats]:
        """What transport consists of, of turns whose packets were dated."""

        def lasts(start: str, end: str) -> _Floats:
            return at.get(end, missing) - at.get(start, missing)

        def told(name: str) -> _Floats:
            span = spans.get(name)
            if span is None:
                return missing
            return np.where(span.measured & span.plausible, span.duration_s, np.nan)

        caller = lasts("user_speech_end", "speech_packet_sent")
        wire = lasts("speech_packet_sent", "speech_packet_at_agent") + lasts(
            "reply_packet_sent", "reply_packet_received"
        )
        agent = lasts("speech_packet_at_agent", "reply_packet_sent") - told("e2e_latency")
        rest = lasts("reply_packet_received", "reply_heard") - told(JITTER_BUFFER)
        own = [name for name in TRANSPORT_PARTS if name != JITTER_BUFFER]
        return dict(zip(own, (caller, wire, agent, rest), strict=True))

    def _instants(self) -> dict[str, _Floats]:
        """The time of each mark in each unit, NaN where it has none; the first counts."""
        marks = self._columns.marks
        units, at_s = self._unit_of_marks, marks["t_s"].to_numpy()
        codes = marks["mark"].cat.codes.to_numpy()
        instants = {}
        for code, name in enumerate(marks["mark"].cat.categories):
            rows = np.flatnonzero(codes == code)[::-1]
            instants[str(name)] = np.full(len(self._trial), np.nan)
            instants[str(name)][units[rows]] = at_s[rows]
        return instants

    @cached_property
    def stages(self) -> pd.DataFrame:
        """One row for each unit and each stage that units of its kind have in this run.

        A unit that lacks a stage (it failed first) has a row without a duration. Where no unit
        of a sort succeeded, the headline stages stand for what should have been measured.
        """
        header, outcome = self._header, self._last("outcome", "error")
        spans = self._spans()
        is_turn = self._turn != NO_TURN
        failed = np.asarray(outcome != "ok")
        expected = []
        for like in (~is_turn, is_turn):
            firsts = {
                name: (int(np.argmax(span.measured & like)), *span.order)
                for name, span in spans.items()
                if (span.measured & like).any()
            }
            names = dict.fromkeys(sorted(firsts, key=lambda name: firsts[name]))
            if like.any() and failed[like].all():
                # Not every reply begins with a filler.
                due: tuple[Stage, ...] = TURN_STAGES[:1] if like is is_turn else CONNECTION_STAGES
                due = FAILOVER_STAGES if header.kind == "failover" else due
                due = (
                    INTERRUPTION_STAGES[:2]
                    if header.kind == "interrupt" and like is is_turn
                    else due
                )
                names |= dict.fromkeys(stage.name for stage in due)
            expected.append(list(names))
        widths = np.where(is_turn, len(expected[1]), len(expected[0]))
        begins = np.cumsum(widths) - widths
        unit = np.repeat(np.arange(len(widths)), widths)
        stages = list(dict.fromkeys(name for names in expected for name in names))
        stage = np.zeros(len(unit), np.int16)
        start_s, duration_s = np.full((2, len(unit)), np.nan)
        plausible = np.ones(len(unit), bool)
        for like, of_like in zip((~is_turn, is_turn), expected, strict=True):
            for place, name in enumerate(of_like):
                stage[begins[like] + place] = stages.index(name)
                if name in spans:
                    has = like & spans[name].measured
                    rows = begins[has] + place
                    start_s[rows] = spans[name].start_s[has] - self._origins[self._trial[has]]
                    duration_s[rows] = spans[name].duration_s[has]
                    plausible[rows] = spans[name].plausible[has]
        trial = self._trial[unit]
        columns: dict[str, Any] = {
            "run_id": self._run_id(len(unit)),
            "trial": self._number[trial],
            "room": self._of_trial("room", trial),
            "turn": _turns(self._turn[unit]),
            "stage": _categorical(stage, stages),
            "start_s": start_s,
            "duration_s": duration_s,
            "outcome": outcome.remove_unused_categories().take(unit),
            "arm": self._of_trial("arm", trial),
            "warmup": self._trials["warmup"].to_numpy(bool)[trial],
            "plausible": plausible,
            "upset": self._fact("upset").astype(bool)[unit],
            "unit": self._of_trial("unit", trial),
            "round": self._trials["round"].to_numpy(np.int64)[trial],
            "said": pd.Series(self._fact("said")[unit], dtype=object),
            "ready_by": _categorical(self._ready_by[trial], list(READY_MARKS)),
        }
        frame = pd.DataFrame(columns, columns=list(FRAME_COLUMNS))
        for column in dict.fromkeys(name for arm in header.arms.values() for name in arm):
            values = {arm: columns.get(column) for arm, columns in header.arms.items()}
            types = {type(value) for value in values.values()} - {type(None)}
            if len(types) > 1 and not types <= {int, float}:
                # One column has one type, or Parquet refuses it.
                values = {arm: None if v is None else str(v) for arm, v in values.items()}
            of_arm = pd.Series([values[arm] for arm in frame["arm"].cat.categories])
            frame[column] = of_arm.take(frame["arm"].cat.codes.to_numpy()).array
        return frame

    def _fact(self, name: str) -> npt.NDArray[np.object_]:
        """A fact of each turn; None where it is not known, or empty."""
        notes = self._columns.notes
        found = np.full(len(self._trial), None, object)
        for unit, turn, facts in zip(
            self._unit_of_notes, notes["turn"], notes["facts"], strict=True
        ):
            if turn != NO_TURN and facts.get(name):
                found[unit] = facts[name]
        return found

    @cached_property
    def _ready_by(self) -> npt.NDArray[np.int8]:
        """Which of :data:`READY_MARKS` shows each trial's agent to be ready; -1 for none."""
        found = np.full(len(self._number), -1, np.int8)
        marks, notes = self._columns.marks, self._columns.notes
        found[self._trial_of(marks)[(marks["mark"] == READY_MARKS[0]).to_numpy()]] = 0
        by_audio = [facts.get("ready_by") == READY_MARKS[1] for facts in notes["facts"]]
        found[self._trial_of(notes)[np.array(by_audio, bool)]] = 1
        return found

    @cached_property
    def notes(self) -> pd.DataFrame:
        """Merges the notes of each unit into one row; a later fact replaces an earlier."""
        notes = self._columns.notes
        places, units = pd.factorize(self._unit_of_notes)
        merged: dict[str, list[Any]] = {}
        for place, facts in zip(places, notes["facts"], strict=True):
            for name, value in facts.items():
                if name not in merged:
                    merged[name] = [np.nan] * len(units)
                merged[name][place] = value
        trial = self._trial[units]
        keys = {
            "run_id": self._run_id(len(units)),
            "trial": self._number[trial],
            "room": self._of_trial("room", trial),
            "turn": _turns(self._turn[units]),
        }
        return pd.DataFrame(keys | {name: v for name, v in merged.items() if name not in keys})


def _categorical(codes: npt.NDArray[np.integer[Any]], words: list[str]) -> Any:
    return pd.Categorical.from_codes(codes, pd.Index(words, dtype="str"))


def _turns(turns: _Integers) -> Any:
    missing = turns == NO_TURN
    return pd.arrays.IntegerArray(np.where(missing, 1, turns), missing)
