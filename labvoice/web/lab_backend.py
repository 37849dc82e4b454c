"""A lab behind the HTTP service: its dispatcher, tokens, rooms, workers and Letta agents."""

from __future__ import annotations

import asyncio
from math import nan
from typing import Final

from livekit import api
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.webhook import WebhookEvent

from labvoice.dispatch import Dispatch, rooms
from labvoice.errors import LabvoiceError
from labvoice.health import checks
from labvoice.health.doctor import Check as DoctorCheck
from labvoice.lab import Lab
from labvoice.protocol.metadata import ATTRIBUTE_DISPATCH_ID, JobMetadata
from labvoice.stack.workers.worker import WorkerStatus
from labvoice.web.backend import Counts, issue_token, verified_event
from labvoice.web.errors import HttpError, no_letta
from labvoice.web.models import (
    AgentsAnswer,
    Check,
    CleanAnswer,
    DispatchRequest,
    LettaAgent,
    RoomDispatch,
    RoomFacts,
    RoomParticipant,
    TokenAnswer,
    TokenRequest,
)

_ROOMS_AT_ONCE: Final = 8
_GONE: Final = frozenset({"not_found", "unavailable", "deadline_exceeded"})
"""Error codes of LiveKit for a room that has ended meanwhile."""
_STATE_ATTRIBUTE: Final = "lk.agent.state"  # livekit.agents.types.ATTRIBUTE_AGENT_STATE


class LabBackend:
    """Serves a running lab.

    Attributes:
        agent_name: Agent name that is dispatched by default.
        media_url: Address of the LiveKit server.
        idle_timeout_s: Time after which an agent alone in a room leaves, in seconds.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.agent_name = lab.settings.agent_name
        self.idle_timeout_s = lab.settings.idle_timeout_s
        self.media_url, self._key, self._secret = lab.settings.livekit

    async def dispatch(self, body: DispatchRequest, traceparent: str | None) -> Dispatch:
        """As :meth:`labvoice.dispatch.Dispatcher.dispatch`."""
        metadata = await self._metadata(body.letta_agent_id, traceparent)
        return await self._lab.dispatcher.dispatch(
            body.room,
            body.agent_name or self.agent_name,
            metadata=metadata,
            timeout_s=body.timeout_s,
        )

    async def _metadata(
        self, letta_agent: str | None, traceparent: str | None
    ) -> JobMetadata | None:
        if letta_agent is not None and not self._lab.has_letta:
            raise no_letta()
        metadata = await self._lab.metadata(letta_agent)
        if traceparent:
            metadata = (metadata or JobMetadata()).model_copy(update={"traceparent": traceparent})
        return metadata

    async def token(self, body: TokenRequest, traceparent: str | None) -> TokenAnswer:
        """Returns a token for one room and identity; strategy `token` brings the agent with it.

        Raises:
            HttpError: 409 when somebody of that identity is in the room: a second one would
                throw the first one out and take its place.
        """
        if body.room and body.identity:
            async with self._lab.dispatcher.server_errors():
                there = await rooms.participants(self._lab.dispatcher.api, body.room)
            if body.identity in {participant.identity for participant in there}:
                raise HttpError(
                    409,
                    "identity_taken",
                    f"{body.identity!r} is in room {body.room!r} already",
                    "choose another identity, or leave it out",
                )
        metadata = await self._metadata(body.letta_agent_id, traceparent)
        return issue_token(body, self._key, self._secret, self.media_url, self.agent_name, metadata)

    async def agents(self) -> AgentsAnswer:
        """Lists the Letta agents; an empty list with a reason while Letta does not answer."""
        if not self._lab.has_letta:
            return AgentsAnswer(agents=[], letta=False, reason="this lab runs without Letta")
        try:
            frame = await self._lab.letta.agents()
        except LabvoiceError as error:
            return AgentsAnswer(agents=[], reason=error.observed)
        columns = zip(frame["id"], frame["name"], frame["model"], strict=True)
        return AgentsAnswer(
            agents=[LettaAgent(id=id_, name=name, model=model) for id_, name, model in columns]
        )

    async def rooms(self) -> list[RoomFacts]:
        """Lists the rooms with their participants and dispatches."""
        slots, server = asyncio.Semaphore(_ROOMS_AT_ONCE), self._lab.dispatcher.api

        async def look(name: str, created_at_s: int) -> RoomFacts | None:
            async with slots:
                try:
                    participants, dispatches = await asyncio.gather(
                        rooms.participants(server, name),
                        server.agent_dispatch.list_dispatch(name),
                    )
                except api.TwirpError as error:
                    if error.code in _GONE:  # it ended since it was listed
                        return None
                    raise
            return RoomFacts(
                name=name,
                created_at_s=created_at_s,
                participants=[_participant(p) for p in participants],
                dispatches=[RoomDispatch(id=d.id, agent_name=d.agent_name) for d in dispatches],
            )

        async with self._lab.dispatcher.server_errors():
            listed = await server.room.list_rooms(api.ListRoomsRequest())
            looked = await asyncio.gather(
                *(look(room.name, room.creation_time) for room in listed.rooms)
            )
        return [room for room in looked if room is not None]

    async def workers(self) -> list[WorkerStatus]:
        """Returns the status of the workers."""
        return await self._lab.pool.statuses()

    async def clean(self, room: str) -> CleanAnswer:
        """Removes agents and dispatches from a room, and the room when no human is in it.

        Raises:
            HttpError: 404 when there is no such room.
        """
        server = self._lab.dispatcher.api
        async with self._lab.dispatcher.server_errors():
            found = await server.room.list_rooms(api.ListRoomsRequest(names=[room]))
            if not found.rooms:
                raise HttpError(404, "no_such_room", f"there is no room {room!r}")
            done = await rooms.clear(server, room, wait=False)
        return CleanAnswer(
            room=room,
            agents_removed=done.agents,
            dispatches_deleted=done.dispatches,
            room_deleted=done.room_deleted,
        )

    async def delete_dispatch(self, dispatch_id: str) -> str:
        """Deletes a dispatch, which ends its agent; returns its room.

        Raises:
            HttpError: 404 when no room has it.
        """
        for room in await self.rooms():
            if dispatch_id in {dispatch.id for dispatch in room.dispatches}:
                async with self._lab.dispatcher.server_errors():
                    if await rooms.withdraw(self._lab.dispatcher.api, room.name, dispatch_id):
                        return room.name  # otherwise another request was faster
        raise HttpError(404, "no_such_dispatch", f"no room has a dispatch {dispatch_id!r}")

    async def checks(self) -> list[Check]:
        """As :func:`labvoice.health.checks.look`."""
        return [_web_check(check) for check in await checks.look(self._lab)]

    async def diagnose(self) -> list[Check]:
        """As :func:`labvoice.health.checks.diagnose`."""
        return [_web_check(check) for check in await checks.diagnose(self._lab)]

    async def counts(self) -> Counts:
        """Returns the counters of other parts."""
        replaced = self._lab.supervisor.replaced if self._lab.supervisor else 0
        try:
            backlog: float | None = await self._lab.stack.memory_backlog()
        except LabvoiceError:
            backlog = nan  # the check of the memory store has the reason
        return Counts(failovers=replaced, memory_backlog=backlog)

    def verify_webhook(self, body: str, token: str) -> WebhookEvent:
        """Returns the event if LiveKit's signature is valid.

        Raises:
            HttpError: 401 if it is not, or the body differs from the signed one.
        """
        return verified_event(body, token, self._key, self._secret)


def _web_check(check: DoctorCheck) -> Check:
    return Check(
        name=check.name,
        ok=check.ok is not False,
        message=check.observed,
        hint=check.hint,
        required=check.name not in ("letta", "memory store"),  # a call works without memory
    )


def _participant(participant: ParticipantInfo) -> RoomParticipant:
    return RoomParticipant(
        identity=participant.identity,
        kind=ParticipantInfo.Kind.Name(participant.kind).lower(),
        state=participant.attributes.get(_STATE_ATTRIBUTE, ""),
        dispatch_id=participant.attributes.get(ATTRIBUTE_DISPATCH_ID, ""),
    )
