"""The end-of-turn trade: turns cut in on against delay, from pauses and detectors' verdicts."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from labvoice.bench import endpointing
from labvoice.bench.arms import endpointing_arms
from labvoice.bench.base import RunOptions
from labvoice.errors import RunFileError, UsageError
from labvoice.report.html import write_report
from labvoice.runs.exact import exact_interval
from labvoice.runs.run import Run
from labvoice.runs.statistics import mean_intervals
from labvoice.runs.turn_ends import Heard, Point, fastest, frontier, recommendation, sweep
from labvoice.settings import load_settings
from labvoice.speech import turn_ends
from labvoice.speech.conditions import Conditions
from labvoice.speech.graded import EITHER
from labvoice.speech.turn_ends import SpokenTurn, pause_lengths, read_rows, with_silences
from labvoice.speech.utterances import DEFAULT_UTTERANCES, SAMPLE_RATE, Utterance

_TONE = (9000 * np.sin(np.arange(SAMPLE_RATE) / SAMPLE_RATE * 2 * np.pi * 440)).astype(np.int16)


WORDS = "What is the weather going to be like tomorrow?"


def _point(arm: str, cut: int, delay_s: float) -> Point:
    return Point(arm, 0.3, 1.0, cut, 100, delay_s, (delay_s - 0.1, delay_s + 0.1))


def test_a_pause_is_cut_in_on_where_it_outlasts_the_delay_of_the_verdict() -> None:
    """The shorter delay holds where the detector hears an end, the longer one where it does not."""
    turn = Heard([0.5, 0.9], [False, True, True])
    assert not turn.cut(0.9, 1.0)
    assert turn.cut(0.8, 1.0)
    assert turn.cut(0.9, 0.4)
    assert turn.delay_s(0.3, 1.0) == 0.3
    assert Heard([], [False]).delay_s(0.3, 1.0) == 1.0


def test_a_detector_may_wait_by_itself() -> None:
    """What it holds back counts where it hears an end, and where that is longer than the delay."""
    turn = Heard([0.35, 0.35], [True, False, True], [0.4, 0.4, 0.0])
    assert not turn.cut(0.3, 1.0)
    assert Heard(turn.pauses_s, turn.ended).cut(0.3, 1.0)
    assert turn.delay_s(0.3, 1.0) == 0.3
    assert Heard([], [True], [0.4]).delay_s(0.3, 1.0) == 0.4
    assert Heard([], [True], [0.4]).delay_s(0.2, 0.3) == 0.3


def test_a_detector_that_is_always_right_is_fast_and_cuts_in_on_nobody() -> None:
    """Its curve is one point; silence alone must wait as long as the longest pause."""
    right = [Heard([0.45 + 0.1 * n], [False, True]) for n in range(10)]
    deaf = [Heard(turn.pauses_s, [True, True]) for turn in right]
    (best,) = sweep("right", right)
    assert best.cut == 0
    assert best.delay_s == pytest.approx(0.2)
    silence = sweep("silence", deaf)
    assert [point.cut for point in silence] == sorted({p.cut for p in silence}, reverse=True)
    assert silence[-1].cut == 0
    assert silence[-1].delay_s == pytest.approx(1.5)  # the first delay that outlasts 1.35 s
    assert silence[0].delay_s == pytest.approx(0.2)
    assert silence[0].cut == 10


def test_the_frontier_keeps_what_nothing_betters() -> None:
    """A setting that is slower and cuts in on as many turns is left out."""
    points = [_point("a", 5, 0.5), _point("a", 5, 0.6), _point("a", 2, 0.9), _point("a", 9, 0.7)]
    assert [(point.cut, point.delay_s) for point in frontier(points)] == [(5, 0.5), (2, 0.9)]


def test_the_recommendation_is_the_fastest_within_the_budget_with_its_cost() -> None:
    """It names setting, interval, price against the fastest, and what others need."""
    found = {"a": [_point("a", 30, 0.3), _point("a", 4, 0.8)], "b": [_point("b", 5, 1.2)]}
    assert fastest(found["a"], 0.05) == found["a"][1]
    words = " ".join(recommendation(found))
    assert "a with 0.3 s, 1 s where it hears no end. It cuts in on 4 of 100 turns" in words
    assert "0.50 s a turn against the fastest" in words
    assert "b 0.40 s" in words
    assert "do not show that the share is below 5%" in words
    assert "No setting" in " ".join(recommendation({"a": found["a"][:1]}))


def test_intervals_of_shares_are_exact_and_those_of_means_cover_them() -> None:
    """Clopper and Pearson's bounds are those of the tables; a mean lies in its own interval."""
    assert exact_interval(0, 0) == (0.0, 1.0)
    assert exact_interval(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert exact_interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    values = np.random.default_rng(1).normal((1.0, 5.0), 0.2, (50, 2))
    for (low, high), mean in zip(mean_intervals(values), values.mean(axis=0), strict=True):
        assert low < mean < high
        assert high - low == pytest.approx(4 * 0.2 / math.sqrt(50), rel=0.35)
    assert np.isnan(mean_intervals(values[:1])).all()


def test_pauses_are_as_long_as_those_of_people_who_talk_to_agents() -> None:
    """The shares of eot-bench's published figures are those of the lengths drawn."""
    lengths = np.array(pause_lengths(1000))
    assert lengths.min() >= 0.2
    for longer_s, share in ((0.3, 0.556), (0.6, 0.217), (1.0, 0.10), (1.6, 0.05)):
        assert np.mean(lengths > longer_s) == pytest.approx(share, abs=0.005)


def test_a_silence_goes_where_speech_is_quietest() -> None:
    """Nothing of the loud parts is lost, and the silence has the length asked for."""
    loud = np.full(SAMPLE_RATE // 2, 8000, np.int16)
    speech = np.concatenate([loud, np.zeros(SAMPLE_RATE // 10, np.int16), loud])
    made = with_silences(speech, [(0.4, 0.7)])
    quiet = np.flatnonzero(made == 0)
    assert (made == 8000).sum() >= 0.99 * 2 * len(loud)
    assert len(quiet) == pytest.approx(0.7 * SAMPLE_RATE, rel=0.1)
    assert np.ptp(quiet) + 1 == len(quiet)


def _rows(path: Path, **changed: Any) -> Path:
    sound = io.BytesIO()
    soundfile.write(sound, np.full(16000 * 3, 0.1), 16000, format="WAV")
    spans = [{"start": s, "end": e} for s, e in ((0.5, 0.6), (1.0, 1.7), (2.5, 3.0))]
    row = {"id": "1", "language": "en", "audio": {"bytes": sound.getvalue(), "path": ""}}
    pd.DataFrame([{**row, "silence_spans": spans, **changed}]).to_parquet(path)
    return path


def test_a_speaker_says_all_built_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's texts too, in the order in which the turns come without a speaker."""

    def read(text: str) -> Utterance:
        return Utterance(text, _TONE, SAMPLE_RATE, "human")

    def synthesize(
        texts: Sequence[str], *_: object, speaker: str = "jf_alpha", **__: object
    ) -> list[Utterance]:
        return [Utterance(text, _TONE, SAMPLE_RATE, speaker) for text in texts]

    monkeypatch.setattr(
        turn_ends, "human_utterances", lambda *given: [read("long" if given[2:] else "short")]
    )
    monkeypatch.setattr(turn_ends, "synthesize_all", synthesize)
    monkeypatch.setattr(turn_ends, "find_pauses", lambda *_: ())
    usual = turn_ends.spoken_turns(load_settings())
    said = turn_ends.spoken_turns(load_settings(), speaker="joe")
    assert [turn.utterance.text for turn in said] == [turn.utterance.text for turn in usual]
    assert {turn.utterance.source for turn in said} == {"joe"}
    assert {"human", "jm_kumo"} < {turn.utterance.source for turn in usual}


async def test_turns_that_are_recordings_have_no_other_speaker() -> None:
    """Their pauses are where the person made them: the error comes before any call."""
    lab = SimpleNamespace(settings=load_settings())
    turn = SpokenTurn(Utterance("", _TONE, SAMPLE_RATE, "eot-bench"), (), 1.0)
    sound = {"": Conditions(speaker="joe")}
    with pytest.raises(UsageError, match="whose pauses no other voice makes"):
        await endpointing.endpointing(lab, 1, arms="0.4", said=[turn], conditions=sound)  # type: ignore[arg-type]


def test_rows_of_eot_bench_are_turns(tmp_path: Path) -> None:
    """The last span is the end, earlier ones are pauses, and those below 0.2 s are none."""
    (turn,) = read_rows(_rows(tmp_path / "rows.parquet"))
    assert turn.pauses == ((1.0, 1.7),)
    assert turn.end_s == 2.5
    assert turn.utterance.duration_s == pytest.approx(3.0)


@pytest.mark.parametrize("wrong", ["text", "german", "column"])
def test_what_is_no_row_of_eot_bench_is_refused(wrong: str, tmp_path: Path) -> None:
    """Another file, another language and a missing column are one sentence each."""
    path = tmp_path / "rows.parquet"
    if wrong == "text":
        path.write_text("id,language\n")
    elif wrong == "german":
        _rows(path, language="de")
    else:
        pd.DataFrame({"id": [1]}).to_parquet(path)
    with pytest.raises(RunFileError, match=r"rows\.parquet"):
        read_rows(path)


def _spoken(*pauses: tuple[float, float]) -> SpokenTurn:
    utterance = Utterance("some words", np.ones(3 * SAMPLE_RATE, np.int16), SAMPLE_RATE, "kokoro")
    return SpokenTurn(utterance, pauses, 3.0)


class _Knowing:
    """A detector that hears an end where two seconds or more were heard."""

    def stream(self) -> _Knowing:
        self.heard = 0
        return self

    def push_audio(self, frame: Any) -> None:
        self.heard += frame.samples_per_channel

    async def predict(self) -> Any:
        return SimpleNamespace(end_of_turn_probability=0.9 if self.heard >= 2 * 16000 else 0.1)

    async def aclose(self) -> None:
        pass


async def test_detectors_are_asked_at_every_silence_and_the_report_shows_the_trade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without calls has the curve of each detector, its own outcomes, and a picture."""
    monkeypatch.setattr(endpointing, "load_detector", lambda *_: _Knowing())
    turns = [_spoken((0.5, 1.0 + 0.1 * n)) for n in range(5)] + [_spoken()]
    options = RunOptions(tmp_path / "offline.jsonl")
    arms = "silence:0.6,v1-mini@0.5:0.4:1"
    run = await endpointing.on_audio(load_settings(), arms, turns, options)
    assert run.attempts["outcome"].value_counts().to_dict() == {"ok": 9, "interrupted": 3}
    (knowing,) = run.turn_ends["v1-mini@0.5:0.4:1"]
    assert (knowing.cut, knowing.turns) == (0, 6)
    assert knowing.delay_s == pytest.approx(0.25)
    assert run.turn_ends["silence:0.6"][-1].delay_s == pytest.approx(1.0)
    found = Run.load(run.path).to_json()["turn_ends"]
    assert found["recommendation"][0].startswith("Recommended for at most 5%")
    assert set(found["curves"]) == {"silence:0.6", "v1-mini@0.5:0.4:1"}
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "The end of a turn: cut in, or late" in page
    assert "Recommended for at most 5%" in page


async def test_either_detector_ends_a_turn_and_both_must_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they disagree `either` hears an end if Smart Turn is sure, and `both` never."""
    said = {"v1-mini": 0.1, "smart-turn": 0.95}
    monkeypatch.setattr(endpointing, "load_detector", lambda name, *_: name)
    monkeypatch.setattr("labvoice.speech.embedded.load_moonshine", lambda _: object())

    async def scores(name: str, *_: object) -> list[float]:
        return [said[name]]

    async def words(*_: object) -> list[str]:
        return [WORDS]

    monkeypatch.setattr(endpointing, "scores", scores)
    monkeypatch.setattr(endpointing, "spoken_words", words)
    for smart, ended in (
        (0.95, {"either": True, "both": False, "smart-turn": True}),
        (0.8, {"either": False, "both": False, "smart-turn": True}),
    ):
        said["smart-turn"] = smart
        options = RunOptions(tmp_path / f"{smart}.jsonl")
        run = await endpointing.on_audio(load_settings(), list(ended), [_spoken()], options)
        assert [heard[0] for heard in run.notes["ended"]] == list(ended.values())


async def test_what_only_a_call_can_tell_has_no_curve(tmp_path: Path) -> None:
    """Dynamic endpointing learns in a call: without one it is refused."""
    options = RunOptions(tmp_path / "offline.jsonl")
    with pytest.raises(UsageError, match="learns from a call"):
        await endpointing.on_audio(load_settings(), "dynamic", [_spoken()], options)


def test_an_arm_names_detector_threshold_and_delays() -> None:
    """All three are settings of its worker; what is not named stays as the lab has it."""
    dynamic, smart, silence = endpointing_arms("dynamic, smart-turn@0.7:0.3:1.5, silence:0.6", 1.0)
    assert dynamic.settings == {"turn_detector": "v1-mini", "endpointing_mode": "dynamic"}
    assert smart.settings == {
        "turn_detector": "smart-turn",
        "turn_detector_threshold": 0.7,
        "min_endpointing_delay_s": 0.3,
        "max_endpointing_delay_s": 1.5,
    }
    assert silence.settings["turn_detector"] == "vad"
    assert silence.settings["min_endpointing_delay_s"] == 0.6


@pytest.mark.parametrize(
    "wrong", ["silence@0.5", "v1-mini@2", "v1-mini@", "v1-mini:0.3:1:2", "smart:0.3", "0.3:x"]
)
def test_a_wrong_end_of_a_turn_is_refused(wrong: str) -> None:
    """An unknown detector, a threshold that is none and a third delay are usage errors."""
    with pytest.raises(UsageError):
        endpointing_arms(wrong)


def test_a_short_run_waits_for_no_synthesis_that_it_does_not_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first turns are those of the whole list; a voice's model is loaded once at most."""
    asked: list[tuple[str, int]] = []

    def of(source: str, texts: list[str]) -> list[Utterance]:
        return [Utterance(text, np.ones(4800, np.int16), SAMPLE_RATE, source) for text in texts]

    def synthesised(
        texts: list[str], *_: object, speaker: str = "default", **__: object
    ) -> list[Utterance]:
        asked.append((speaker, len(texts)))
        return of("kokoro", texts)

    monkeypatch.setattr(
        turn_ends,
        "human_utterances",
        lambda *given: of("human", ["c"] if given[2:] else ["a", "b"]),
    )
    monkeypatch.setattr(turn_ends, "synthesize_all", synthesised)

    def said(at_most: int | None = None) -> list[str]:
        turns = turn_ends.spoken_turns(load_settings(), at_most=at_most)
        return [turn.utterance.text for turn in turns]

    whole = said()
    speakers = [speaker for speaker, _ in asked]
    assert len(speakers) == len(set(speakers))
    assert len(whole) == 3 + len(turn_ends.HESITATIONS) + len(DEFAULT_UTTERANCES)
    assert len(set(whole)) == len(whole)
    for wanted in (1, 2, 7, 60):
        asked.clear()
        assert said(wanted) == whole[:wanted]
        assert sum(number for _, number in asked) <= 2 * wanted


def test_an_unsure_answer_of_both_waits_no_longer_than_the_longest_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`max_endpointing_delay_s` holds of v1-mini with Smart Turn, too."""
    monkeypatch.setattr(turn_ends, "load_detector", lambda *_: SimpleNamespace())

    def unsure_after_s(longest_s: float) -> float:
        settings = load_settings(min_endpointing_delay_s=0.2, max_endpointing_delay_s=longest_s)
        hold_s = turn_ends.load_turn_detector("either", settings).hold_s
        return float(hold_s) + turn_ends.ASKED_AFTER_S

    assert unsure_after_s(0.8) == pytest.approx(EITHER.unsure_after_s)
    assert unsure_after_s(0.3) == pytest.approx(0.3)
