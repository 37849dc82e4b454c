"""The caller's utterances: every form of recording that is taken, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from scipy.signal import resample_poly

from labvoice.errors import AudioFormatError, UsageError
from labvoice.lab import Lab
from labvoice.settings import load_settings
from labvoice.speech import utterances as voice

Array = npt.NDArray[Any]


def _tone(rate: int, seconds: float = 0.5, frequency: float = 440.0) -> voice.Pcm:
    wave = np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)
    return (wave * 12000).astype(np.int16)


def _assert_is_the_tone(got: voice.Utterance) -> None:
    assert got.sample_rate == voice.SAMPLE_RATE
    assert got.samples.dtype == np.int16
    assert got.samples.ndim == 1
    assert got.duration_s == pytest.approx(0.5, abs=0.001)
    spectrum = np.abs(np.fft.rfft(got.samples))
    assert spectrum.argmax() / got.duration_s == pytest.approx(440, abs=3)
    assert np.abs(got.samples).max() == pytest.approx(12000, rel=0.1)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000, 88200, 192000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_rate_is_brought_to_one_form(tmp_path: Path, rate: int, channels: int) -> None:
    """A recording of any rate, mono or twice the same, becomes mono at 48 kHz."""
    path = tmp_path / "in.wav"
    soundfile.write(path, np.column_stack([_tone(rate)] * channels), rate)
    got = voice.load_wav(path)
    _assert_is_the_tone(got)
    assert got.source == "file"
    assert ("mixed" in got.notice) == (channels == 2)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        *((f"{subtype}.wav", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")),
        *((f"{subtype}.wav", subtype) for subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")),
        ("a.flac", "PCM_16"),
        ("a.ogg", "VORBIS"),
        ("a.aiff", "PCM_16"),
    ],
)
def test_every_encoding_is_read(tmp_path: Path, name: str, subtype: str) -> None:
    """What soundfile reads is spoken, at the level that it was recorded with."""
    path = tmp_path / name
    soundfile.write(path, _tone(48000) / 32768, 48000, subtype=subtype)
    _assert_is_the_tone(voice.load_wav(path))


@pytest.mark.parametrize(
    ("form", "rate"),
    [
        (lambda x: x, 48000),
        (lambda x: np.round(resample_poly(x.astype(float), 1, 2)).astype(np.int16), 24000),
        (lambda x: np.round(resample_poly(x.astype(float), 1, 3)).astype(np.int16), 16000),
        (lambda x: x.astype(np.float32) / 32768, 48000),
        (lambda x: x.astype(np.float64) / 32768, 48000),
        (lambda x: x.astype(np.int32) << 16, 48000),
        (lambda x: (x // 256 + 128).astype(np.uint8), 48000),
        (lambda x: x[:, None], 48000),
        (lambda x: np.column_stack([x, x]), 48000),
    ],
)
def test_samples_of_ones_own_are_converted(form: Any, rate: int) -> None:
    """An utterance's rate, depth and shape are honoured, whatever a synthesiser gives."""
    _assert_is_the_tone(voice.Utterance("a tone", form(_tone(48000)), rate, "mine"))


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (np.zeros((2, 480), np.int16), 48000, r"shape \(2, 480\)"),
        (np.zeros((480, 3), np.int16), 48000, "3 channels"),
        (np.zeros(0, np.int16), 48000, "no samples"),
        (np.zeros(480, np.int64), 48000, "type int64"),
        (np.zeros(480, np.bool_), 48000, "type bool"),
        (np.full(480, np.nan), 48000, "NaN"),
        (np.full(480, 12000.0), 48000, "reach 12000, where 1.0 is full scale"),
        (np.zeros(480, np.int16), 0, "0 samples per second"),
        (np.zeros(480, np.int16), 48000.5, "48000.5 samples per second"),
    ],
)
def test_samples_of_no_known_form_are_refused(samples: Array, rate: Any, words: str) -> None:
    """What cannot be told to be audio is refused when the utterance is made, with a hint."""
    with pytest.raises(AudioFormatError, match=words) as caught:
        voice.Utterance("", samples, rate, "mine")
    assert caught.value.hint


def _stereo(folder: Path, left: Array, right: Array) -> Path:
    path = folder / "stereo.wav"
    soundfile.write(path, np.column_stack([left, right]), 48000)
    return path


def _frequency(got: voice.Utterance) -> float:
    return float(np.abs(np.fft.rfft(got.samples)).argmax() / got.duration_s)


def test_two_different_channels_need_a_choice(tmp_path: Path) -> None:
    """A caller on the left and an agent on the right are not mixed: the user chooses."""
    silence = np.zeros(24000, np.int16)
    left = np.concatenate([_tone(48000), silence])
    right = np.concatenate([silence, _tone(48000, frequency=1000)])
    path = _stereo(tmp_path, left, right)
    with pytest.raises(AudioFormatError, match="two channels differ") as caught:
        voice.load_wav(path)
    assert "--channel left" in caught.value.hint
    with pytest.raises(AudioFormatError, match="two channels differ"):
        voice.Utterance("", np.column_stack([left, right]), 48000, "mine")
    chosen = voice.load_wav(path, "left")
    assert _frequency(chosen) == pytest.approx(440, abs=3)
    assert chosen.notice == "only the left one of two channels is used"
    assert _frequency(voice.load_wav(path, "right")) == pytest.approx(1000, abs=3)
    assert voice.load_wav(path, "mix").notice == "its two channels are mixed"
    with pytest.raises(UsageError, match="no channel 'middle'"):
        voice.load_wav(path, "middle")  # type: ignore[arg-type]


def test_antiphase_does_not_become_silence(tmp_path: Path) -> None:
    """Of a balanced microphone recorded as stereo one channel is said; mixing it is refused."""
    tone = _tone(48000)
    path = _stereo(tmp_path, tone, -tone)
    got = voice.load_wav(path)
    _assert_is_the_tone(got)
    assert "cancel each other" in got.notice
    with pytest.raises(AudioFormatError, match="in antiphase"):
        voice.load_wav(path, "mix")


def test_of_a_silent_channel_the_other_is_said(tmp_path: Path) -> None:
    """A recording of one channel only is said at its own level, and the notice says so."""
    tone = _tone(48000)
    for name, pair in {"left": (tone, tone * 0), "right": (tone * 0, tone)}.items():
        got = voice.load_wav(_stereo(tmp_path, *pair))
        _assert_is_the_tone(got)
        assert f"only the {name} one of two channels is used: the other is silent" in got.notice


def test_two_microphones_of_one_room_are_mixed(tmp_path: Path) -> None:
    """The same sound half a millisecond later in the other channel is the same sound."""
    noise = np.random.default_rng(0).normal(0, 3000, 48000)
    envelope = np.repeat([1.0, 0.1, 1.0, 0.2], 12000)
    sound = resample_poly(noise[:12000], 4, 1) * envelope
    got = voice.load_wav(
        _stereo(tmp_path, sound.astype(np.int16), np.roll(sound, 24).astype(np.int16))
    )
    assert "same audio" in got.notice


@pytest.mark.parametrize("level", [0, 20])
def test_a_silent_recording_is_refused(tmp_path: Path, level: int) -> None:
    """Silence, digital or nearly so, an offset in it or not, is refused before any call."""
    path = tmp_path / "silent.wav"
    noise = np.random.default_rng(0).integers(-level, level + 1, 48000)
    soundfile.write(path, (noise + 900).astype(np.int16), 48000)
    with pytest.raises(AudioFormatError, match="is silent, or too quiet") as caught:
        voice.load_wav(path)
    assert "loudnorm" in caught.value.hint


def test_a_faint_recording_is_spoken(tmp_path: Path) -> None:
    """Forty decibels below full scale is faint, and is taken."""
    path = tmp_path / "faint.wav"
    soundfile.write(path, _tone(48000) // 100, 48000)
    assert voice.load_wav(path).duration_s == pytest.approx(0.5)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A path with no file is an error that names it."""
    with pytest.raises(AudioFormatError, match="is not a file"):
        voice.load_wav(tmp_path / "none.wav")


@pytest.mark.parametrize("name", ["text.wav", "text.raw", "text.m4a"])
def test_what_is_no_audio_is_refused(tmp_path: Path, name: str) -> None:
    """A file that cannot be read is refused, with a way to convert it."""
    path = tmp_path / name
    path.write_text("no audio here")
    with pytest.raises(AudioFormatError, match="not a readable audio file") as caught:
        voice.load_wav(path)
    assert "ffmpeg" in caught.value.hint


def test_empty_file_is_refused(tmp_path: Path) -> None:
    """A recording of no samples is refused."""
    path = tmp_path / "empty.wav"
    soundfile.write(path, np.zeros(0, np.int16), 48000)
    with pytest.raises(AudioFormatError, match="holds no samples"):
        voice.load_wav(path)


def test_a_path_is_told_from_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that names a file, or looks like one, is a path; every other is spoken."""
    monkeypatch.chdir(tmp_path)
    Path("question.wav").write_bytes(b"")
    Path("my question").write_bytes(b"")
    assert voice.audio_file("question.wav") == Path("question.wav")
    assert voice.audio_file("my question") == Path("my question")
    assert voice.audio_file("takes/none.FLAC") == Path("takes/none.FLAC")
    assert voice.audio_file("What is a .wav") is None
    assert voice.audio_file("What is the weather?") is None
    assert voice.audio_file("word " * 2000) is None
    assert voice.audio_file("a\0b") is None


async def test_a_lab_reads_a_path_and_never_speaks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lab.utterance("question.wav")` is the recording; one that is not there is an error."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("question.wav", _tone(16000), 16000)
    lab = Lab(letta=False)
    got = await lab.utterance("question.wav")
    _assert_is_the_tone(got)
    assert got.source == "file"
    stereo = _stereo(tmp_path, _tone(48000), _tone(48000, frequency=880))
    right = await lab.utterance(stereo.name, channel="right")
    assert _frequency(right) == pytest.approx(880, abs=3)
    with pytest.raises(AudioFormatError, match=r"none\.wav is not a file"):
        await lab.utterance("none.wav")
    with pytest.raises(UsageError):
        await lab.utterance("What is the weather?", channel="left")


def test_forty_utterances_are_all_different() -> None:
    """Twenty are read by a person, each of at least a second, and twenty are synthesised."""
    settings = load_settings()
    read = voice.human_utterances(settings, None, "clauses", "short", "passages")
    texts = [*voice.DEFAULT_UTTERANCES, *voice.FURTHER_UTTERANCES]
    assert len({each.text.casefold() for each in read}) == len(read) == 20
    assert len(set(texts)) == len(texts) == 20
    assert all(each.source == "human" and each.duration_s >= 1.0 for each in read)
