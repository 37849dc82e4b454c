"""Loads the embedded speech: recogniser and synthesiser, warm, for a process to keep."""

from __future__ import annotations

import numpy as np

from labvoice.agent.moonshine import SAMPLE_RATE, Moonshine
from labvoice.agent.piper import Piper
from labvoice.agent.recognition import MoonshineSTT
from labvoice.agent.synthesis import PiperTTS
from labvoice.settings import Settings
from labvoice.weights import require

__all__ = ["MoonshineSTT", "PiperTTS", "load_stt", "load_tts"]


def load_stt(settings: Settings) -> MoonshineSTT:
    """Loads the recogniser of `settings.stt` and runs it once.

    Raises:
        WeightsError: Its weights cannot be had.
        ModelError: They cannot be loaded.
    """
    model = Moonshine(
        require("moonshine-base" if settings.stt == "base" else "moonshine-tiny", settings)
    )
    model.transcribe(np.zeros(SAMPLE_RATE, np.int16))
    return MoonshineSTT(model, f"moonshine-{settings.stt}-en")


def load_tts(settings: Settings) -> PiperTTS:
    """Loads the voice and has it say a few words to nobody.

    Raises:
        WeightsError: Its weights cannot be had.
        ModelError: They cannot be loaded, or espeak-ng is missing.
    """
    voice = Piper(require("piper-joe", settings))
    for _ in voice.speak("Hello there, how are you?", cut_lead_in=True):
        pass
    return PiperTTS(voice)
