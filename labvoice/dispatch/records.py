"""History of finished dispatches."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from labvoice.errors import DispatchError

_KEPT = 500


@dataclass(frozen=True)
class DispatchRecord:
    """A finished dispatch.

    Attributes:
        room: Name of the room.
        agent_name: Dispatched agent name.
        outcome: One of :data:`labvoice.protocol.vocabulary.OUTCOMES`.
        took_s: From the request to the confirmed agent or the error, in seconds.
    """

    room: str
    agent_name: str
    outcome: str
    took_s: float


def new_history() -> deque[DispatchRecord]:
    """Returns an empty history that keeps the last 500."""
    return deque(maxlen=_KEPT)


class _HasHistory(Protocol):
    history: deque[DispatchRecord]


_P = ParamSpec("_P")
_T = TypeVar("_T")
_Self = TypeVar("_Self", bound=_HasHistory)
_Dispatch = Callable[Concatenate[_Self, str, str, _P], Coroutine[Any, Any, _T]]


def remembered(
    dispatch: _Dispatch[_Self, _P, _T],
) -> Callable[Concatenate[_Self, str, str, _P], Coroutine[Any, Any, _T]]:
    """Decorates a dispatch method to record its outcome in `self.history`."""

    @functools.wraps(dispatch)
    async def wrapper(
        self: _Self, room: str, agent_name: str, *args: _P.args, **options: _P.kwargs
    ) -> _T:
        started_s = time.monotonic()
        outcome = "error"
        try:
            done = await dispatch(self, room, agent_name, *args, **options)
            outcome = "ok"
            return done
        except DispatchError as error:
            outcome = error.outcome
            raise
        finally:
            took_s = time.monotonic() - started_s
            self.history.append(DispatchRecord(room, agent_name, outcome, took_s))

    return wrapper  # type: ignore[return-value]  # the names of its arguments stay the method's
