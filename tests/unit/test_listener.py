"""The caller's ear on synthetic samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from labvoice.caller.ear import SAMPLE_RATE_HZ, Listener

FRAME_S = 0.01
FRAME = int(SAMPLE_RATE_HZ * FRAME_S)


def feed(listener: Listener, *parts: tuple[float, float]) -> None:
    """Feeds (seconds, amplitude 0..1) pieces of a 200 Hz tone, from instant 0."""
    at_s = listener.started_s
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


def test_a_click_is_not_voice() -> None:
    """Two loud frames are a click."""
    listener = Listener()
    feed(listener, (0.2, 0.0), (0.02, 0.9), (0.5, 0.0))
    assert listener.voices == []


def test_a_pause_between_sentences_does_not_split_a_voice() -> None:
    """Voice goes on over a pause of 0.3 s and ends after 0.4 s of silence."""
    listener = Listener()
    feed(listener, (0.5, 0.3), (0.3, 0.0), (0.5, 0.3))
    assert len(listener.voices) == 1
    assert not listener.silent
    feed_from = listener.voices[0].end_s
    for step in range(1, 45):
        listener.feed(tone(0.0), feed_from + step * FRAME_S)
    assert listener.silent
    assert abs(listener.voices[0].end_s - 1.3) < 1e-6


def test_onset_since_looks_only_after_the_instant() -> None:
    """A voice that began before the instant is not the reply."""
    listener = Listener()
    feed(listener, (0.2, 0.3), (0.6, 0.0), (0.2, 0.3))
    first, second = (voice.start_s for voice in listener.voices)
    assert listener.onset_since(0.0) == first
    assert listener.onset_since(first + 0.001) == second
    assert listener.onset_since(second + 0.001) is None
