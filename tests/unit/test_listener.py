"""The caller's ear on samples whose truth is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from livekit import rtc

from labvoice.caller import ear
from labvoice.caller.ear import SAMPLE_RATE_HZ, Listener
from labvoice.settings import load_settings
from labvoice.speech import utterances as voice
from labvoice.speech.detection import find_speech, resample

FRAME_S = 0.01
FRAME = int(SAMPLE_RATE_HZ * FRAME_S)


def feed(listener: Listener, *parts: tuple[float, float]) -> None:
    """Feeds (seconds, amplitude 0..1) pieces of a 200 Hz tone, from instant 0."""
    at_s = listener.heard_s
    for seconds, amplitude in parts:
        for _ in range(round(seconds / FRAME_S)):
            at_s += FRAME_S
            listener.feed(tone(amplitude), at_s)


def tone(amplitude: float) -> npt.NDArray[np.int16]:
    phase = np.arange(FRAME) / SAMPLE_RATE_HZ * 2 * np.pi * 200
    return (np.sin(phase) * amplitude * 32767).astype(np.int16)


def test_silence_and_codec_noise_are_not_voice() -> None:
    """Silence, and noise at -66 dBFS, never make an onset."""
    listener = Listener()
    feed(listener, (1.0, 0.0), (1.0, 0.0005))
    assert listener.voices == []
    assert listener.silent


def test_onset_is_dated_by_the_first_voiced_frame() -> None:
    """An onset needs three frames but is dated by the first of them."""
    listener = Listener()
    feed(listener, (0.5, 0.0), (0.3, 0.3))
    assert abs(listener.voices[0].start_s - 0.51) < 1e-6
    assert not listener.silent


async def test_what_is_kept_of_a_voice_begins_when_the_voice_is_dated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recording lays what arrives at once where the live marks have it, to 10 ms."""
    taken = [np.concatenate([tone(0.0)] * 5)] * 20 + [np.concatenate([tone(0.3)] * 5)] * 10

    class Stream:
        async def __aiter__(self) -> AsyncIterator[SimpleNamespace]:
            for samples in taken:
                yield SimpleNamespace(frame=SimpleNamespace(data=samples.tobytes()))

        async def aclose(self) -> None: ...

    kept: list[tuple[npt.NDArray[np.int16], float]] = []
    began = asyncio.Event()
    monkeypatch.setattr(rtc.AudioStream, "from_track", lambda **_: Stream())
    monkeypatch.setattr(ear, "wake_for_own_frames", lambda _: None)
    listener = Listener(began.set, lambda _, samples, at_s: kept.append((samples, at_s)))
    listener.listen(cast("rtc.Track", SimpleNamespace(sid="TR_1")))
    async with asyncio.timeout(5):
        await began.wait()
    onset = next(at_s for samples, at_s in kept if samples.any())
    assert listener.voices[0].start_s == pytest.approx(onset, abs=1e-6)
    await listener.aclose()


def test_frames_that_arrive_together_are_dated_as_one_by_one() -> None:
    """A voice that begins and ends amid 50 ms of sound has the same edges as in frames of 10 ms."""
    parts = [(37, 0.0), (31, 0.3), (66, 0.0), (43, 0.2), (53, 0.0)]
    frames = [tone(amplitude) for count, amplitude in parts for _ in range(count)]
    heard = []
    for taken in (1, 5):
        listener = Listener()
        for last in range(taken, len(frames) + 1, taken):
            listener.feed(np.concatenate(frames[last - taken : last]), last * FRAME_S)
        heard.append([(each.start_s, each.end_s, each.ended) for each in listener.voices])
        listener.close()
    assert len(heard[0]) == 2
    np.testing.assert_allclose(heard[0], heard[1], atol=1e-9)


def test_a_click_is_not_voice() -> None:
    """Two loud frames are a click."""
    listener = Listener()
    feed(listener, (0.2, 0.0), (0.02, 0.9), (0.5, 0.0))
    assert listener.voices == []


def test_a_pause_between_sentences_does_not_split_a_voice() -> None:
    """Voice goes on over a pause of 0.3 s and ends after 0.4 s of silence."""
    listener = Listener()
    feed(listener, (0.5, 0.0), (0.5, 0.3), (0.3, 0.0), (0.5, 0.3))
    assert len(listener.voices) == 1
    assert not listener.silent
    feed_from = listener.voices[0].end_s
    for step in range(1, 45):
        listener.feed(tone(0.0), feed_from + step * FRAME_S)
    assert listener.silent
    assert abs(listener.voices[0].end_s - 1.8) < 1e-6


def _hear(samples: npt.NDArray[np.int16]) -> Listener:
    listener = Listener()
    for number, frame in enumerate(samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)):
        listener.feed(frame, (number + 1) * FRAME_S)
    return listener


@pytest.mark.parametrize(
    ("bed", "within_s"),
    [("nothing", 0.03), ("offset", 0.03), ("hum", 0.06), ("noise", 0.17)],
)
def test_both_ends_of_a_latency_are_found_by_one_rule(bed: str, within_s: float) -> None:
    """What is heard begins and ends where an utterance of the same samples does.

    An offset, hum and noise of -30 dBFS under the voice, all along, are not voice.
    """
    clause = voice.human_utterances(load_settings())[0]
    scaled = resample(clause.samples, voice.SAMPLE_RATE, SAMPLE_RATE_HZ).astype(np.float64)
    silence = np.zeros(SAMPLE_RATE_HZ)
    clean = np.concatenate([silence, scaled * (3277 / np.std(scaled)), silence])
    t = np.arange(len(clean)) / SAMPLE_RATE_HZ
    beds = {
        "nothing": np.zeros(len(clean)),
        "offset": np.full(len(clean), 983.0),
        "hum": np.sin(2 * np.pi * 50 * t) * 32768 * 10 ** (-32 / 20),
        "noise": np.random.default_rng(0).normal(0, 1036, len(clean)),
    }
    truth = find_speech(np.clip(clean, -32768, 32767).astype(np.int16), SAMPLE_RATE_HZ)
    assert truth is not None
    listener = _hear(np.clip(clean + beds[bed], -32768, 32767).astype(np.int16))
    (heard,) = listener.voices
    assert heard.ended
    assert abs(heard.start_s - truth.first / SAMPLE_RATE_HZ) <= within_s
    assert abs(heard.end_s - truth.last / SAMPLE_RATE_HZ) <= within_s
    assert bool(heard.doubt) == (bed == "noise")


def test_noise_alone_is_not_voice() -> None:
    """A track that carries steady noise of -40 dBFS from its first frame is heard as silent."""
    noise = np.random.default_rng(0).normal(0, 328, 5 * SAMPLE_RATE_HZ).astype(np.int16)
    listener = _hear(noise)
    assert listener.voices == []
    assert listener.silent
