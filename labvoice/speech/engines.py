"""Loads the embedded speech: recogniser and synthesiser, warm, for a process to keep."""

from __future__ import annotations

import numpy as np

from labvoice.settings import Settings
from labvoice.speech.moonshine import SAMPLE_RATE, Moonshine
from labvoice.speech.piper import Piper
from labvoice.speech.recognition import MoonshineSTT
from labvoice.speech.synthesis import PiperTTS
from labvoice.speech.weights import require

__all__ = ["MoonshineSTT", "PiperTTS", "load_stt", "load_tts", "preload"]

_moonshines: list[Moonshine] = []
_pipers: list[Piper] = []
"""Loaded before this process was forked, for the first who asks."""


def preload(settings: Settings) -> None:
    """Loads the weights for the processes that will be forked from this one.

    They share the memory and need not load it. No thread may be there that they would miss: the
    models run on the caller's, and espeak-ng, which starts one, is left to them.

    Raises:
        WeightsError: The weights cannot be had.
        ModelError: They cannot be loaded.
    """
    _moonshines.append(_moonshine(settings))
    _pipers.append(Piper(require("piper-joe", settings)))


def load_stt(settings: Settings) -> MoonshineSTT:
    """Loads the recogniser of `settings.stt` and runs it once.

    Raises:
        WeightsError: Its weights cannot be had.
        ModelError: They cannot be loaded.
    """
    model = _moonshines.pop() if _moonshines else _moonshine(settings)
    return MoonshineSTT(model, f"moonshine-{settings.stt}-en")


def _moonshine(settings: Settings) -> Moonshine:
    model = Moonshine(
        require("moonshine-base" if settings.stt == "base" else "moonshine-tiny", settings)
    )
    model.transcribe(np.zeros(SAMPLE_RATE, np.int16))
    return model


def load_tts(settings: Settings) -> PiperTTS:
    """Loads the voice and has it say a few words to nobody.

    Raises:
        WeightsError: Its weights cannot be had.
        ModelError: They cannot be loaded, or espeak-ng is missing.
    """
    voice = _pipers.pop() if _pipers else Piper(require("piper-joe", settings))
    for _ in voice.speak("Hello there, how are you?", cut_lead_in=True):
        pass
    return PiperTTS(voice)
