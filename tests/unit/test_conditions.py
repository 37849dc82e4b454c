"""Noise and line of a caller: levels and bands are what they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from labvoice.bench.arms import CONNECT_ARMS, choose, with_conditions
from labvoice.cli.agents import VoiceOptions
from labvoice.errors import LabvoiceError, UsageError
from labvoice.settings import load_settings
from labvoice.speech.conditions import NOISES, Conditions, at_snr, far, noise, telephone
from labvoice.speech.detection import find_speech
from labvoice.speech.utterances import SAMPLE_RATE, Pcm, Utterance


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
    before, after = find_speech(sent, SAMPLE_RATE), find_speech(telephone(sent), SAMPLE_RATE)
    assert before is not None
    assert after is not None
    moved = (after.first - before.first, after.last - before.last)
    assert np.allclose(moved, 0, atol=0.02 * SAMPLE_RATE)


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


def test_a_far_microphone_hears_the_room_after_the_word() -> None:
    """Its loudest sample is that of the speech; the rest fades by 60 dB in half a second."""
    word = np.random.default_rng(1).normal(0, 2000, SAMPLE_RATE // 3).astype(np.int16)
    heard = far(word)
    assert np.abs(heard).max() == pytest.approx(np.abs(word).max(), rel=0.01)
    after = heard[len(word) :]
    assert len(after) == pytest.approx(0.5 * SAMPLE_RATE, abs=1)
    tenth = SAMPLE_RATE // 10
    fading = 20 * np.log10(rms(after[:tenth]) / rms(after[2 * tenth : 3 * tenth]))
    assert fading == pytest.approx(24, abs=8)


def test_a_quiet_caller_is_left_as_it_is() -> None:
    """Without microphone and line nothing is computed; with noise alone, only around it."""
    speech = Utterance("hello", tone(500), SAMPLE_RATE, "file")
    assert Conditions().spoken(speech) is speech
    assert not len(Conditions().around(speech, load_settings()))
    around = Conditions("street", 10).around(speech, load_settings())
    assert 20 * np.log10(rms(speech.samples) / rms(around)) == pytest.approx(10, abs=0.5)
    assert Conditions(line="telephone").spoken(speech).text == "hello"


@pytest.mark.parametrize(
    "wrong",
    [
        {"line": "isdn"},
        {"microphone": "near"},
        {"snr": "loud"},
        {"snr": "900"},
        {"echo": "-1"},
        {"speaker": "nobody"},
    ],
)
def test_a_sound_that_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    """An unknown line or speaker, and a level that is none, are usage errors."""
    with pytest.raises(UsageError):
        Conditions.of(**wrong)


def test_a_speaker_says_every_text() -> None:
    """Two accents say the same words in voices of their own; words that are unknown are refused."""
    settings = load_settings()
    words = Utterance("Which bus goes to the city centre?", tone(500), SAMPLE_RATE, "human")
    said = [Conditions(speaker=name).voiced([words], settings)[0] for name in ("joe", "jm_kumo")]
    assert [each.text for each in said] == [words.text] * 2
    assert [each.source for each in said] == ["piper", "kokoro"]
    assert all(1 < each.duration_s < 4 for each in said)
    assert all(rms(each.samples) > 100 for each in said)
    assert said[0].duration_s != said[1].duration_s
    assert Conditions().voiced([words], settings) == [words]
    with pytest.raises(UsageError, match="words of a recording are not known"):
        Conditions(speaker="joe").voiced([Utterance("", tone(500), SAMPLE_RATE, "file")], settings)


def test_options_of_one_arm_stand_beside_those_of_all() -> None:
    """What an arm's name stands before is that arm's, on top of what is every arm's."""
    given = VoiceOptions(noise=["street", "token:crowd"], snr=["10"], echo=["token:30"])
    arms = choose("ahead,token", CONNECT_ARMS)
    ahead, token = with_conditions(arms, given.of(["ahead", "token"]))
    assert str(ahead.conditions) == "noise street at 10 dB"
    assert str(token.conditions) == "noise crowd at 10 dB, echo at -30 dB"
    assert with_conditions(arms, VoiceOptions().of()) == arms
    with pytest.raises(UsageError, match="no arm 'other'"):
        with_conditions(arms, {"other": Conditions()})
