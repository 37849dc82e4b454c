"""Calls made from a page: their marks, put together as they are reported."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from labvoice.dispatch.strategies import STRATEGIES
from labvoice.protocol.vocabulary import CONNECTION_STAGES, TURN_STAGES, Stage
from labvoice.web.errors import HttpError
from labvoice.web.models import CallAnswer, CallReport, CallTurn

_MAX_CALLS: Final = 1000
_MAX_TURNS: Final = 20_000
"""Turns of all calls together: a turn takes about 1 KB."""
_OF_DISPATCH: Final = frozenset({"dispatch", "join"})
"""Stages that the service counts itself as it dispatches; with the strategy `token` it does not."""


class Measured(NamedTuple):
    """A stage of a call that was not reported before.

    Attributes:
        seconds: How long it took.
        start_s: When it began, in seconds since the call's click; None where that is not told.
    """

    stage: str
    seconds: float
    start_s: float | None = None


class Calls:
    """The latest calls, in memory."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, tuple[str, CallReport]] = OrderedDict()
        self._turns = 0

    def get(self, call_id: str) -> CallAnswer:
        """Returns a call.

        Raises:
            HttpError: 404 when there is none of that id.
        """
        if call_id not in self._calls:
            raise HttpError(
                404,
                "no_such_call",
                f"no call {call_id!r} is known",
                f"calls are kept in memory, the latest {_MAX_CALLS} of {_MAX_TURNS} turns at most",
            )
        report = self._calls[call_id][1]
        return CallAnswer(
            **report.model_dump(),
            id=call_id,
            stages={one.stage: one.seconds for one in _stages(report.marks, CONNECTION_STAGES)},
        )

    def record(self, call_id: str, owner: str, report: CallReport) -> list[Measured]:
        """Adds what was reported; a mark or turn that is known keeps its first value.

        Args:
            call_id: Made up by the page.
            owner: Name of the key; only the same one may add to a call.
            report: What was measured so far, or only what is new.

        Returns:
            What is new and not counted by the service itself.

        Raises:
            HttpError: 403 when the call is another key's, 409 when it is of another room.
        """
        known_owner, known = self._calls.get(call_id, (owner, CallReport(room=report.room)))
        if known_owner != owner:
            raise HttpError(403, "forbidden", "that call was reported with another key")
        if known.room != report.room:
            raise HttpError(409, "other_room", f"that call is in room {known.room!r}")
        marks = {**report.marks, **known.marks}
        old_turns = {turn.number: turn for turn in known.turns}
        turns = {turn.number: _merged(old_turns.get(turn.number), turn) for turn in report.turns}
        merged = report.model_copy(
            update={
                "strategy": known.strategy or report.strategy,
                "dispatch_id": known.dispatch_id or report.dispatch_id,
                "marks": marks,
                "turns": [turn for _, turn in sorted({**old_turns, **turns}.items())],
            }
        )
        self._calls[call_id] = (owner, merged)
        self._calls.move_to_end(call_id)
        self._turns += len(merged.turns) - len(known.turns)
        while len(self._calls) > _MAX_CALLS or (self._turns > _MAX_TURNS and len(self._calls) > 1):
            _, (_, oldest) = self._calls.popitem(last=False)
            self._turns -= len(oldest.turns)

        before = {one.stage for one in _stages(known.marks, CONNECTION_STAGES)}
        if merged.strategy is None or not STRATEGIES[merged.strategy].in_token:
            before |= _OF_DISPATCH
        new = [one for one in _stages(marks, CONNECTION_STAGES) if one.stage not in before]
        for number, turn in turns.items():
            heard = {one.stage for one in _turn_stages(old_turns.get(number))}
            new += [one for one in _turn_stages(turn) if one.stage not in heard]
        return new


def _merged(old: CallTurn | None, new: CallTurn) -> CallTurn:
    if old is None:
        return new
    return new.model_copy(
        update={"marks": {**new.marks, **old.marks}, "metrics": {**new.metrics, **old.metrics}}
    )


def _turn_stages(turn: CallTurn | None) -> list[Measured]:
    if turn is None:
        return []
    figures = [Measured(name, seconds) for name, seconds in turn.metrics.items() if seconds >= 0]
    return [*_stages(turn.marks, TURN_STAGES), *figures]


def _stages(marks: dict[str, float], stages: tuple[Stage, ...]) -> list[Measured]:
    """The stages whose marks are there; what ends before it begins was not measured."""
    return [
        Measured(stage.name, marks[stage.end] - marks[stage.start], marks[stage.start])
        for stage in stages
        if stage.start in marks and stage.end in marks and marks[stage.end] >= marks[stage.start]
    ]
