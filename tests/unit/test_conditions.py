"""Noise and line of a caller: levels and bands are what they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from labvoice.errors import LabvoiceError
from labvoice.speech.conditions import NOISES, at_snr, noise, telephone
from labvoice.speech.utterances import SAMPLE_RATE, Pcm, Utterance, speech_bounds


def tone(hz: float, seconds: float = 1.0, amplitude: float = 8000) -> Pcm:
    """A sine."""
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.asarray(amplitude * np.sin(2 * np.pi * hz * at), np.int16)


def rms(samples: Pcm) -> float:
    """The level of samples."""
    return float(np.sqrt(np.mean(np.square(samples.astype(float)))))


@pytest.mark.parametrize(("hz", "share"), [(100, 0.1), (1000, 1.0), (6000, 0.05)])
def test_a_telephone_line_carries_its_band(hz: float, share: float) -> None:
    """300 to 3400 Hz pass, what is below and above does not, and nothing moves."""
    sent = tone(hz)
    heard = telephone(sent)
    assert len(heard) == len(sent)
    assert rms(heard) / rms(sent) == pytest.approx(share, abs=0.1)


def test_a_telephone_line_moves_no_edge() -> None:
    """The marks of speech are valid for what was sent over the line too."""
    silence = np.zeros(SAMPLE_RATE // 2, np.int16)
    sent = np.concatenate([silence, tone(800), silence])
    before, after = speech_bounds(sent, SAMPLE_RATE), speech_bounds(telephone(sent), SAMPLE_RATE)
    assert before is not None
    assert after is not None
    assert np.allclose(before, after, atol=0.02 * SAMPLE_RATE)


def test_noise_has_the_level_that_is_asked_for() -> None:
    """Its RMS is so many decibels below that of the speech."""
    speech = Utterance("", tone(500), SAMPLE_RATE, "file")
    white = np.random.default_rng(1).normal(0, 1000, SAMPLE_RATE).astype(np.int16)
    around = at_snr(white, speech, 15)
    assert 20 * np.log10(rms(speech.samples) / rms(around)) == pytest.approx(15, abs=0.5)


@pytest.mark.parametrize("kind", NOISES)
def test_the_noises_are_there(kind: str) -> None:
    """Each is a recording of some seconds."""
    assert len(noise(kind)) > 5 * SAMPLE_RATE


def test_a_noise_file_of_another_rate_is_resampled(tmp_path: Path) -> None:
    """It lasts as long as before."""
    soundfile.write(tmp_path / "hum.wav", tone(500)[::6], SAMPLE_RATE // 6)
    assert len(noise("hum.wav", tmp_path)) == pytest.approx(SAMPLE_RATE, rel=0.01)


def test_an_unknown_noise_is_refused(tmp_path: Path) -> None:
    """With those that there are."""
    with pytest.raises(LabvoiceError, match="street"):
        noise("war", tmp_path)
