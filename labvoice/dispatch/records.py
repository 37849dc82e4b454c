"""History of finished dispatches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from labvoice.errors import DispatchError

KEPT = 500
"""Dispatches that a history keeps."""


@dataclass(frozen=True)
class DispatchRecord:
    """A finished dispatch.

    Attributes:
        outcome: One of :data:`labvoice.protocol.vocabulary.OUTCOMES`.
        took_s: From the request to the confirmed agent or the error, in seconds.
    """

    room: str
    agent_name: str
    outcome: str
    took_s: float


@contextmanager
def recorded(history: deque[DispatchRecord], room: str, agent_name: str) -> Iterator[None]:
    """Adds the outcome of a dispatch in its block to a history."""
    started_s, outcome = time.monotonic(), "error"
    try:
        yield
        outcome = "ok"
    except DispatchError as error:
        outcome = error.outcome
        raise
    finally:
        history.append(DispatchRecord(room, agent_name, outcome, time.monotonic() - started_s))
