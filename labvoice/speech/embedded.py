"""The embedded recogniser and synthesiser, loaded and warmed up once per process."""

from __future__ import annotations

from typing import Final

import numpy as np

from labvoice.settings import Settings
from labvoice.speech.engines import MOONSHINES
from labvoice.speech.graded import stands_alone
from labvoice.speech.moonshine import SAMPLE_RATE, Moonshine
from labvoice.speech.piper import Piper
from labvoice.speech.recognition import MoonshineSTT
from labvoice.speech.synthesis import PiperTTS
from labvoice.speech.weights import WeightName, require

_VOICE: Final[WeightName] = "piper-joe"
_moonshines: dict[str, Moonshine] = {}
_pipers: list[Piper] = []
"""Loaded before the fork; handed to the first user."""


def preload_moonshine(settings: Settings, size: str) -> None:
    """Loads the recogniser's weights for the processes that will be forked from this one.

    They share the memory. A fork does not copy threads, so none may be started here: the models run
    on the caller's thread, and espeak-ng, which starts one, is loaded after the fork.

    Raises:
        WeightsError: The weights cannot be had.
        ModelError: They cannot be loaded.
    """
    _moonshines[size] = _moonshine(settings, size)


def preload_piper(settings: Settings) -> None:
    """Loads the voice's weights in the same way."""
    _pipers.append(Piper(require(_VOICE, settings)))


def load_moonshine(settings: Settings, size: str = "base") -> MoonshineSTT:
    """Loads the recogniser and runs it once.

    Args:
        settings: Where weights are kept.
        size: Of the model: `base` or `tiny`.

    Raises:
        WeightsError: Its weights cannot be had.
        ModelError: They cannot be loaded.
    """
    model = _moonshines.pop(size, None) or _moonshine(settings, size)
    return MoonshineSTT(
        model,
        f"moonshine-{size}-en",
        early=settings.preflight == "speech",
        ended=stands_alone if settings.turn_detector == "smart-turn" else None,
    )


def _moonshine(settings: Settings, size: str) -> Moonshine:
    model = Moonshine(require(MOONSHINES[size], settings))
    model.transcribe(np.zeros(SAMPLE_RATE, np.int16))
    return model


def load_piper(settings: Settings) -> PiperTTS:
    """Loads the voice and synthesises a word as a warm-up.

    Raises:
        WeightsError: Its weights cannot be had.
        ModelError: They cannot be loaded, or espeak-ng is missing.
    """
    voice = _pipers.pop() if _pipers else Piper(require(_VOICE, settings))
    for _ in voice.speak("Hello.", cut_lead_in=True):
        pass
    return PiperTTS(voice)
