"""Where speech begins and ends, on samples whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from labvoice.settings import load_settings
from labvoice.speech import utterances as voice
from labvoice.speech.detection import find_speech
from labvoice.speech.weights import require

RATE = 48000
_BEFORE_S = 0.5
_AFTER_S = 3.0


@pytest.fixture(scope="module")
def question() -> npt.NDArray[np.int16]:
    """A sentence of a recorded person, at the level of a usual recording (-20 dBFS)."""
    path = require("human-speech", load_settings()) / "two_cities.wav"
    samples, rate = soundfile.read(path, start=0, frames=round(4.58 * 48000), dtype="float64")
    clause = voice.Utterance("", samples[round(1.17 * rate) : round(4.58 * rate)], rate, "human")
    scaled = clause.samples * (3277 / np.std(clause.samples))
    return np.asarray(np.clip(scaled, -32768, 32767), np.int16)


def _bed(name: str, n: int) -> Any:
    t = np.arange(n) / RATE
    if name.startswith("noise"):
        level = 10 ** (float(name.split()[1]) / 20) * 32768
        return np.random.default_rng(0).normal(0, level, n)
    if name == "hum":
        return np.sin(2 * np.pi * 50 * t) * 32768 * 10 ** (-32 / 20)
    if name == "offset":
        return np.full(n, 983)
    click = np.zeros(n)
    # 0.2 s after the last word, or that much before the end of the file.
    start = n - round((_AFTER_S if name == "click near" else 0.4) * RATE) + round(0.2 * RATE)
    click[start : start + 200] = 9000
    return click


def _in_silence(question: npt.NDArray[np.int16], bed: str) -> npt.NDArray[np.int16]:
    clean = np.concatenate(
        [np.zeros(round(_BEFORE_S * RATE)), question, np.zeros(round(_AFTER_S * RATE))]
    )
    return np.asarray(np.clip(clean + _bed(bed, len(clean)), -32768, 32767), np.int16)


@pytest.mark.parametrize(
    ("bed", "within_s"),
    [
        ("noise -50", 0.03),
        ("noise -40", 0.15),
        ("noise -30", 0.15),
        ("hum", 0.03),
        ("offset", 0.01),
        ("click", 0.01),
        ("click near", 0.01),
    ],
)
def test_the_last_word_ends_speech(
    question: npt.NDArray[np.int16], bed: str, within_s: float
) -> None:
    """Noise, hum, an offset or a click after the last word does not move the edges of speech."""
    clean = find_speech(_in_silence(question, "noise -120"), RATE)
    found = find_speech(_in_silence(question, bed), RATE)
    assert clean is not None
    assert found is not None
    assert clean.doubt == ""
    assert abs(clean.first / RATE - _BEFORE_S) <= 0.06
    assert abs(clean.last / RATE - (_BEFORE_S + len(question) / RATE)) <= 0.06
    assert abs(found.first - clean.first) / RATE <= within_s
    assert abs(found.last - clean.last) / RATE <= within_s


def test_noise_makes_the_edges_doubtful(question: npt.NDArray[np.int16]) -> None:
    """Noise that hides the faint end of a word is told, with both levels."""
    found = find_speech(_in_silence(question, "noise -30"), RATE)
    assert found is not None
    assert "the noise is -3" in found.doubt


def test_where_nobody_speaks_the_loud_part_counts() -> None:
    """A tone in faint noise is found to 5 ms, and it is said that it is no speech."""
    samples = np.random.default_rng(0).integers(-20, 20, 48000).astype(np.int16)
    wave = np.sin(2 * np.pi * 440 * np.arange(19200) / RATE) * 12000
    samples[9600:28800] = wave.astype(np.int16)
    found = find_speech(samples, RATE)
    assert found is not None
    assert abs(found.first - 9600) <= 240
    assert abs(found.last - 28799) <= 480
    assert "no speech" in found.doubt


def test_silence_has_no_speech() -> None:
    """Where there is no sound there is nothing to find, an offset notwithstanding."""
    assert find_speech(np.zeros(4800, np.int16), RATE) is None
    assert find_speech(np.zeros(0, np.int16), RATE) is None
    assert find_speech(np.full(4801, 500, np.int16), RATE) is None


def test_a_steady_sound_lasts_to_its_end() -> None:
    """A clip that is loud throughout is voiced from its first to its last sample."""
    wave = np.sin(2 * np.pi * 440 * np.arange(9600) / RATE) * 12000
    speech = find_speech(wave.astype(np.int16), RATE)
    assert speech is not None
    assert (speech.first, speech.last) == (0, 9599)


def test_an_utterance_of_silence_doubts_itself() -> None:
    """Silence that is said on purpose counts from its first sample to its last."""
    silence = voice.Utterance("", np.zeros(4800, np.int16), RATE, "mine")
    assert (silence.speech.first, silence.speech.last) == (0, 4799)
    assert "silent" in silence.speech.doubt
