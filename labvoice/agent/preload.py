"""Imported by the forkserver: loads the weights, and the client of Letta, that jobs share."""

from __future__ import annotations

import logging

from livekit import local_inference

from labvoice.memory.client import import_client
from labvoice.settings import load_settings
from labvoice.speech import engines
from labvoice.speech.turn_ends import load_turn_detector

try:
    _settings = load_settings()
    if _settings.letta_base_url:
        import_client()
    engines.preload(_settings)
    local_inference.init_vad()
    if _settings.turn_detector in ("smart-turn", "either"):
        load_turn_detector(_settings.turn_detector, _settings)
except Exception as error:
    # A job process tries again, and reports its failure to the stack.
    logging.getLogger("labvoice.agent").warning("the weights are not preloaded: %s", error)
