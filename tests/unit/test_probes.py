"""Probes of turn-taking: how they are chosen, and what the made sounds are like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from labvoice.errors import UsageError
from labvoice.settings import load_settings
from labvoice.speech import probes
from labvoice.speech.detection import find_speech
from labvoice.speech.probes import (
    PROBES,
    Probe,
    check_probes,
    cough,
    from_afar,
    laugh,
    make_probes,
    mm_hm,
    to_pcm,
)
from labvoice.speech.utterances import SAMPLE_RATE, Utterance


def test_probes_are_chosen_by_name_or_given() -> None:
    """None is all; a probe of the user's stands beside built-in ones."""
    mine = Probe("mine", "vocal_tic", Utterance("", np.ones(480, np.int16), SAMPLE_RATE, "file"))
    assert check_probes("") == list(PROBES)
    assert check_probes("cough, pause") == ["cough", "pause"]
    assert check_probes(["cough", mine]) == ["cough", mine]


@pytest.mark.parametrize("names", ["sneeze", "cough,cough"])
def test_a_wrong_choice_of_probes_is_refused(names: str) -> None:
    """An unknown name and a name given twice are usage errors."""
    with pytest.raises(UsageError):
        check_probes(names)


@pytest.mark.parametrize(
    ("sound", "shortest_s", "longest_s"), [(mm_hm, 0.4, 0.7), (cough, 0.4, 0.8), (laugh, 0.8, 1.3)]
)
def test_a_made_sound_has_a_length_and_a_level(
    sound: Callable[[], np.ndarray], shortest_s: float, longest_s: float
) -> None:
    """It is as long as a person's, loud as speech, never clipped, and the same every time."""
    made = sound()
    assert shortest_s <= len(made) / SAMPLE_RATE <= longest_s
    assert 0.2 < np.abs(made).max() < 0.9
    assert np.sqrt(np.mean(made**2)) > 0.01
    np.testing.assert_array_equal(made, sound())
    # It has no silence around it: its edges are those of the samples, however they decay.
    speech = find_speech(to_pcm(made), SAMPLE_RATE)
    assert speech is not None
    assert speech.first <= 0.01 * SAMPLE_RATE
    assert len(made) - speech.last <= 0.01 * SAMPLE_RATE


def test_a_speaker_says_the_words_of_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is synthesised is in that voice; what is made from a signal is as it was."""
    asked = []

    def synthesize(texts: Sequence[str], *_: object, speaker: str) -> list[Utterance]:
        asked.append(speaker)
        voiced = to_pcm(mm_hm())
        return [Utterance(text, voiced, SAMPLE_RATE, f"voice of {speaker}") for text in texts]

    monkeypatch.setattr(probes, "synthesize_all", synthesize)
    for speaker in ("jm_kumo", "joe"):
        made = make_probes("question,pause,cough", load_settings(), speaker=speaker)
        of_words = [probe for variants in made[:2] for probe in variants]
        assert {probe.utterance.source for probe in of_words} == {f"voice of {speaker}"}
        assert all(probe.source.startswith(f"voice of {speaker}") for probe in of_words)
        assert [probe.source for probe in made[2]] == ["signal"]
    assert set(asked) == {"jm_kumo", "joe"}


def test_speech_from_afar_is_lower() -> None:
    """However loud it was, and longer by the reflections alone."""
    tone = np.round(8000 * np.sin(2 * np.pi * 300 * np.arange(SAMPLE_RATE) / SAMPLE_RATE))
    far = from_afar(tone.astype(np.int16))
    assert SAMPLE_RATE <= len(far) <= SAMPLE_RATE + 0.05 * SAMPLE_RATE
    assert 0.1 < np.abs(far).max() / 32768 < 0.35
    np.testing.assert_allclose(far, from_afar((tone / 4).astype(np.int16)), atol=30)
