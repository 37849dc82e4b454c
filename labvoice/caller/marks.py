"""The marks of a connection; each is set once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labvoice.caller.turns import Turn
from labvoice.protocol.vocabulary import Mark


def instants(marks: Mapping[str, Mark]) -> dict[str, float]:
    """Returns marks as instants, in seconds on the caller's monotonic clock."""
    return {name: mark.at_s for name, mark in marks.items()}


class ConnectionMarks:
    """The marks of a call's connection.

    Args:
        on_mark: Called with each mark as it is set.

    Attributes:
        by_name: The marks.
        changed: Set at each mark, and by whatever else changes the call.
    """

    def __init__(self, on_mark: Callable[[Mark], None] | None = None) -> None:
        self.by_name: dict[str, Mark] = {}
        self.changed = asyncio.Event()
        self._on_mark = on_mark

    def add(self, mark: Mark) -> None:
        """Adds a mark; the first of its name is kept."""
        if mark.name in self.by_name:
            return
        self.by_name[mark.name] = mark
        if self._on_mark is not None:
            self._on_mark(mark)
        self.changed.set()

    def set(self, name: str, at_s: float | None = None) -> None:
        """Sets a mark of the caller's: now, or at an instant in monotonic seconds."""
        self.add(Mark(name, time.monotonic() if at_s is None else at_s))


@dataclass(frozen=True)
class PastCall:
    """The figures of a call without its connections and what it heard; both grow together.

    Attributes:
        connection_marks: As :attr:`labvoice.caller.call.Call.connection_marks`.
        turns: As :attr:`labvoice.caller.call.Call.turns`.
    """

    room_name: str
    connection_marks: dict[str, Mark]
    turns: list[Turn]

    @property
    def marks(self) -> dict[str, float]:
        """As :attr:`labvoice.caller.call.Call.marks`."""
        return instants(self.connection_marks)
