"""Burst: many rooms ask for an agent in the same moment; who gets one, and who gets two."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Final, Protocol

from livekit import api
from livekit.protocol.models import ParticipantInfo

from labvoice.bench.arms import Arm
from labvoice.dispatch import Dispatcher
from labvoice.errors import DispatchError
from labvoice.runs.run import RunWriter

_AGENT_NAME: Final = "noop-agent"
BURST_ARMS: Final = tuple(
    Arm(
        name,
        agent_name=_AGENT_NAME,
        program="labvoice.agent.noop",
        settings={"max_jobs": 64},  # capacity is not what is measured
    )
    for name in ("plain", "confirmed")
)
"""`plain` is the server's CreateDispatch and nothing more; `confirmed` is labvoice's dispatch."""

_PLAIN_WAIT_S: Final = 20.0
_CONFIRMED_TIMEOUT_S: Final = 60.0
_LATE_S: Final = 6.0
"""So long a second agent is waited for at the end: a job reaches the list of its dispatch up to
5 s after its assignment, and only then a withdrawn dispatch ends it."""
_POLL_S: Final = 0.1


class DispatchSource(Protocol):
    """What a burst needs of a lab."""

    @property
    def dispatcher(self) -> Dispatcher:
        """Dispatches through the lab's server."""


async def burst(
    run: RunWriter,
    source: DispatchSource,
    arm: Arm,
    first_trial: int,
    rooms: int,
    progress: Callable[[str], None],
) -> None:
    """Dispatches to so many fresh rooms at once, and records what each of them got.

    Args:
        run: Takes a trial for each room.
        source: A lab with workers of the arm's agent.
        arm: One of :data:`BURST_ARMS`.
        first_trial: Number of the first trial.
        rooms: How many.
        progress: Told the result in words.
    """
    dispatcher = source.dispatcher
    names = [f"burst-{arm.name}-{secrets.token_hex(4)}" for _ in range(rooms)]
    trials = dict(zip(names, range(first_trial, first_trial + rooms), strict=True))
    for name, trial in trials.items():
        run.trial(trial, name, arm.name)
    attempt = _confirmed if arm.name == "confirmed" else _plain
    click_s = time.monotonic()
    for trial in trials.values():
        run.mark(trial, "click", click_s)
    details = dict(
        zip(
            names,
            await asyncio.gather(*(attempt(run, dispatcher, *item) for item in trials.items())),
            strict=True,
        )
    )
    await asyncio.sleep(_LATE_S)
    counts = dict(
        zip(
            names, await asyncio.gather(*(_agents(dispatcher, name) for name in names)), strict=True
        )
    )
    for name, trial in trials.items():
        if counts[name] > 1:
            run.outcome(trial, "duplicate_agent", detail=f"{counts[name]} agents are in the room")
        elif counts[name] == 1:
            run.outcome(trial, "ok")
        else:
            outcome, words = details[name] or ("agent_lost", "the agent left again")
            run.outcome(trial, outcome, detail=words)
    got = list(counts.values())
    progress(
        f"burst {arm.name}: {got.count(1)} of {rooms} rooms have one agent, "
        f"{got.count(0)} none, {sum(count > 1 for count in got)} more than one"
    )
    await asyncio.gather(
        *(dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=name)) for name in names)
    )


Failure = tuple[str, str]
"""Outcome and detail."""


async def _plain(run: RunWriter, dispatcher: Dispatcher, room: str, trial: int) -> Failure | None:
    run.mark(trial, "dispatch_requested", time.monotonic())
    await dispatcher.api.agent_dispatch.create_dispatch(
        api.CreateAgentDispatchRequest(agent_name=_AGENT_NAME, room=room)
    )
    run.mark(trial, "dispatch_acknowledged", time.monotonic())
    until = time.monotonic() + _PLAIN_WAIT_S
    while time.monotonic() < until:
        await asyncio.sleep(_POLL_S)
        if await _agents(dispatcher, room):
            run.mark(trial, "agent_visible", time.monotonic())
            return None
    return "no_worker", f"the server gave an id, and no agent came within {_PLAIN_WAIT_S:g} s"


async def _confirmed(
    run: RunWriter, dispatcher: Dispatcher, room: str, trial: int
) -> Failure | None:
    try:
        done = await dispatcher.dispatch(
            room,
            _AGENT_NAME,
            timeout_s=_CONFIRMED_TIMEOUT_S,
            on_mark=lambda name, at_s: run.mark(trial, name, at_s),
        )
    except DispatchError as error:
        return error.outcome, error.observed
    run.mark(trial, "agent_visible", time.monotonic())
    run.note(trial, attempts=done.attempts, dispatch_id=done.dispatch_id)
    return None


async def _agents(dispatcher: Dispatcher, room: str) -> int:
    listed = await dispatcher.api.room.list_participants(api.ListParticipantsRequest(room=room))
    return sum(
        participant.kind == ParticipantInfo.Kind.AGENT
        and participant.state == ParticipantInfo.State.ACTIVE
        for participant in listed.participants
    )
