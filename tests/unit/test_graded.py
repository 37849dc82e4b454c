"""Detectors of the end of a turn as one: what is an end to them, and when it is one for sure."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from livekit.agents import LanguageCode
from livekit.agents.voice.turn import TurnDetectionEvent, TurnDetectionMode

from labvoice.speech.graded import GradedDetector, Grades

THRESHOLD = 0.36


class _Detector:
    """A detector that says what the test tells it to, and notes what it was asked for."""

    model = provider = "test"
    prediction_timeout = 1.0

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.calls: list[str] = []
        self.answer = asyncio.Event()
        self.answer.set()

    def stream(self, **_: Any) -> _Detector:
        return self

    async def supports_language(self, language: LanguageCode | None) -> bool:
        return language is None or language == "en"

    async def predict(self) -> TurnDetectionEvent:
        self.calls.append("predict")
        await self.answer.wait()
        return TurnDetectionEvent("eot_prediction", self.probability, 0.0)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.calls.append(name)

    async def aclose(self) -> None:
        self.calls.append("aclose")


def _both(first: float, second: float, *, hold_s: float = 0.0) -> SimpleNamespace:
    one, other = _Detector(first), _Detector(second)
    detector = GradedDetector((one, other), THRESHOLD, Grades(0.9, 0.4), 0.4 - hold_s)
    return SimpleNamespace(first=one, second=other, detector=detector, stream=detector.stream())


@pytest.mark.parametrize(
    ("first", "second", "ended"),
    [(0.5, 0.0, True), (0.5, 0.95, True), (0.1, 0.95, True), (0.1, 0.8, False)],
)
async def test_an_end_is_what_one_of_them_hears(first: float, second: float, ended: bool) -> None:
    """The second is believed only where it is sure."""
    both = _both(first, second)
    event = await both.stream.predict()
    threshold = await both.stream.unlikely_threshold(LanguageCode("en"))
    assert threshold is not None
    assert (event.end_of_turn_probability >= threshold) is ended


@pytest.mark.parametrize(
    ("first", "second", "at_once"), [(0.5, 0.95, True), (0.5, 0.8, False), (0.1, 0.95, False)]
)
async def test_what_one_alone_hears_waits_for_more_silence(
    first: float, second: float, at_once: bool
) -> None:
    """Where both hear an end, or neither does, the answer is there at once."""
    both = _both(first, second, hold_s=60.0)
    asked = both.stream.predict()
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked.done() is at_once
    both.stream.cancel_inference()


@pytest.mark.parametrize(
    ("probability", "ended", "at_once"),
    [(0.95, True, True), (0.6, True, False), (0.2, False, True)],
)
async def test_one_alone_is_graded_by_its_probability(
    probability: float, ended: bool, at_once: bool
) -> None:
    """An end that is not for sure waits for more silence."""
    grades = Grades(0.9, 60.0)
    stream = GradedDetector((_Detector(probability),), THRESHOLD, grades, 0.0).stream()
    asked = stream.predict()
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked.done() is at_once
    if at_once:
        assert (asked.result().end_of_turn_probability >= THRESHOLD) is ended
    stream.cancel_inference()


async def test_speech_that_goes_on_gives_the_prediction_up() -> None:
    """What is under way is cancelled in both, and a later prediction is a new one."""
    both = _both(0.1, 0.95)
    both.second.answer.clear()
    asked = both.stream.predict()
    while "predict" not in both.second.calls:
        await asyncio.sleep(0)
    both.stream.cancel_inference()
    await asyncio.wait([asked])
    assert asked.cancelled()
    assert "cancel_inference" in both.first.calls
    assert "cancel_inference" in both.second.calls
    both.second.answer.set()
    assert (await both.stream.predict()).end_of_turn_probability == 0.95


async def test_both_hear_all_audio_and_are_closed() -> None:
    """Audio, the end of a turn and the end of the call reach both."""
    both = _both(0.5, 0.5)
    both.stream.push_audio(SimpleNamespace())
    both.stream.flush("the turn has ended")
    both.stream.end_input()
    await both.stream.aclose()
    for each in (both.first, both.second):
        assert [call for call in each.calls if call != "cancel_inference"] == [
            *("push_audio", "flush", "end_input", "aclose")
        ]


async def test_it_is_a_detector_to_livekit() -> None:
    """LiveKit takes it as a detector of audio; a language that the first lacks has no threshold."""
    both = _both(0.5, 0.5)
    of_audio = get_args(TurnDetectionMode)[-1]
    assert isinstance(both.detector, of_audio)
    assert await both.stream.unlikely_threshold(LanguageCode("de")) is None
