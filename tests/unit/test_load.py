"""Load: the open loop's schedule, levels, the knee, what is void, and the sentence that sizes."""

from __future__ import annotations

import html
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from labvoice.bench.base import keep_sound
from labvoice.bench.callers import Called, Heard, sounds_of
from labvoice.bench.load import JOIN_EVERY_S, ramp, schedule
from labvoice.caller.recorder import Recorder
from labvoice.choices import RecordingFormat
from labvoice.errors import RunFileError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.report.load import load_curve
from labvoice.runs.load import LATE_S, Level, knee, levels_of, sizing
from labvoice.runs.run import Run, RunWriter
from tests.unit.recorded_runs import HOST, connect_run


def level(
    callers: int,
    p95_s: float,
    *,
    lost: int = 0,
    refused: int = 0,
    late_s: float = 0.002,
    stages_s: dict[str, float] | None = None,
    cpu: dict[str, float] | None = None,
    ended: int = 0,
) -> Level:
    """A level of ten turns a caller."""
    nothing = (math.nan, math.nan)
    return Level(
        arm=f"{callers} callers",
        callers=callers,
        turns=10 * callers,
        lost=lost,
        joins=callers,
        failed_joins=refused,
        refused=refused,
        p50_s=p95_s / 2,
        p95_s=p95_s,
        p50_ci95_s=nothing,
        p95_ci95_s=nothing,
        late_s=late_s,
        upset=0.0,
        stages_s=stages_s or {},
        cpu=cpu or {},
        memory_bytes={},
        ended=ended,
    )


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("1..8", [1, 2, 4, 8]),
        ("1..6", [1, 2, 4, 6]),
        ("3..3", [3]),
        ("2..10", [2, 4, 8, 10]),
        ("7,4,5", [4, 5, 7]),
        ("12", [12]),
    ],
)
def test_a_ramp_doubles_or_is_a_list(text: str, levels: list[int]) -> None:
    """`1..N` doubles and ends with N; a list is sorted."""
    assert ramp(text) == levels


@pytest.mark.parametrize("text", ["", "..", "0..4", "4..2", "1..x", "0,1", "a"])
def test_what_is_no_ramp_is_refused(text: str) -> None:
    """A ramp without levels is an error of the user."""
    with pytest.raises(UsageError):
        ramp(text)


def test_turns_are_due_at_a_constant_rate_over_all_callers() -> None:
    """Whatever becomes of the earlier ones, the next turn is due a constant time after the last."""
    plan = schedule(4, rate_per_min=6, seconds=30)
    assert [planned.click_s for planned in plan] == [0.0, 2.5, 5.0, 7.5]
    due = sorted(at_s for planned in plan for at_s in planned.turns_s)
    assert len(due) == 4 * 3
    assert {round(b - a, 9) for a, b in itertools.pairwise(due)} == {2.5}
    assert due[0] == 10.0  # one period after the first click, for the connection


def test_many_callers_join_first_and_then_talk() -> None:
    """A join costs more than a turn: many are spread wider, and the turns' rate stays constant."""
    plan = schedule(40, rate_per_min=6, seconds=20)
    clicks = [planned.click_s for planned in plan]
    assert {round(b - a, 9) for a, b in itertools.pairwise(clicks)} == {JOIN_EVERY_S}
    due = sorted(at_s for planned in plan for at_s in planned.turns_s)
    assert len(due) == 40 * 2
    assert {round(b - a, 9) for a, b in itertools.pairwise(due)} == {0.25}
    assert due[0] > clicks[-1]
    assert min(planned.turns_s[0] - planned.click_s for planned in plan) >= 10.0


@pytest.mark.parametrize(("callers", "rate", "seconds"), [(0, 6, 60), (1, 0, 60), (1, 6, 9)])
def test_a_load_of_nothing_is_refused(callers: int, rate: float, seconds: float) -> None:
    """No caller, no rate, or a time too short for a turn is an error of the user."""
    with pytest.raises(UsageError):
        schedule(callers, rate, seconds)


def test_the_knee_is_the_last_level_within_the_limit_before_the_first_beyond() -> None:
    """A level that is fast again after the knee does not count."""
    levels = [level(4, 1.9), level(1, 0.8), level(2, 1.1), level(8, 1.0)]
    found = knee(levels, 1.2)
    assert found.within == levels[2]
    assert found.beyond == levels[0]


def test_lost_turns_put_a_level_beyond_the_limit() -> None:
    """A level that is fast for those who were answered, and lost the others, is beyond it."""
    assert knee([level(1, 0.8, lost=1)], 1.2).within is None
    assert level(20, 0.8, lost=1).within(1.2)  # one of 220


def test_a_level_whose_callers_ended_is_void() -> None:
    """Callers whose process ended say nothing of the agent; the sentence says what happened."""
    levels = [level(4, 0.5), level(8, 0.6, ended=4)]
    assert levels[1].void
    said = sizing(levels, 1.2, workers=1, cores=2)
    assert said.startswith("At least 4 calls a worker")
    assert "with 8 the calls of 4 ended with their processes" in said


def test_a_level_whose_callers_were_late_is_void_and_not_slow() -> None:
    """The ramp ends there, and nothing is said of the agent at that level."""
    levels = [level(1, 0.8), level(2, 0.5, late_s=2 * LATE_S)]
    assert levels[1].void
    words = sizing(levels, 1.2, workers=1, cores=2)
    assert words.startswith("At least 1 call a worker at p95 <= 1.2 s on this machine (2 cores)")
    assert "with 2 the callers themselves were late by 100 ms" in words
    assert sizing(levels[1:], 1.2, workers=1, cores=2).startswith("No figure: ")


def test_the_sentence_names_the_knee_and_the_limit() -> None:
    """Which stage of the agent grew most from the last level within to the first beyond."""
    levels = [
        level(4, 1.1, stages_s={"llm_node_ttft": 0.2, "tts_node_ttfb": 0.1}),
        level(8, 2.3, stages_s={"llm_node_ttft": 0.9, "tts_node_ttfb": 0.2}),
    ]
    words = sizing(levels, 1.2, workers=1, cores=2)
    assert words == (
        "4 calls a worker at p95 <= 1.2 s on this machine (2 cores); with 8 it is 2.30 s; "
        "the model is the limit (llm_node_ttft takes 0.70 s more)."
    )
    assert sizing(levels, 1.2, workers=2, cores=2).startswith("2 calls a worker (4 on 2 workers)")


def test_the_sentence_names_the_processor_and_who_uses_it() -> None:
    """Where no stage grew, the processor that is used up is the limit."""
    levels = [level(4, 1.1), level(8, 2.3, cpu={"worker": 1.2, "server": 0.5, "callers": 0.2})]
    words = sizing(levels, 1.2, workers=1, cores=2)
    assert words.endswith(
        "the processor is the limit: 1.9 of 2 cores are used, 1.2 of them by the worker."
    )


def test_the_sentence_names_the_limit_of_jobs() -> None:
    """Calls that no worker took are the workers' limit, whatever else grew."""
    levels = [level(4, 1.0), level(8, 1.0, refused=4, lost=40)]
    words = sizing(levels, 1.2, workers=1, cores=2)
    assert "40 of 80 turns and 4 of 8 joins lost" in words
    assert words.endswith("the workers' limit of jobs is the limit.")


def test_a_ramp_without_a_knee_says_so() -> None:
    """Nothing is said of more callers than there were; a first level beyond it has no knee."""
    words = sizing([level(4, 1.0)], 1.2, workers=1, cores=2)
    assert words.endswith("the ramp ended before the knee.")
    words = sizing([level(4, 1.5)], 1.2, workers=1, cores=2)
    assert words.startswith("Not one level is within p95 <= 1.2 s")
    assert sizing([], 1.2, workers=1, cores=2) == ""


def load_run(path: Path) -> Run:
    """Two levels, after a warm-up; at the second one the callers themselves were late."""
    arms = {"1 caller": {"callers": 1}, "2 callers": {"callers": 2}, "4 callers": {"callers": 4}}
    config = {"limit_s": 1.2, "workers": 1}
    with RunWriter(
        path, kind="load", loop="open", config=config, arms=arms, host_facts=HOST
    ) as run:
        for trial, arm in enumerate(["1 caller", "1 caller", "2 callers", "2 callers"]):
            run.trial(trial, f"load-{trial}", arm, warmup=trial == 0)
            run.mark(trial, Mark("click", 10.0 * trial))
            run.note(trial, loop_lag_s=0.01, caller_late_s=0.001)
            run.outcome(trial, "ok")
            for turn in range(10):
                said_s = 10.0 * trial + turn
                run.mark(trial, Mark("user_speech_end", said_s), turn=turn)
                heard_s = said_s + 0.5 + 0.01 * turn + (9 if trial == 0 else 0)
                run.mark(trial, Mark("reply_heard", heard_s), turn=turn)
                run.note(trial, turn, caller_late_s=0.2 if trial == 3 else 0.0)
                run.outcome(trial, "ok" if turn or trial < 3 else "no_reply", turn=turn)
        run.note(1, cpu_worker=0.5, memory_bytes_worker=2.0**20, cpu_server=0.1)
    return Run.load(path)


def test_levels_are_read_from_the_run_file(tmp_path: Path) -> None:
    """Warm-ups do not count, a level that was not made is absent, lateness and use are there."""
    run = load_run(tmp_path / "load.jsonl")
    first, second = run.levels
    assert (first.callers, first.turns, first.lost, first.joins) == (1, 10, 0, 1)
    assert first.p50_s == pytest.approx(0.545)
    assert first.p95_s < 0.6
    assert math.isnan(first.p95_ci95_s[0])  # one call has no spread
    assert first.late_s == pytest.approx(0.01)
    assert first.cpu == {"worker": 0.5, "server": 0.1}
    assert first.memory_bytes == {"worker": 2.0**20}
    assert (second.callers, second.turns, second.lost, second.joins) == (2, 20, 1, 2)
    assert second.p95_ci95_s[0] <= second.p95_s <= second.p95_ci95_s[1]
    assert second.void
    assert not first.void
    result = run.to_json()
    assert [each["callers"] for each in result["levels"]] == [1, 2]
    assert result["sizing"] == run.sizing
    assert run.sizing in repr(run)
    assert html.escape(run.sizing, quote=False) in run._repr_html_()
    assert len(load_curve(run).axes) == 1


def test_other_runs_have_no_levels(tmp_path: Path) -> None:
    """A run of connections has no level, no sentence and no curve."""
    run = connect_run(tmp_path / "connect.jsonl")
    assert levels_of(run) == []
    assert run.sizing == ""
    with pytest.raises(RunFileError):
        load_curve(run)


@pytest.mark.parametrize("suffix", ["ogg", "wav"])
def test_a_dask_workers_recordings_belong_to_the_run(
    tmp_path: Path, suffix: RecordingFormat
) -> None:
    """A call's sound lies beside the run, dated by the intended start, and silent calls have none.

    The instants are the Dask worker's, whose clock is another.
    """
    recorder = Recorder(24000, 24000)
    tone = (9000 * np.sin(np.arange(24000) / 24000 * 2 * np.pi * 440)).astype(np.int16)
    for number, frame in enumerate(tone.reshape(100, 240)):
        recorder.sent(frame, 5000.5 + number * 0.01)
    called = Called("", [Heard(3, 5000.0, recorder), Heard(4, 5000.0, Recorder(24000, 24000))])
    with RunWriter(tmp_path / "load.jsonl", kind="load", host_facts=HOST) as run:
        run.trial(3, "room", "default")
        run.mark(3, Mark("click", 100.0))
        for each in sounds_of(called, suffix):
            assert keep_sound(run, each.trial, each.content, each.start_s, suffix) == ""
    (kept,) = Run.load(tmp_path / "load.jsonl").recordings.to_dict("records")
    assert kept["path"] == tmp_path / "load" / f"0003.{suffix}"
    assert kept["start_s"] == pytest.approx(0.5)
    sound, rate = soundfile.read(kept["path"])
    assert len(sound) / rate == pytest.approx(1.0, abs=0.05)
    assert np.abs(sound[:, 0]).max() > 0.1
    assert np.abs(sound[:, 1]).max() < 0.05
