"""A recorded run: frames, statistics, summary table and JSON of a run file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from labvoice.protocol.vocabulary import OUTCOMES
from labvoice.runs import copies, frames, load, reader, statistics, turn_taking
from labvoice.runs.lines import FORMAT, RunLine
from labvoice.runs.load import Level
from labvoice.runs.players import Player, listen
from labvoice.runs.tables import table_cells, table_text, template
from labvoice.runs.turn_ends import Point, curves, recommendation
from labvoice.runs.writer import RunWriter

__all__ = ["Run", "RunWriter"]

_SUMMARY_COLUMNS = ["n", "failed", "mean", "p50", "p95", "p99", "ci95_lo", "ci95_hi"]
_COMPARED = ("voice_to_voice", "recovery", "yield_latency", "connection", "join")
"""Stages by which arms are compared; the first one in a run is used."""
_ANSWERED = ("ok", "interrupted")


class Run:
    """A recorded run; created by :meth:`load`.

    Attributes:
        header: The first line: run_id, kind, started_at, loop, config, arms, host.
        complete: Whether the run ended in order.
        path: The run file.
    """

    def __init__(self, header: RunLine, columns: reader.Columns, path: Path) -> None:
        self.header = header
        self.path = path
        self.complete = columns.ended
        self._file_warnings = columns.warnings
        self._frames = frames.Frames(header, columns)

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Reads a run file; one that a crash truncated is read up to that point.

        A file of 16 MB or more that labvoice wrote here has a copy beside it, from which it loads
        faster (`.NAME.columns`; it may be deleted).

        Raises:
            RunFileError: There is no such file, or it is not a run of this format.
        """
        return cls(*copies.read(Path(path)), Path(path))

    @property
    def instrument_error_s(self) -> float | None:
        """The instrument's error on this machine when the run was made, in seconds.

        It is the 95th percentile of what a calibration has found; None where none was made.
        """
        error_s = self.header.host.get("instrument_error_s")
        return float(error_s) if isinstance(error_s, int | float) else None

    @property
    def arms(self) -> list[str]:
        """Names of the configurations, in the order given."""
        return list(self.header.arms)

    @property
    def frame(self) -> pd.DataFrame:
        """The tidy frame: one row for each stage of each connection and turn.

        Columns: run_id, trial, room, turn (missing for a connection), stage, start_s (since
        the trial's click), duration_s (NaN where it was not reached), outcome, arm, warmup,
        plausible (False for a figure of the agent's that cannot be: negative or longer than the
        turn), upset (whether a stall of this machine has upset the turn: it is left out of the
        summary), unit (of resampling: the call, or the event that it is part of), round (in which
        every arm does the same), said (the turn's words, where known), ready_by (the mark that
        ends the trial's `ready` and `connection`: `agent_listening`, or `agent_audio_subscribed`
        where the agent tells no state; missing where it was not ready), then the configuration's
        columns.
        """
        return self._frames.stages.copy()

    @property
    def marks(self) -> pd.DataFrame:
        """Raw marks: run_id, trial, room, turn, mark, t_s (since click), clock, uncertainty_s."""
        return self._frames.marks.copy()

    @property
    def clicks(self) -> pd.Series:
        """The wall clock's time of each trial's click, in seconds since 1970; index: trial.

        Trials without a mark are left out. Of a run that does not say, its first mark is at its
        start.
        """
        return self._frames.clicks

    @property
    def notes(self) -> pd.DataFrame:
        """Facts other than times, one row for each connection or turn that has any."""
        return self._frames.notes.copy()

    @property
    def recordings(self) -> pd.DataFrame:
        """The existing recordings: trial, path, start_s (first sample, since the click)."""
        notes = self._frames.notes.reindex(
            columns=["trial", "recording", "recording_start_s"]
        ).dropna(subset="recording")
        paths = [self.path.parent / place for place in notes["recording"].astype(str)]
        there = [path.is_file() for path in paths]
        recordings = pd.DataFrame(
            {"trial": notes["trial"], "path": paths, "start_s": notes["recording_start_s"]}
        )
        return recordings.loc[there].reset_index(drop=True)  # by [] it would lose its columns

    def listen(self, call: int = 0) -> Player:
        """Returns the player of a recorded call; a notebook shows it as the last line of a cell.

        Args:
            call: The trial's number, as in :attr:`recordings`.

        Raises:
            RunFileError: There is no recording of that call, or it cannot be read.
        """
        return listen(self, call)

    @property
    def outcomes(self) -> pd.DataFrame:
        """Every connection and turn: run_id, trial, room, turn, arm, warmup, outcome, detail."""
        return self._frames.outcomes.copy()

    @property
    def attempts(self) -> pd.DataFrame:
        """The outcomes that n and failed count, warm-ups left out.

        A turn is an attempt, tried or not; a connection is one where it has no turns, or where it
        failed and none of its turns says so.
        """
        every = self._frames.outcomes
        counted, is_turn = ~every["warmup"], every["turn"].notna()
        failed = every["outcome"] != "ok"
        with_turns = every.loc[counted & is_turn, "trial"].unique()
        failed_turns = every.loc[counted & is_turn & failed, "trial"].unique()
        is_attempt = (
            is_turn
            | (failed & ~every["trial"].isin(failed_turns))
            | ~every["trial"].isin(with_turns)
        )
        return every[counted & is_attempt].reset_index(drop=True)

    @cached_property
    def stage_summaries(self) -> dict[tuple[str, str], statistics.StageSummary]:
        """Figures of each (stage, arm), in the order in which they are shown."""
        frame = self._frames.stages[list(statistics.SUMMARISED)]
        names = sorted(frame["stage"].unique(), key=statistics.stage_order)
        return {
            (stage, arm): statistics.summarise(rows)
            for stage, arm in itertools.product(names, self.arms)
            if not (rows := frame[(frame["stage"] == stage) & (frame["arm"] == arm)]).empty
        }

    def word_error_rate(self, arm: str | None = None) -> float | None:
        """Of all turns that were answered, warm-ups aside, each weighted by its words.

        None where unknown. What nobody answered says nothing of the recogniser.

        Args:
            arm: Of this configuration alone; of all when not given.
        """
        rows = self._turn_notes(arm, "said", "wer", outcomes=_ANSWERED)
        weights = [len(str(said).split()) for said in rows["said"]] if len(rows) else []
        if not sum(weights):
            return None
        errors = (float(wer) * words for wer, words in zip(rows["wer"], weights, strict=True))
        return sum(errors) / sum(weights)

    def split_turns(self, arm: str | None = None) -> int | None:
        """How many utterances, warm-ups aside, were taken for several turns; None where unknown.

        Args:
            arm: Of this configuration alone; of all when not given.
        """
        rows = self._turn_notes(arm, "user_messages")
        return int((rows["user_messages"] > 1).sum()) if len(rows) else None

    @cached_property
    def probes(self) -> pd.DataFrame:
        """What each probe of turn-taking came to, warm-ups aside; empty for other runs.

        Columns: trial, turn, arm, outcome, and the notes of the turns: probe, kind, sound, source,
        said, over_agent, yielded_after_s, resumed_after_s, replied_after_s, answers, cut, hang,
        caller_spoke and agent_spoke (pairs of seconds since the probe's onset), agent_goes_on
        (whether it still spoke when the call was ended).
        """
        notes = self.notes
        if "kind" not in notes:
            return pd.DataFrame()
        every = self.outcomes
        counted = every.loc[~every["warmup"] & every["turn"].notna()]
        counted = counted[["trial", "turn", "arm", "outcome"]]
        of_turns = notes.dropna(subset=["kind", "turn"]).drop(columns=["run_id", "room"])
        return counted.merge(of_turns.dropna(axis="columns", how="all"), on=["trial", "turn"])

    def shares(self, arm: str | None = None) -> dict[str, turn_taking.Share]:
        """Shares of turn-taking (barge-in, backchannel, pause); see `turn_taking.FIGURES`.

        Args:
            arm: Of this configuration alone; of all when not given.
        """
        return turn_taking.shares(self.probes, arm)

    @property
    def turn_taking(self) -> list[str]:
        """A line for each share of each configuration; none for a run without probes."""
        lines = []
        of_arms = {arm: self.shares(arm) for arm in self.arms}
        for figure in turn_taking.FIGURES:
            for arm, found in of_arms.items():
                if figure.name in found:
                    of_arm = f"{arm}: " if len(self.arms) > 1 else ""
                    lines.append(f"{figure.name} {of_arm}{found[figure.name]} {figure.phrase}")
        return lines

    @cached_property
    def turn_ends(self) -> dict[str, list[Point]]:
        """The curve of each detector, or a point for each setting that was called.

        Empty for other runs than those of `labvoice bench endpointing`.
        """
        return curves(self)

    @cached_property
    def levels(self) -> list[Level]:
        """What each number of callers came to, fewest first; empty for other runs than `load`."""
        return load.levels_of(self)

    @property
    def sizing(self) -> str:
        """How many calls the machine takes, as a sentence; empty for other runs than `load`."""
        config = self.header.config
        return load.sizing(
            self.levels,
            load.number(config.get("limit_s"), load.LIMIT_S),
            workers=int(load.number(config.get("workers"), 1)),
            cores=int(load.number(self.header.host.get("cores"), 1)),
        )

    def _turn_notes(
        self, arm: str | None, *columns: str, outcomes: Sequence[str] = OUTCOMES
    ) -> pd.DataFrame:
        notes = self.notes
        if not {"turn", "trial", *columns} <= set(notes):
            return pd.DataFrame(columns=list(columns))
        every = self.outcomes
        counted = every[~every["warmup"] & every["outcome"].isin(outcomes)]
        if arm is not None:
            counted = counted[counted["arm"] == arm]
        units = counted.loc[counted["turn"].notna(), ["trial", "turn"]]
        return notes.merge(units, on=["trial", "turn"]).dropna(subset=list(columns))

    @property
    def recognition(self) -> list[str]:
        """A line for each configuration on what was understood; none for a run without turns."""
        lines = []
        for arm in self.arms:
            rate, split = self.word_error_rate(arm), self.split_turns(arm)
            words = [] if rate is None else [f"word error rate {rate:.1%}"]
            if split is not None:
                words.append(f"{split} turns split in two")
            if words:
                lines.append((f"{arm}: " if len(self.arms) > 1 else "") + ", ".join(words))
        return lines

    @property
    def comparisons(self) -> list[str]:
        """A line for each further configuration: its main stage against that of the base."""
        lines = []
        for pair, stages in self.ratios().items():
            stage = next((name for name in _COMPARED if name in stages), None)
            if stage is not None and not math.isnan(stages[stage].ratio):
                lines.append(f"{pair}: {stage} × {stages[stage]}")
        return lines

    @cached_property
    def overload(self) -> str:
        """What shows that the machine, not the agent, is the limit; empty where nothing does."""
        return statistics.overload(self._frames.stages, self._frames.notes)

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences that say why the figures should be taken with care."""
        return (
            ([self.overload] if self.overload else [])
            + self._file_warnings
            + self._not_recorded
            + self._uncertain
            + self._stand_ins
            + statistics.instability_warnings(
                self._frames.stages, self.attempts, self.header.host, self.stage_summaries
            )
        )

    @property
    def _not_recorded(self) -> list[str]:
        notes = self._frames.notes
        if "recording_error" not in notes:
            return []
        errors = notes["recording_error"].dropna()
        return [f"{len(errors)} calls have no recording: {errors.iloc[0]}"] if len(errors) else []

    @property
    def _stand_ins(self) -> list[str]:
        """Which models of the lab's answered foreign agents, and what was not served."""
        sentences = {
            "models": "Models of the lab's stood for those that the agents asked for: {}.",
            "refused": "Not served offline, so that the SDK took its local fallback: {}.",
        }
        notes = self._frames.notes
        return [
            sentence.format(notes[name].dropna().iloc[-1])
            for name, sentence in sentences.items()
            if name in notes and notes[name].notna().any()
        ]

    @property
    def _uncertain(self) -> list[str]:
        turns = self._turn_notes(None, "uncertain_s")
        if turns.empty:
            return []
        which = "One reply begins" if len(turns) == 1 else f"{len(turns)} replies begin"
        return [
            f"{which} in noise or music, which leaves the beginning uncertain by up to "
            f"{turns['uncertain_s'].max() * 1000:.0f} ms: see the turns' notices."
        ]

    def summary(self) -> pd.DataFrame:
        """Returns the table of stages, in milliseconds; p99 only where n reaches 100.

        The index is the stage, or (stage, arm) where there are several arms. Columns: n,
        failed, mean, p50, p95, p99, ci95_lo and ci95_hi (of p50).
        """
        table = pd.DataFrame(
            [
                {
                    "n": s.n,
                    "failed": s.failed,
                    "mean": s.mean_s * 1e3,
                    "p50": s.p50_s * 1e3,
                    "p95": s.p95_s * 1e3,
                    "p99": s.p99_s * 1e3,
                    "ci95_lo": s.ci95_s[0] * 1e3,
                    "ci95_hi": s.ci95_s[1] * 1e3,
                }
                for s in self.stage_summaries.values()
            ],
            columns=_SUMMARY_COLUMNS,
        ).round(1)
        keys = list(self.stage_summaries)
        table.index = (
            pd.MultiIndex.from_tuples(keys, names=["stage", "arm"])
            if len(self.arms) > 1 and keys
            else pd.Index([stage for stage, _ in keys], name="stage")
        )
        return table if table["p99"].notna().any() else table.drop(columns="p99")

    @property
    def base(self) -> str:
        """The arm that ratios are stated against: the first, or the best of several baselines.

        Arms whose column `baseline` is true are baselines; the best of them has the smallest
        median of the run's main stage.
        """
        baselines = [arm for arm, columns in self.header.arms.items() if columns.get("baseline")]
        for stage in _COMPARED:
            medians = {
                arm: self.stage_summaries[stage, arm].p50_s
                for arm in baselines
                if (stage, arm) in self.stage_summaries
            }
            medians = {arm: p50_s for arm, p50_s in medians.items() if not math.isnan(p50_s)}
            if medians:
                return min(medians, key=lambda arm: medians[arm])
        return baselines[0] if baselines else self.arms[0]

    def ratios(self) -> dict[str, dict[str, statistics.Ratio]]:
        """Compares each further arm with the base: `{"new/base": {stage: ratio}}`.

        Arms take turns, and in each round all do the same: what one arm measured in a round is
        compared with what the other measured in it while the same was said.
        """
        good = statistics.measured(self.frame)
        base = self.base
        same = ["stage", "round", "turn", "said"]
        old = good[good["arm"] == base]
        result: dict[str, dict[str, statistics.Ratio]] = {}
        for other in self.arms:
            if other == base:
                continue
            of_pair = result[f"{other}/{base}"] = {}
            new = good[good["arm"] == other]
            both = old[same].drop_duplicates().merge(new[same].drop_duplicates(), on=same)
            for stage in sorted(both["stage"].unique(), key=statistics.stage_order):
                here = both[both["stage"] == stage]
                before, after = (rows.merge(here, on=same) for rows in (old, new))
                of_pair[stage] = statistics.compare_rounds(
                    before["duration_s"], before["round"], after["duration_s"], after["round"]
                )
        return result

    def to_json(self) -> dict[str, Any]:
        """Returns the machine-readable result, in seconds; None where there is no figure.

        With several arms, `n`, `failed`, `outcomes` and `stages` cover all of them together,
        `arms` has the same for each, and `ratios` compares each with :attr:`base`.
        """
        frame, attempts = self.frame, self.attempts
        result: dict[str, Any] = {
            "format": FORMAT,
            "run_id": self.header.run_id,
            "kind": self.header.kind,
            "config": {"loop": self.header.loop, **self.header.config},
            "host": self.header.host,
            **self._figures(None, frame, attempts, self.warnings),
        }
        if self.turn_ends:
            result["turn_ends"] = {
                "recommendation": recommendation(self.turn_ends),
                "curves": {
                    arm: [point.to_json() for point in points]
                    for arm, points in self.turn_ends.items()
                },
            }
        if self.levels:
            result["sizing"] = self.sizing
            result["levels"] = [level.to_json() for level in self.levels]
        if len(self.arms) > 1:
            result["arms"] = {}
            for arm, columns in self.header.arms.items():
                rows, tries = frame[frame["arm"] == arm], attempts[attempts["arm"] == arm]
                words = statistics.instability_warnings(rows, tries, {}, self.stage_summaries)
                result["arms"][arm] = {
                    "config": columns,
                    **self._figures(arm, rows, tries, words),
                }
            result["ratios"] = {
                pair: {stage: ratio.to_json() for stage, ratio in stages.items()}
                for pair, stages in self.ratios().items()
            }
        return result

    def _figures(
        self, arm: str | None, frame: pd.DataFrame, attempts: pd.DataFrame, words: list[str]
    ) -> dict[str, Any]:
        stages = {
            stage: statistics.summarise(frame[frame["stage"] == stage]).to_json()
            for stage in sorted(frame["stage"].unique(), key=statistics.stage_order)
        }
        shares = {name: share.to_json() for name, share in self.shares(arm).items()}
        return {
            "n": len(attempts),
            "failed": int((attempts["outcome"] != "ok").sum()),
            "outcomes": {str(k): int(v) for k, v in attempts["outcome"].value_counts().items()},
            "warnings": words,
            "stages": stages,
            **({"shares": shares} if shares else {}),
            "word_error_rate": self.word_error_rate(arm),
            "split_turns": self.split_turns(arm),
        }

    def to_parquet(self, path: str | Path) -> Path:
        """Writes the frame as a Parquet file, a derived copy; returns its path."""
        self._frames.stages.to_parquet(path, index=False)
        return Path(path)

    @property
    def title(self) -> str:
        """One line: what was run, how many attempts, how many of them failed."""
        attempts = self.attempts
        failed = int((attempts["outcome"] != "ok").sum())
        return (
            f"{self.header.kind} run {self.header.run_id}: {len(attempts)} attempts, "
            f"{failed} failed, {self.header.loop} loop"
        )

    def __repr__(self) -> str:
        parts = [self.title, *([self.overload] if self.overload else [])]
        if self.stage_summaries:
            parts += ["", table_text(self.summary()), "(milliseconds; ci95 of the median)"]
        parts += self.comparisons + self.turn_taking + self.recognition
        parts += recommendation(self.turn_ends)
        if self.levels:
            parts += ["", table_text(load.table(self.levels)), "", self.sizing]
        if self.warnings:
            parts += ["", *(f"warning: {each}" for each in self.warnings if each != self.overload)]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        return template("run.html.j2").render(
            run=self, table=table_cells(self.summary()), arms=len(self.arms) > 1
        )
