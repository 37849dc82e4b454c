"""The caller's utterances: bounds of speech, and the WAV files that are taken or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from labvoice.errors import AudioFormatError
from labvoice.speech import utterances as voice


def _tone(rate: int, seconds: float) -> voice.Pcm:
    wave = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return (wave * 12000).astype(np.int16)


def test_speech_bounds_find_the_voiced_part() -> None:
    """The first and last voiced sample are found to 5 ms, faint noise around notwithstanding."""
    noise = np.random.default_rng(0).integers(-20, 20, 48000).astype(np.int16)
    samples = noise.copy()
    samples[9600:28800] = _tone(48000, 0.4)
    bounds = voice.speech_bounds(samples, 48000)
    assert bounds is not None
    assert abs(bounds[0] - 9600) <= 240
    assert abs(bounds[1] - 28799) <= 240


def test_speech_bounds_of_silence_are_none() -> None:
    """Where there is no sound there are no bounds, and an all-voiced clip is voiced to its end."""
    assert voice.speech_bounds(np.zeros(4800, np.int16), 48000) is None
    assert voice.speech_bounds(np.zeros(0, np.int16), 48000) is None
    assert voice.speech_bounds(np.full(1001, 500, np.int16), 48000) == (0, 1000)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_wav_is_brought_to_one_form(tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    """PCM of any common rate and depth, mono or stereo, becomes mono at 48 kHz."""
    path = tmp_path / "in.wav"
    tone = _tone(rate, 0.5)
    soundfile.write(path, np.column_stack([tone] * channels), rate, subtype=subtype)
    got = voice.load_wav(path)
    assert got.sample_rate == voice.SAMPLE_RATE
    assert got.source == "file"
    assert got.duration_s == pytest.approx(0.5, abs=0.001)
    spectrum = np.abs(np.fft.rfft(got.samples))
    assert spectrum.argmax() / got.duration_s == pytest.approx(440, abs=3)
    assert np.abs(got.samples).max() == pytest.approx(12000, rel=0.1)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A path with no file is an error that names it."""
    with pytest.raises(AudioFormatError, match="is not a file"):
        voice.load_wav(tmp_path / "none.wav")


def test_text_file_is_refused(tmp_path: Path) -> None:
    """A file that only calls itself WAV is refused."""
    path = tmp_path / "text.wav"
    path.write_text("no audio here")
    with pytest.raises(AudioFormatError, match="is not a WAV file"):
        voice.load_wav(path)


def test_empty_wav_is_refused(tmp_path: Path) -> None:
    """A WAV file of no samples is refused."""
    path = tmp_path / "empty.wav"
    soundfile.write(path, np.zeros(0, np.int16), 48000)
    with pytest.raises(AudioFormatError, match="holds no samples"):
        voice.load_wav(path)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    """WAV that is not PCM, and audio that is not WAV, are refused by what they hold."""
    for name, subtype in (("float.wav", "FLOAT"), ("law.wav", "ULAW"), ("a.flac", "PCM_16")):
        path = tmp_path / name
        soundfile.write(path, _tone(48000, 0.1), 48000, subtype=subtype)
        with pytest.raises(AudioFormatError, match=f"{subtype}, not PCM WAV"):
            voice.load_wav(path)


def test_odd_channels_and_rates_are_refused(tmp_path: Path) -> None:
    """More than two channels, and a rate that no recorder has, are refused."""
    path = tmp_path / "odd.wav"
    soundfile.write(path, np.column_stack([_tone(48000, 0.1)] * 3), 48000)
    with pytest.raises(AudioFormatError, match="3 channels"):
        voice.load_wav(path)
    soundfile.write(path, _tone(48000, 0.1), 12345)
    with pytest.raises(AudioFormatError, match="12345 samples per second"):
        voice.load_wav(path)
