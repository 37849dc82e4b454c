"""A lab behind the HTTP service: its dispatcher, tokens, rooms, workers and Letta agents."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from math import nan
from typing import Final

import aiohttp
from livekit import api
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.webhook import WebhookEvent

from labvoice.caller.token import TOKEN_LIFETIME, caller_token
from labvoice.dispatch import Dispatch
from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.job import ATTRIBUTE_DISPATCH_ID, JobMetadata
from labvoice.lab import Lab
from labvoice.stack.workers import WorkerStatus
from labvoice.web.backend import Counts, verified_event
from labvoice.web.errors import HttpError, no_letta
from labvoice.web.model_check import ModelCheck
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
_CHECK_TIMEOUT_S: Final = 3.0
_SCRATCH_TIMEOUT_S: Final = 15.0
_GONE: Final = frozenset({"not_found", "unavailable", "deadline_exceeded"})
"""What LiveKit answers about a room that ended meanwhile: nobody is there any more to ask."""
_STATE_ATTRIBUTE: Final = "lk.agent.state"  # livekit.agents.types.ATTRIBUTE_AGENT_STATE


class LabBackend:
    """Serves a running lab.

    Args:
        lab: The lab.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        settings = lab.settings
        assert settings.livekit_url
        assert settings.livekit_api_key
        assert settings.livekit_api_secret
        self._url = settings.livekit_url
        self._key, self._secret = settings.livekit_api_key, settings.livekit_api_secret
        self._model = ModelCheck(settings)

    @property
    def agent_name(self) -> str:
        """Name that is dispatched when none is asked for."""
        return self._lab.settings.agent_name

    @property
    def media_url(self) -> str:
        """Address of the LiveKit server."""
        return self._url

    async def dispatch(self, wish: DispatchRequest, traceparent: str | None) -> Dispatch:
        """As :meth:`labvoice.dispatch.Dispatcher.dispatch`."""
        metadata = await self._metadata(wish.letta_agent_id, traceparent)
        return await self._lab.dispatcher.dispatch(
            wish.room,
            wish.agent_name or self.agent_name,
            metadata=metadata,
            timeout_s=wish.timeout_s,
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

    async def token(self, wish: TokenRequest, traceparent: str | None) -> TokenAnswer:
        """Returns a token for one room and identity; strategy `token` brings the agent with it.

        Raises:
            HttpError: 409 when somebody of that identity is in the room: a second one would
                throw the first one out and take its place.
        """
        if wish.room and wish.identity:
            async with self._lab.dispatcher.server_errors():
                there = await self._participants(wish.room)
            if wish.identity in {participant.identity for participant in there}:
                raise HttpError(
                    409,
                    "identity_taken",
                    f"{wish.identity!r} is in room {wish.room!r} already",
                    "choose another identity, or leave it out",
                )
        metadata = await self._metadata(wish.letta_agent_id, traceparent)
        room = wish.room or f"web-{secrets.token_hex(4)}"
        identity = wish.identity or f"user-{secrets.token_hex(4)}"
        agent = None
        if wish.strategy == "token":
            agent = api.RoomAgentDispatch(
                agent_name=self.agent_name,
                metadata=metadata.model_dump_json(exclude_none=True) if metadata else "",
            )
        return TokenAnswer(
            token=caller_token(self._key, self._secret, room, identity, agent),
            url=self._url,
            room=room,
            identity=identity,
            expires_in_s=int(TOKEN_LIFETIME.total_seconds()),
        )

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
        """Lists the rooms, who is in them, and what is dispatched to them."""
        slots = asyncio.Semaphore(_ROOMS_AT_ONCE)

        async def look(name: str, created_at_s: int) -> RoomFacts | None:
            async with slots:
                try:
                    participants, dispatches = await asyncio.gather(
                        self._participants(name), self._dispatches(name)
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
            listed = await self._lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
            looked = await asyncio.gather(
                *(look(room.name, room.creation_time) for room in listed.rooms)
            )
        return [room for room in looked if room is not None]

    async def _participants(self, room: str) -> list[ParticipantInfo]:
        request = api.ListParticipantsRequest(room=room)
        return list((await self._lab.dispatcher.api.room.list_participants(request)).participants)

    async def _dispatches(self, room: str) -> list[api.AgentDispatch]:
        return list(await self._lab.dispatcher.api.agent_dispatch.list_dispatch(room))

    async def workers(self) -> list[WorkerStatus]:
        """Asks the workers."""
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
            listed: list[api.AgentDispatch] = []
            with _or_gone():
                listed = await self._dispatches(room)
            dispatches = []
            for dispatch in listed:
                with _or_gone():
                    await server.agent_dispatch.delete_dispatch(dispatch.id, room)
                    dispatches.append(dispatch.id)
            agents, humans = [], 0
            for participant in await self._participants(room):
                if participant.kind != ParticipantInfo.Kind.AGENT:
                    humans += 1
                    continue
                with _or_gone():
                    await server.room.remove_participant(
                        api.RoomParticipantIdentity(room=room, identity=participant.identity)
                    )
                    agents.append(participant.identity)
            if not humans:
                with _or_gone():
                    await server.room.delete_room(api.DeleteRoomRequest(room=room))
        return CleanAnswer(
            room=room,
            agents_removed=agents,
            dispatches_deleted=dispatches,
            room_deleted=not humans,
        )

    async def delete_dispatch(self, dispatch_id: str) -> str:
        """Deletes a dispatch, which ends its agent; returns its room.

        Raises:
            HttpError: 404 when no room has it.
        """
        for room in await self.rooms():
            if dispatch_id in {dispatch.id for dispatch in room.dispatches}:
                async with self._lab.dispatcher.server_errors():
                    with _or_gone():  # somebody else was faster
                        await self._lab.dispatcher.api.agent_dispatch.delete_dispatch(
                            dispatch_id, room.name
                        )
                        return room.name
        raise HttpError(404, "no_such_dispatch", f"no room has a dispatch {dispatch_id!r}")

    async def checks(self) -> list[Check]:
        """Checks the LiveKit server, the workers, the model and Letta, each within 3 s."""
        looks: dict[str, Callable[[], Awaitable[str]]] = {
            "livekit": self._check_livekit,
            "workers": self._check_workers,
            "model": self._check_model,
        }
        if self._lab.settings.letta_base_url:
            looks["letta"] = self._check_letta
            looks["memory store"] = self._check_memory_store
        return list(await asyncio.gather(*(_check(name, look) for name, look in looks.items())))

    async def _check_livekit(self) -> str:
        async with self._lab.dispatcher.server_errors():
            listed = await self._lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
        return f"answers and accepts the key; rooms: {len(listed.rooms)}"

    async def _check_workers(self) -> str:
        own = [w for w in self._lab.pool.workers if w.agent_name == self.agent_name]
        statuses = await asyncio.gather(*(w.status() for w in own if not w.draining))
        workers = [status for status in statuses if status is not None]
        if not own and self._lab.server_version is None:
            # They may run anywhere, and the server tells nobody which ones it has.
            return "none of this lab's own; those elsewhere cannot be asked"
        if not workers:
            raise LabvoiceError(
                f"no worker of this lab answers as {self.agent_name!r}",
                f"start one with `labvoice worker --agent-name {self.agent_name}`",
            )
        free = sum(worker.load < 1 for worker in workers)
        if not free:
            raise LabvoiceError(
                f"all {len(workers)} workers are full", "start another worker, or end some calls"
            )
        return f"{free} of {len(workers)} take calls"

    async def _check_model(self) -> str:
        for part in self._lab.parts():
            if part.name.startswith("model") and part.state not in ("up", "external"):
                raise LabvoiceError(f"the model server has {part.state}", "restart the lab")
        return await self._model.ask()

    async def _check_letta(self) -> str:
        server = self._lab.letta_server
        if server.state not in ("up", "external"):
            raise LabvoiceError(
                f"the Letta server's state is {server.state!r}; calls go on without memory",
                "wait while it starts; its log tells why it failed",
            )
        await server.api.check()
        return "answers"

    async def _check_memory_store(self) -> str:
        return f"turns that wait for Letta: {await self._lab.memory_backlog()}"

    async def diagnose(self) -> list[Check]:
        """Checks every dependency and, where LiveKit answers, whether an agent really joins.

        As the doctor does, but nothing is started or loaded beside the calls that run.
        """
        checks = await self.checks()
        if all(check.ok for check in checks if check.name == "livekit"):
            checks.append(await _check("dispatch", self._check_dispatch, _SCRATCH_TIMEOUT_S))
        return checks

    async def _check_dispatch(self) -> str:
        room = f"scratch-{secrets.token_hex(4)}"
        dispatcher = self._lab.dispatcher
        started_s = time.monotonic()
        try:
            done = await dispatcher.dispatch(room, self.agent_name)
            took_s = time.monotonic() - started_s
        finally:
            with contextlib.suppress(api.TwirpError, aiohttp.ClientError):
                await dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room))
        return f"{done.agent_name!r} joined a scratch room after {took_s * 1000:.0f} ms"

    async def counts(self) -> Counts:
        """Returns what other parts have counted."""
        replaced = self._lab.supervisor.replaced if self._lab.supervisor else 0
        try:
            backlog: float | None = await self._lab.memory_backlog()
        except LabvoiceError:
            backlog = nan  # the check of the memory store tells why
        return Counts(failovers=replaced, memory_backlog=backlog)

    def verify_webhook(self, body: str, token: str) -> WebhookEvent:
        """Returns the event when LiveKit's signature is good.

        Raises:
            HttpError: 401 when it is not, or the body is not what was signed.
        """
        return verified_event(body, token, self._key, self._secret)


@contextlib.contextmanager
def _or_gone() -> Iterator[None]:
    """Asks about something that may have gone meanwhile, which is as good."""
    try:
        yield
    except api.TwirpError as error:
        if error.code not in _GONE:
            raise


async def _check(
    name: str, look: Callable[[], Awaitable[str]], timeout_s: float = _CHECK_TIMEOUT_S
) -> Check:
    try:
        async with asyncio.timeout(timeout_s):
            return Check(name=name, ok=True, message=await look())
    except TimeoutError:
        error: LabvoiceError = StageTimeoutError("the answer", timeout_s, "silence")
    except LabvoiceError as caught:
        error = caught
    # A call goes on without memory.
    required = name not in ("letta", "memory store")
    return Check(name=name, ok=False, message=error.observed, hint=error.hint, required=required)


def _participant(participant: ParticipantInfo) -> RoomParticipant:
    return RoomParticipant(
        identity=participant.identity,
        kind=ParticipantInfo.Kind.Name(participant.kind).lower(),
        state=participant.attributes.get(_STATE_ATTRIBUTE, ""),
        dispatch_id=participant.attributes.get(ATTRIBUTE_DISPATCH_ID, ""),
    )
