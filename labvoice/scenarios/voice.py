"""Audio of a scenario's caller: synthesised texts, recordings, noise, telephone band."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from labvoice.errors import LabvoiceError
from labvoice.scenarios.file import ScenarioFile
from labvoice.scenarios.lines import ScenarioError
from labvoice.scenarios.model import PAUSE_S, PAUSE_SIGN, Play, Say
from labvoice.settings import Settings
from labvoice.speech.conditions import Conditions
from labvoice.speech.probes import SOUNDS, to_pcm
from labvoice.speech.utterances import (
    DEFAULT_SPEAKER,
    SAMPLE_RATE,
    Pcm,
    Utterance,
    check_speaker,
    load_wav,
    synthesize_all,
)

_T = TypeVar("_T")
_ENGINE: Final = re.compile("^(kokoro|piper)/")
_SAMPLE_TEXT: Final = "Hello, this is a test of my voice."
"""Sets the level of the noise where a language model chooses the caller's words."""


@dataclass(frozen=True)
class Caller:
    """What a scenario's caller says, ready to be played.

    Attributes:
        sounds: By the number of the step, from 0.
        background: Sound around the caller, shape (n,); empty for none.
        conditions: How it sounds.
        speak: Makes an utterance of a text that was not known before; blocks.
    """

    sounds: dict[int, Utterance]
    background: Pcm
    conditions: Conditions
    speak: Callable[[str], Utterance]


def prepare_caller(
    file: ScenarioFile, settings: Settings, progress: Callable[[str], None] = lambda _: None
) -> Caller:
    """Synthesises and reads all that the caller says; blocks.

    Raises:
        ScenarioError: A file is missing or cannot be used, there is no such speaker, or a text
            has nothing that can be spoken; with file and line.
        WeightsError: The voice's weights could not be obtained.
    """
    voice = file.scenario.voice
    speaker = _ENGINE.sub("", voice.speaker or DEFAULT_SPEAKER)
    _checked(file, ("voice", "speaker"), lambda: check_speaker(speaker))
    conditions = Conditions(
        noise=voice.noise.kind if voice.noise else None,
        snr_db=voice.noise.snr_db if voice.noise else 0.0,
        line=voice.line,
        microphone=voice.microphone,
        echo_db=voice.echo_db,
    )

    def speak(text: str) -> Utterance:
        parts = [part.strip() for part in text.split(PAUSE_SIGN)]
        spoken = iter(
            synthesize_all(
                [part for part in parts if part],
                settings,
                progress,
                speaker=speaker,
                speed=voice.speed,
            )
        )
        pause = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.int16)
        pieces: list[Pcm] = []
        for number, part in enumerate(parts):
            pieces += [pause] if number else []
            pieces += [next(spoken).samples] if part else []
        words = " ".join(part for part in parts if part)
        return Utterance(words, conditions.sent(np.concatenate(pieces)), SAMPLE_RATE, "kokoro")

    def read(step: Play, number: int) -> Utterance:
        if step.play in SOUNDS:
            samples = conditions.sent(to_pcm(SOUNDS[step.play]()))
            return Utterance(step.text, samples, SAMPLE_RATE, "signal")
        recorded = load_wav(file.find(step.play, "steps", number))
        samples = conditions.sent(recorded.samples)
        return Utterance(step.text, samples, SAMPLE_RATE, "file", recorded.notice)

    sounds: dict[int, Utterance] = {}
    for number, step in enumerate(file.scenario.steps):
        at = ("steps", number)
        if isinstance(step, Say):
            sounds[number] = _checked(file, at, lambda text=step.say: speak(text))  # type: ignore[misc]
        elif isinstance(step, Play):
            sounds[number] = _checked(file, at, lambda step=step, number=number: read(step, number))  # type: ignore[misc]
    background = np.zeros(0, np.int16)
    if voice.noise is not None:
        folder = None if file.path is None else file.path.parent
        speech = next(iter(sounds.values()), None) or speak(_SAMPLE_TEXT)
        background = _checked(
            file, ("voice", "noise"), lambda: conditions.around(speech, settings, folder, progress)
        )
    return Caller(sounds, background, conditions, speak)


def _checked(file: ScenarioFile, place: tuple[str | int, ...], make: Callable[[], _T]) -> _T:
    """Calls `make`; a user's error gets the scenario's file and line."""
    try:
        return make()
    except ScenarioError:
        raise
    except LabvoiceError as error:
        raise file.refusal(error.observed, error.hint, *place) from None
