"""Calls made from a page: their marks, put together as they are reported."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from labvoice.stages import CONNECTION_STAGES, TURN_STAGES, Stage
from labvoice.web.errors import HttpError
from labvoice.web.models import CallAnswer, CallReport, CallTurn

_MAX_CALLS: Final = 1000


class Calls:
    """The latest thousand calls, in memory."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, tuple[str, CallReport]] = OrderedDict()

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
                f"calls are kept in memory, the latest {_MAX_CALLS}",
            )
        report = self._calls[call_id][1]
        return CallAnswer(
            **report.model_dump(), id=call_id, stages=_durations(report.marks, CONNECTION_STAGES)
        )

    def record(self, call_id: str, owner: str, report: CallReport) -> dict[str, list[float]]:
        """Adds what was reported; a mark or turn that is known keeps its first value.

        Args:
            call_id: Made up by the page.
            owner: Name of the key; only the same one may add to a call.
            report: What was measured so far, or only what is new.

        Returns:
            The durations that are new, in seconds, by stage.

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
        if len(self._calls) > _MAX_CALLS:
            self._calls.popitem(last=False)

        new: dict[str, list[float]] = {}
        before = _durations(known.marks, CONNECTION_STAGES)
        for stage, seconds in _durations(marks, CONNECTION_STAGES).items():
            if stage not in before:
                new.setdefault(stage, []).append(seconds)
        for number, turn in turns.items():
            heard = _turn_stages(old_turns.get(number))
            for stage, seconds in _turn_stages(turn).items():
                if stage not in heard:
                    new.setdefault(stage, []).append(seconds)
        return new


def _merged(old: CallTurn | None, new: CallTurn) -> CallTurn:
    if old is None:
        return new
    return new.model_copy(
        update={"marks": {**new.marks, **old.marks}, "metrics": {**new.metrics, **old.metrics}}
    )


def _turn_stages(turn: CallTurn | None) -> dict[str, float]:
    return {**_durations(turn.marks, TURN_STAGES), **turn.metrics} if turn else {}


def _durations(marks: dict[str, float], stages: tuple[Stage, ...]) -> dict[str, float]:
    return {
        stage.name: marks[stage.end] - marks[stage.start]
        for stage in stages
        if stage.start in marks and stage.end in marks
    }
