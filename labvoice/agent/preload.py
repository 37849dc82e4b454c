"""Imported by the forkserver: loads the weights, and the client of Letta, that jobs share."""

from __future__ import annotations

import logging

from labvoice.memory.client import import_client
from labvoice.settings import load_settings
from labvoice.speech import engines

try:
    _settings = load_settings()
    if _settings.letta_base_url:
        import_client()
    engines.preload(_settings)
except Exception as error:
    # A job process tries again, and reports its failure to the stack.
    logging.getLogger("labvoice.agent").warning("the weights are not preloaded: %s", error)
