"""Imported by the process that jobs are forked from: loads the weights that they share."""

from __future__ import annotations

import logging

from labvoice.settings import load_settings
from labvoice.speech import engines

try:
    engines.preload(load_settings())
except Exception as error:
    # A job's process tries again, and its failure is told to the stack.
    logging.getLogger("labvoice.agent").warning("the weights are not preloaded: %s", error)
