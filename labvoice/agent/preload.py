"""Imported by the forkserver: loads the weights that job processes share."""

from __future__ import annotations

import logging

from labvoice.settings import load_settings
from labvoice.speech import engines

try:
    engines.preload(load_settings())
except Exception as error:
    # A job process tries again, and reports its failure to the stack.
    logging.getLogger("labvoice.agent").warning("the weights are not preloaded: %s", error)
