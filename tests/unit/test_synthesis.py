"""The embedded voice as LiveKit's TTS: how far it computes ahead."""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from labvoice.speech.piper import Piper
from labvoice.speech.synthesis import PiperTTS

RATE_HZ = 16000
CHUNK_S = 0.1
CHUNKS = 12


class _Counting(Piper):
    """Speaks noise, and notes when each chunk was asked for."""

    def __init__(self) -> None:
        self.sample_rate = RATE_HZ
        self.asked_s: list[float] = []

    def speak(self, text: str, *, cut_lead_in: bool) -> Iterator[npt.NDArray[np.int16]]:
        for _ in range(CHUNKS):
            self.asked_s.append(time.monotonic())
            yield np.full(round(CHUNK_S * RATE_HZ), 1000, np.int16)


@pytest.mark.parametrize("ahead_s", [0.3, np.inf])
async def test_the_voice_computes_no_further_ahead_than_it_is_told(ahead_s: float) -> None:
    """What is spoken is whole, and no chunk is asked for while so much audio is ahead."""
    voice = _Counting()
    synthesiser = PiperTTS(voice)
    synthesiser.ahead_s = ahead_s
    async with synthesiser.stream() as stream:
        stream.push_text("One clause.")
        stream.end_input()
        spoken_s = sum([audio.frame.duration async for audio in stream])
    assert spoken_s == pytest.approx(CHUNKS * CHUNK_S, abs=0.001)
    assert len(voice.asked_s) == CHUNKS
    for before, asked_s in enumerate(voice.asked_s):
        assert before * CHUNK_S - (asked_s - voice.asked_s[0]) <= ahead_s + 0.001
