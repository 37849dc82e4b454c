"""The second measurement: the marks that a detector of its own finds in the recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from labvoice.caller.recorder import SAMPLE_RATE_HZ, Recording
from labvoice.cli import app
from labvoice.errors import RunFileError
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.endpoints import find_segments
from labvoice.runs.remeasure import remeasure
from labvoice.runs.run import Run, RunWriter

CLICK_S = 100.0
RANDOM = np.random.default_rng(1)


def voice(length_s: float, level: float = 0.3) -> npt.NDArray[np.float64]:
    """A hummed vowel: ten harmonics of 120 Hz, with edges of 5 ms."""
    at_s = np.arange(round(length_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = sum(np.sin(2 * np.pi * 120 * n * at_s) / n for n in range(1, 11))
    edges = np.minimum(1, np.minimum(at_s, length_s - at_s) / 0.005)
    return np.asarray(level * edges * tone / np.abs(tone).max(), np.float64)


def line(
    length_s: float, *sounds: tuple[float, npt.NDArray[np.float64]], noise: float = 0.0
) -> npt.NDArray[np.float64]:
    """Silence or noise with sounds at their instants."""
    samples = RANDOM.normal(0, noise, round(length_s * SAMPLE_RATE_HZ))
    for start_s, sound in sounds:
        first = round(start_s * SAMPLE_RATE_HZ)
        samples[first : first + len(sound)] += sound
    return samples


def click(level: float = 0.5) -> npt.NDArray[np.float64]:
    """A key that is struck: 12 ms of decaying noise."""
    decay = np.exp(-np.arange(round(0.012 * SAMPLE_RATE_HZ)) / (0.003 * SAMPLE_RATE_HZ))
    return np.asarray(level * decay * RANDOM.uniform(-1, 1, len(decay)), np.float64)


@pytest.mark.parametrize("noise", [0.0, 0.0005, 0.003])
def test_the_edges_of_a_voice_are_found(noise: float) -> None:
    """They are right to 10 ms, in silence and in noise; a pause in a sentence is none of them."""
    samples = line(8.0, (1.0, voice(1.0)), (2.2, voice(0.8)), (4.5, voice(0.5)), noise=noise)
    found = find_segments(samples.astype(np.float32), SAMPLE_RATE_HZ)
    edges: Any = [(one.start_s, one.end_s) for one in found]
    assert edges == [
        (pytest.approx(1.0, abs=0.01), pytest.approx(3.0, abs=0.01)),
        (pytest.approx(4.5, abs=0.01), pytest.approx(5.0, abs=0.01)),
    ]


def test_a_click_is_no_voice() -> None:
    """A key before and after the voice moves neither of its edges."""
    samples = line(6.0, (1.0, click()), (2.0, voice(1.0)), (3.6, click()), noise=0.0005)
    found = find_segments(samples.astype(np.float32), SAMPLE_RATE_HZ)
    edges: Any = [(one.start_s, one.end_s) for one in found]
    assert edges == [(pytest.approx(2.0, abs=0.01), pytest.approx(3.0, abs=0.01))]


def test_silence_holds_nothing() -> None:
    """Neither digital silence nor an empty recording has a segment of sound."""
    assert find_segments(np.zeros(SAMPLE_RATE_HZ, np.float32), SAMPLE_RATE_HZ) == []
    assert find_segments(np.zeros(0, np.float32), SAMPLE_RATE_HZ) == []


def recorded(path: Path, *late_s: float, suffix: str = ".ogg") -> Path:
    """A run with one call for each lateness of the live mark of its reply."""
    with RunWriter(path, kind="turns", host_facts={}) as run:
        for trial, lateness_s in enumerate(late_s):
            run.trial(trial, f"room-{trial}", "default")
            run.mark(trial, Mark("click", CLICK_S))
            run.outcome(trial, "ok")
            marks = {
                "user_speech_start": 1.995,  # the beginnings of frames of 10 ms
                "user_speech_end": 2.995,
                "reply_heard": 3.795 + lateness_s,
                "reply_end": 5.795,
            }
            for name, at_s in marks.items():
                run.mark(trial, Mark(name, CLICK_S + at_s), turn=0)
            run.outcome(trial, "ok", turn=0)
            caller = line(7.0, (1.0, voice(1.0)))
            agent = line(7.0, (2.8, voice(2.0, 0.2)), (0.1, voice(0.5, 0.2)))
            samples = (np.stack([caller, agent], axis=1) * 32767).astype(np.int16)
            place = Path(path.stem) / f"{trial:04}{suffix}"
            Recording(samples, CLICK_S + 1.0).write(path.parent / place)
            run.note(trial, recording=place.as_posix(), recording_start_s=1.0)
    return path


@pytest.mark.parametrize("suffix", [".ogg", ".wav"])
def test_live_marks_that_are_right_are_found_again(tmp_path: Path, suffix: str) -> None:
    """All three marks of each turn agree within 10 ms, in Opus as in WAV."""
    found = remeasure(Run.load(recorded(tmp_path / "run.jsonl", 0.0, 0.0, suffix=suffix)))
    assert found.passed
    assert len(found.marks) == 6
    assert found.marks["difference_s"].abs().max() < 0.01
    assert "2 of 2 turns agree" in repr(found)


def test_a_wrong_live_mark_is_found_out(tmp_path: Path) -> None:
    """A reply that was marked 0.1 s late disagrees, and the command exits 1 with both instants."""
    path = recorded(tmp_path / "run.jsonl", 0.0, 0.1, 0.0)
    found = remeasure(Run.load(path))
    assert not found.passed
    wrong = found.marks.loc[found.marks["difference_s"].abs() > 0.02]
    assert wrong[["trial", "mark"]].to_numpy().tolist() == [[1, "reply_heard"]]
    result = CliRunner().invoke(app, ["remeasure", str(path), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 1
    assert "3900" in result.output
    assert "2 of 3 turns agree within 20 ms" in result.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["turns"], written["agreeing"], written["passed"]) == (3, 2, False)
    assert written["marks"]["reply_heard"]["within"] == pytest.approx(2 / 3, abs=0.001)


def test_a_reply_that_is_not_in_the_recording_disagrees(tmp_path: Path) -> None:
    """A live mark with no sound at it, and a run without recordings, are not passed over."""
    path = recorded(tmp_path / "run.jsonl", 0.0)
    sound = tmp_path / "run" / "0000.ogg"
    samples = (np.stack([line(7.0, (1.0, voice(1.0))), line(7.0)], axis=1) * 32767).astype(np.int16)
    Recording(samples, 0.0).write(sound)
    assert not remeasure(Run.load(path)).passed
    sound.write_bytes(b"no sound")
    broken = remeasure(Run.load(path))
    assert not broken.passed
    assert "call 0 cannot be read" in broken.notices[0]
    sound.unlink()
    with pytest.raises(RunFileError, match="no recordings"):
        remeasure(Run.load(path))


def test_replies_that_the_ear_never_heard_live_disagree(tmp_path: Path) -> None:
    """A run without a single live mark of a reply does not pass where recordings have replies."""
    path = recorded(tmp_path / "run.jsonl", 0.0, 0.0)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"reply_' not in line), encoding="utf-8")
    deaf = remeasure(Run.load(path))
    assert not deaf.passed
    assert "0 of 2 turns agree" in repr(deaf)


def kept(
    run: RunWriter,
    trial: int,
    marks: dict[str, float],
    caller: npt.NDArray[np.float64],
    agent: npt.NDArray[np.float64],
    *,
    turn: int | None = 0,
) -> None:
    """A call with marks at the beginnings of their frames, recorded from 1 s after the click."""
    run.trial(trial, f"room-{trial}", "default")
    run.mark(trial, Mark("click", CLICK_S))
    run.outcome(trial, "ok")
    for name, at_s in marks.items():
        run.mark(trial, Mark(name, CLICK_S + at_s - 0.005), turn=turn)
    if turn is not None:
        run.outcome(trial, "ok", turn=turn)
    samples = (np.stack([caller, agent], axis=1) * 32767).astype(np.int16)
    place = Path(run.path.stem) / f"{trial:04}.ogg"
    Recording(samples, CLICK_S + 1.0).write(run.path.parent / place)
    run.note(trial, recording=place.as_posix(), recording_start_s=1.0)


@pytest.mark.parametrize("late_s", [0.0, 0.06])
def test_the_marks_of_turn_taking_are_found_again(tmp_path: Path, late_s: float) -> None:
    """Both ends of a sound, and where the agent yields, answers or cuts in; a wrong one is told."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="interrupt", host_facts={}) as run:
        marks = {"interruption_start": 4.0, "interruption_end": 4.7}
        marks |= {"agent_yielded": 4.9 + late_s, "new_reply_heard": 6.5}
        agent = line(8.0, (0.2, voice(0.7)), (1.5, voice(2.4, 0.2)), (5.5, voice(1.0, 0.2)))
        kept(run, 0, marks, line(8.0, (0.3, voice(0.5)), (3.0, voice(0.7))), agent)
        marks = {"sound_start": 2.0, "sound_end": 5.0, "pause_start": 3.0, "cut_in_heard": 3.6}
        caller = line(8.0, (1.0, voice(1.0)), (3.0, voice(1.0)))
        kept(run, 1, marks, caller, line(8.0, (2.6, voice(0.7, 0.2)), (5.0, voice(1.0, 0.2))))
    found = remeasure(Run.load(path))
    assert len(found.marks) == 8
    assert found.marks["recorded_s"].notna().all()
    assert found.passed == (late_s == 0)
    assert f"{8 - (late_s > 0)} of 8 marks agree" in repr(found)
    assert "new_reply_heard" in repr(found)


def test_a_greeting_is_found_again_where_there_is_no_turn(tmp_path: Path) -> None:
    """Of a run of connections the greetings are compared, and a wrong one fails it."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="connect", host_facts={}) as run:
        for trial, wrong_s in enumerate((0.0, 0.1)):
            marks = {"greeting_heard": 2.0 + wrong_s}
            kept(run, trial, marks, line(4.0), line(4.0, (1.0, voice(1.0))), turn=None)
    result = CliRunner().invoke(app, ["remeasure", str(path)])
    assert result.exit_code == 1, result.output
    assert "1 of 2 calls agree" in result.output


def test_a_turn_that_began_late_under_load_is_where_it_was(tmp_path: Path) -> None:
    """Its figures count from the intended start, the recording has the sound where it was."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="load", host_facts={}) as run:
        marks = {"user_speech_start": 1.6, "user_speech_end": 2.6, "reply_heard": 3.8}
        caller, agent = line(7.0, (1.0, voice(1.0))), line(7.0, (2.8, voice(2.0, 0.2)))
        kept(run, 0, {**marks, "reply_end": 5.8}, caller, agent)
        run.note(0, 0, late_s=0.4)
    found = remeasure(Run.load(path))
    assert found.passed, found


def test_a_run_without_calls_says_so(tmp_path: Path) -> None:
    """A burst asks for agents and calls none: nothing is missing there."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="burst", host_facts={}):
        pass
    with pytest.raises(RunFileError, match="burst run without calls"):
        remeasure(Run.load(path))


def test_a_run_without_turns_is_not_called_wrong(tmp_path: Path) -> None:
    """A connection to an agent that does not greet has no mark that a recording could confirm."""
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="connect", host_facts={}) as run:
        run.trial(0, "room", "default")
        run.mark(0, Mark("click", CLICK_S))
        run.outcome(0, "ok")
        Recording(np.zeros((2400, 2), np.int16), CLICK_S).write(tmp_path / "run" / "0000.wav")
        run.note(0, recording="run/0000.wav", recording_start_s=0.0)
    with pytest.raises(RunFileError, match="no turn, probe or greeting"):
        remeasure(Run.load(path))
