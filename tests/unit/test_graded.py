"""Detectors of the end of a turn as one: what is an end to them, and when it is one for sure."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import LanguageCode, llm, stt
from livekit.agents.voice.turn import TurnDetectionEvent, TurnDetectionMode

from labvoice.speech import graded
from labvoice.speech.graded import GradedDetector, Grades, SpokenDetector, spoken_end

THRESHOLD = 0.36
SAID = "What is the weather going to be like tomorrow?"


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


@pytest.mark.parametrize(
    ("probability", "text", "ends"),
    [
        (0.97, "What is the weather going to be like tomorrow?", (True, 0.0)),
        (0.97, "Can you book a table for two people", (True, 0.0)),
        (0.97, "What is the time?", (True, graded.UNSURE_AFTER_S)),
        (0.97, "", (True, graded.UNSURE_AFTER_S)),
        (0.6, "What is the weather going to be like tomorrow?", (True, graded.UNSURE_AFTER_S)),
        (0.2, "What is the weather going to be like tomorrow?", (False, 0.0)),
        (0.97, "I would like to book a table for,", (False, 0.0)),
        (0.98, "The address is Mill Lane number 14.", (True, graded.SENTENCE_AFTER_S)),
        (0.98, "The address is Mill Lane.", (True, graded.UNSURE_AFTER_S)),
        (0.97, "The address is Mill Lane number 14.", (True, graded.UNSURE_AFTER_S)),
        (0.98, "The address is Mill Lane number 14", (True, graded.UNSURE_AFTER_S)),
        (0.98, "The address is Mill Lane number 14,", (True, graded.CLAUSE_AFTER_S)),
        (0.97, "Could you tell me how far it is from?", (False, 0.0)),
    ],
)
def test_sound_and_words_say_after_which_silence_a_turn_ends(
    probability: float, text: str, ends: tuple[bool, float]
) -> None:
    """The shortest for a sure question of seven words; none after a word that wants another."""
    assert spoken_end(probability, text, 0.5) == ends


class _Voice:
    """A voice detector to which a window of samples that are not zero is voice."""

    window_s = 0.032

    def __init__(self, _: int) -> None: ...

    def __call__(self, samples: Any) -> list[float]:
        return [float(samples.any())]


class _SmartTurn:
    """A stream of Smart Turn that answers when the test lets it."""

    model = provider = "test"

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[TurnDetectionEvent]] = []
        self.frames = 0

    async def supports_language(self, language: LanguageCode | None) -> bool:
        return language == "en"

    def push_audio(self, _: rtc.AudioFrame) -> None:
        self.frames += 1

    def predict(self) -> asyncio.Future[TurnDetectionEvent]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def answer(self, probability: float) -> None:
        self.asked[-1].set_result(TurnDetectionEvent("eot_prediction", probability, 0.0))

    def cancel_inference(self) -> None:
        self.asked[-1].cancel()

    def flush(self) -> None:
        self.frames = 0


def _window(level: int) -> rtc.AudioFrame:
    return rtc.AudioFrame(np.full(512, level, np.int16).tobytes(), 16000, 1, 512)


def _stop_speaking(detector: SpokenDetector) -> None:
    for level in (1, 0, 0, 0, 0):
        detector.push_audio(_window(level))


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> tuple[SpokenDetector, _SmartTurn]:
    """A detector by sound and words, and the stream of Smart Turn that it asks."""
    monkeypatch.setattr(graded, "VoiceProbability", _Voice)
    stream = _SmartTurn()
    return SpokenDetector(stream, 0.5, at_once=True), stream


def _chat(text: str) -> llm.ChatContext:
    chat = llm.ChatContext.empty()
    chat.add_message(role="user", content=text)
    return chat


async def test_smart_turn_is_asked_where_the_voice_ceases(
    spoken: tuple[SpokenDetector, _SmartTurn],
) -> None:
    """Not before the first voice, once a silence, and anew after each voice."""
    detector, stream = spoken
    for level, asked in ((0, 0), (1, 0), (0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (1, 1)):
        detector.push_audio(_window(level))
        assert len(stream.asked) == asked, level
    assert stream.asked[0].cancelled()
    for _ in range(4):
        detector.push_audio(_window(0))
    assert len(stream.asked) == 2
    assert stream.frames == 12
    detector.flush()
    detector.push_audio(_window(0))
    assert (len(stream.asked), stream.frames) == (2, 1)


async def test_smart_turn_waits_for_the_transcript_and_hears_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes after three windows of silence is given to it once it is asked, or not asked."""
    monkeypatch.setattr(graded, "VoiceProbability", _Voice)
    stream = _SmartTurn()
    detector = SpokenDetector(stream, 0.5)
    for level in (1, 0, 0, 0, 0, 0, 0):
        detector.push_audio(_window(level))
    assert (len(stream.asked), stream.frames) == (0, 4)
    detector.push_event(stt.SpeechEvent(stt.SpeechEventType.PREFLIGHT_TRANSCRIPT))
    assert (len(stream.asked), stream.frames) == (1, 7)
    for level in (0, 1, 0, 0, 0, 0, 0, 1):
        detector.push_audio(_window(level))
    assert (len(stream.asked), stream.frames) == (1, 15)


async def test_a_sound_without_words_keeps_no_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a transcript Smart Turn hears on after a second of silence."""
    monkeypatch.setattr(graded, "VoiceProbability", _Voice)
    stream = _SmartTurn()
    detector = SpokenDetector(stream, 0.5)
    for level in (1, *(0 for _ in range(60))):
        detector.push_audio(_window(level))
    assert (len(stream.asked), stream.frames) == (0, 61)


async def test_a_turn_of_sound_and_words_ends_with_the_answer(
    spoken: tuple[SpokenDetector, _SmartTurn],
) -> None:
    """The prediction is under way before LiveKit asks; after a word that wants another, no end."""
    detector, stream = spoken
    _stop_speaking(detector)
    asking = asyncio.create_task(detector.predict_end_of_turn(_chat("I would like to go for a")))
    certain = asyncio.create_task(detector.predict_end_of_turn(_chat(SAID)))
    await asyncio.sleep(0)
    stream.answer(0.97)
    assert await asking < 0.5
    assert await certain == 0.97
    assert len(stream.asked) == 1
    assert await detector.unlikely_threshold(LanguageCode("en")) == 0.5
    assert await detector.unlikely_threshold(LanguageCode("de")) is None


async def test_no_turn_waits_longer_than_the_longest_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`max_endpointing_delay_s` holds of what the detector itself waits, too."""
    monkeypatch.setattr(graded, "VoiceProbability", _Voice)
    monkeypatch.setattr(graded, "UNSURE_AFTER_S", 600.0)
    stream = _SmartTurn()
    detector = SpokenDetector(stream, 0.5, at_once=True, longest_s=0.1)
    _stop_speaking(detector)
    stream.answer(0.97)
    async with asyncio.timeout(60):
        assert await detector.predict_end_of_turn(_chat("Yes, please.")) == 0.97


async def test_a_voice_that_livekit_does_not_hear_leaves_no_turn_without_an_end(
    spoken: tuple[SpokenDetector, _SmartTurn],
) -> None:
    """A prediction that a sound has cancelled is made again."""
    detector, stream = spoken
    _stop_speaking(detector)
    asking = asyncio.create_task(detector.predict_end_of_turn(_chat(SAID)))
    await asyncio.sleep(0)
    detector.push_audio(_window(1))
    while len(stream.asked) < 2:
        await asyncio.sleep(0)
    stream.answer(0.99)
    assert await asking == 0.99


async def test_words_that_are_still_to_come_are_waited_for(
    spoken: tuple[SpokenDetector, _SmartTurn],
) -> None:
    """While the recogniser has speech without a transcript, the words before it end no turn."""
    detector, stream = spoken
    _stop_speaking(detector)
    stream.answer(0.97)
    detector.push_event(stt.SpeechEvent(stt.SpeechEventType.START_OF_SPEECH))
    asking = asyncio.create_task(detector.predict_end_of_turn(_chat(SAID)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asking.done()
    detector.push_event(stt.SpeechEvent(stt.SpeechEventType.END_OF_SPEECH))
    assert await asking == 0.97


async def test_the_detector_of_sound_and_words_is_one_of_text_to_livekit(
    spoken: tuple[SpokenDetector, _SmartTurn],
) -> None:
    """LiveKit would ask one of audio after 0.2 s, and demand 0.25 s of its voice detector."""
    assert not isinstance(spoken[0], get_args(TurnDetectionMode)[-1])
    assert inspect.iscoroutinefunction(spoken[0].predict_end_of_turn)
