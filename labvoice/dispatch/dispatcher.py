"""Explicit dispatch by name, confirmed by the job's assignment and the agent's presence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
from livekit import api
from livekit.protocol.agent import JobState
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo
from pydantic import SecretStr

from labvoice.dispatch.diagnosis import Evidence, ServerEvidence, diagnose
from labvoice.dispatch.history import new_history, remembered
from labvoice.errors import (
    CredentialsError,
    DuplicateAgentError,
    LabvoiceError,
    ServerAnswerError,
    ServerUnreachableError,
)
from labvoice.job import (
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_WORKER_ID,
    IN_FLIGHT_S,
    JobMetadata,
    check_name,
    standing,
)
from labvoice.stack.livekit_log import LiveKitLog

_POLL_S = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 1.0
_LONGEST_POLL_S = 0.3
_REMOVAL_S = 2.0
_ATTEMPT_S = 3.5
"""After so long without an agent a dispatch is made anew: the server's own job request gives up
after 3 s and is not repeated (psrpc's default request timeout). Should the first agent be only
slow, deleting its dispatch ends it. The dispatch's own list of jobs is no evidence: on a fresh
server a job shows there up to 5 s after its assignment (LiveKit `pkg/agent/client.go`, LaunchJob
waits for `CheckEnabledTimeout`)."""
_ATTRIBUTE_AGENT_NAME = "lk.agent.name"  # livekit.agents.types.ATTRIBUTE_AGENT_NAME


@dataclass(frozen=True)
class Dispatch:
    """A dispatch that is confirmed: exactly one live agent of that name is in the room.

    Attributes:
        room: Name of the room.
        agent_name: Name that was dispatched.
        dispatch_id: Given by the server; empty for an agent that is not labvoice's.
        job_id: Of the assigned job.
        worker_id: Of the worker that took it; empty when the server does not tell.
        agent_identity: Identity of the agent's participant.
        room_existed: Whether the room was there before.
        found: Whether an agent or its dispatch was there before: by a token, by an automatic
            dispatch, or by another caller.
        attempts: How many dispatches were made, lost ones included; 0 when one was found.
        marks: `dispatch_requested` and `dispatch_acknowledged` of the first attempt, in
            seconds on this process's monotonic clock.
    """

    room: str
    agent_name: str
    dispatch_id: str
    job_id: str
    worker_id: str
    agent_identity: str
    room_existed: bool
    found: bool = False
    attempts: int = 1
    marks: dict[str, float] = field(default_factory=dict)


class Dispatcher:
    """Dispatches agents through one LiveKit server; an async context manager.

    Args:
        url: Address of the LiveKit server.
        api_key: Its key.
        api_secret: Its secret.
        evidence: Asks the workers for their state when a dispatch fails; None when no worker
            can be asked.
        log: The server's log, where the server is ours: it tells at once what was lost.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        api_secret: SecretStr,
        evidence: Evidence | None = None,
        log: LiveKitLog | None = None,
    ) -> None:
        self._log = log
        self._url = url
        self._key = api_key
        self._secret = api_secret
        self._evidence = evidence
        self._api: api.LiveKitAPI | None = None
        self.history = new_history()

    async def __aenter__(self) -> Dispatcher:
        self._api = api.LiveKitAPI(
            self._url,
            self._key,
            self._secret.get_secret_value(),
            timeout=aiohttp.ClientTimeout(total=10),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._api is not None:
            await self._api.aclose()
            self._api = None

    @property
    def api(self) -> api.LiveKitAPI:
        """The server's API client, open while the dispatcher is."""
        if self._api is None:
            raise LabvoiceError("the dispatcher is closed", "use `async with Dispatcher(…)`")
        return self._api

    @remembered
    async def dispatch(
        self,
        room: str,
        agent_name: str,
        *,
        metadata: JobMetadata | None = None,
        timeout_s: float = 10.0,
        on_mark: Callable[[str, float], None] | None = None,
    ) -> Dispatch:
        """Puts exactly one agent into a room and returns when it is there.

        The room is made when there is none. An agent of that name which is already in the
        room is kept, and a dispatch that is under way is waited for: asking twice, or from
        several processes at once, does not make two. A request that the server lost is
        repeated until the time is over, so a worker that registers meanwhile is found.

        Args:
            room: Name of the room.
            agent_name: Name under which the worker is registered; empty for one that serves
                every room.
            metadata: What the agent gets to know.
            timeout_s: How long to wait for the agent, in seconds.
            on_mark: Told every mark as it is set: name and monotonic seconds.

        Raises:
            RoomNameError: A name cannot be used.
            DispatchError: The agent is not there; the class and its `outcome` name the cause.
            ServerUnreachableError: The server does not answer.
            CredentialsError: It refuses the key or the secret.
        """
        check_name(room)
        if agent_name:
            check_name(agent_name, "agent name")
        until = time.monotonic() + timeout_s
        marks: dict[str, float] = {}

        def mark(name: str) -> None:
            if name not in marks:
                marks[name] = time.monotonic()
                if on_mark is not None:
                    on_mark(name, marks[name])

        async with self.server_errors():
            rooms = await self.api.room.list_rooms(api.ListRoomsRequest(names=[room]))
            room_existed = bool(rooms.rooms)
            # Asking for the dispatches of a room that is not there takes the server 3 s.
            agents, ours = await self._state(room, agent_name) if room_existed else ([], [])
            found = bool(agents or _under_way(ours))
            job: JobState | None = None
            ids: list[str] = []
            since_s = time.time()
            pause_s = _FIRST_PAUSE_S
            while not agents and time.monotonic() < until:
                mark("dispatch_requested")
                asked_s = time.time()
                claim, own = await self._claim(room, agent_name, metadata, ours)
                if own:
                    ids.append(own)
                mark("dispatch_acknowledged")
                attempt_until = min(until, time.monotonic() + _ATTEMPT_S)
                agents = await self._wait(room, agent_name, attempt_until, asked_s)
                lost = self._lost(room, agent_name, asked_s)
                if not agents and not lost:
                    job = await self._job(room, claim)
                    if job is not None or self._assigned(room, agent_name, asked_s):
                        agents = await self._wait(room, agent_name, until, asked_s)
                if agents:
                    break
                # A slow agent of this dispatch must not turn up beside the next one's.
                await self._withdraw(room, claim)
                if lost:
                    await asyncio.sleep(min(pause_s, max(0.0, until - time.monotonic())))
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                agents, ours = await self._state(room, agent_name)
                if self._job_ended(room, agent_name, asked_s):
                    break
            if agents:
                agent = await self._keep_first(room, agent_name, agents)
                return Dispatch(
                    room,
                    agent_name,
                    agent.attributes.get(ATTRIBUTE_DISPATCH_ID, ""),
                    agent.identity.removeprefix("agent-"),
                    agent.attributes.get(ATTRIBUTE_WORKER_ID, ""),
                    agent.identity,
                    room_existed,
                    found,
                    len(ids),
                    marks,
                )
        error = diagnose(
            agent_name=agent_name,
            room=room,
            dispatch_ids=ids,
            job=job,
            timeout_s=timeout_s,
            workers=await self._evidence() if self._evidence else None,
            server=self._server_evidence(room, agent_name, since_s),
        )
        error.dispatch_ids = tuple(ids)
        raise error

    async def _claim(
        self,
        room: str,
        agent_name: str,
        metadata: JobMetadata | None,
        ours: Sequence[AgentDispatch],
    ) -> tuple[str, str]:
        """Finds or makes the one dispatch that counts.

        Callers in several processes agree without talking to each other: the oldest dispatch
        that is under way counts, and who made another one takes it back. A worker of labvoice
        refuses the job of one that does not count (:func:`labvoice.job.refusal`).

        Returns:
            The id of the dispatch that counts, and the id of the one that was made, if any.
        """
        if under_way := _under_way(ours):
            return under_way[0].id, ""
        for left_over in ours:
            await self._withdraw(room, left_over.id)
        made = await self.api.agent_dispatch.create_dispatch(
            api.CreateAgentDispatchRequest(
                agent_name=agent_name,
                room=room,
                metadata=metadata.model_dump_json(exclude_none=True) if metadata else "",
            )
        )
        _, ours = await self._state(room, agent_name)
        if ours and ours[0].id != made.id:
            await self._withdraw(room, made.id)
            return ours[0].id, made.id
        return made.id, made.id

    async def _wait(
        self, room: str, agent_name: str, until: float, asked_s: float
    ) -> list[ParticipantInfo]:
        """Returns the agents as soon as there is one; none in time, or none to be expected."""
        pause_s = _POLL_S
        while time.monotonic() < until:
            await asyncio.sleep(pause_s)
            if await self._agents(room, agent_name):
                agents, _ = await self._state(room, agent_name)
                if agents:
                    return agents
            if self._lost(room, agent_name, asked_s) or self._job_ended(room, agent_name, asked_s):
                return []
            pause_s = min(pause_s * 1.2, _LONGEST_POLL_S)
        return []

    # -- what the log of a server of ours tells sooner than a timeout ---------------------

    def _lost(self, room: str, agent_name: str, since_s: float) -> bool:
        return self._log is not None and self._log.lost(room, agent_name, since_s) is not None

    def _assigned(self, room: str, agent_name: str, since_s: float) -> bool:
        return self._log is not None and self._log.job(room, agent_name, since_s) is not None

    def _job_ended(self, room: str, agent_name: str, since_s: float) -> bool:
        job = self._log.job(room, agent_name, since_s) if self._log is not None else None
        return job is not None and bool(job.ended)

    def _server_evidence(self, room: str, agent_name: str, since_s: float) -> ServerEvidence | None:
        if self._log is None:
            return None
        lost = self._log.lost(room, agent_name, since_s)
        failed = self._log.failed_requests(agent_name, since_s)
        said = lost or (failed[-1] if failed else None)
        return ServerEvidence(
            sorted(set(self._log.workers().values())),
            self._log.job(room, agent_name, since_s),
            str(said or ""),
        )

    # -- the room -------------------------------------------------------------------------

    async def _keep_first(
        self, room: str, agent_name: str, agents: Sequence[ParticipantInfo]
    ) -> ParticipantInfo:
        """Removes every agent but the one that joined first, and every dispatch but its own.

        Raises:
            DuplicateAgentError: The others do not go.
        """
        first = agents[0]
        its_dispatch = first.attributes.get(ATTRIBUTE_DISPATCH_ID)
        if its_dispatch:
            _, ours = await self._state(room, agent_name)
            for other in ours:
                if other.id != its_dispatch:
                    await self._withdraw(room, other.id)
        until = time.monotonic() + _REMOVAL_S
        while len(agents) > 1:
            for agent in agents[1:]:
                await self._remove(room, agent)
            if time.monotonic() > until:
                raise DuplicateAgentError(
                    f"{len(agents)} agents named {agent_name!r} are in room {room!r}: "
                    + ", ".join(agent.identity for agent in agents),
                    "use a fresh room; the workers' logs tell who brought them",
                )
            await asyncio.sleep(_POLL_S)
            agents = [
                first,
                *(a for a in await self._agents(room, agent_name) if a.identity != first.identity),
            ]
        return first

    async def _state(
        self, room: str, agent_name: str
    ) -> tuple[list[ParticipantInfo], list[AgentDispatch]]:
        """Returns the agents and the dispatches of that name.

        An agent whose dispatch was withdrawn does not count, and is removed: the server is
        about to end it.
        """
        agents, listed = await asyncio.gather(
            self._agents(room, agent_name), self.api.agent_dispatch.list_dispatch(room)
        )
        ours = standing(listed, agent_name)
        ids = {"", *(each.id for each in ours)}
        staying = []
        for agent in agents:
            if agent.attributes.get(ATTRIBUTE_DISPATCH_ID, "") in ids:
                staying.append(agent)
            else:
                await self._remove(room, agent)
        return staying, ours

    async def _agents(self, room: str, agent_name: str) -> list[ParticipantInfo]:
        """Returns the agents of that name in the room, the one that joined first in front."""
        listed = await self.api.room.list_participants(api.ListParticipantsRequest(room=room))
        agents = [
            participant
            for participant in listed.participants
            if participant.kind == ParticipantInfo.Kind.AGENT
            and participant.state == ParticipantInfo.State.ACTIVE
            and participant.attributes.get(_ATTRIBUTE_AGENT_NAME, "") == agent_name
        ]
        return sorted(agents, key=lambda agent: (agent.joined_at_ms, agent.identity))

    async def _job(self, room: str, dispatch_id: str) -> JobState | None:
        found = await self.api.agent_dispatch.get_dispatch(dispatch_id, room)
        jobs = found.state.jobs if found is not None else []
        return jobs[-1].state if jobs else None  # the server may restart a failed job

    async def _remove(self, room: str, agent: ParticipantInfo) -> None:
        with contextlib.suppress(api.TwirpError):  # it may be gone already
            await self.api.room.remove_participant(
                api.RoomParticipantIdentity(room=room, identity=agent.identity)
            )

    async def _withdraw(self, room: str, dispatch_id: str) -> None:
        """Deletes a dispatch; its job, if it has one, is ended by the server."""
        try:
            await self.api.agent_dispatch.delete_dispatch(dispatch_id, room)
        except api.TwirpError as error:
            if error.status != HTTPStatus.NOT_FOUND:  # somebody else was faster
                raise

    @asynccontextmanager
    async def server_errors(self) -> AsyncIterator[None]:
        """Puts what goes wrong with the server inside the block into labvoice's words.

        Raises:
            CredentialsError: It refuses the key or the secret.
            ServerAnswerError: It answers with another error.
            ServerUnreachableError: It does not answer.
        """
        try:
            yield
        except api.TwirpError as error:
            if error.status in (401, 403):
                raise CredentialsError(
                    f"the LiveKit server at {self._url} refuses the key or the secret",
                    "compare LIVEKIT_API_KEY and LIVEKIT_API_SECRET with the server's",
                ) from None
            raise ServerAnswerError(
                f"the LiveKit server at {self._url} answered {error.code}: {error.message}",
                "its log tells more; ask again",
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServerUnreachableError(
                f"no LiveKit server answers at {self._url}: {error or type(error).__name__}",
                "start one with `labvoice up`, or correct LIVEKIT_URL",
            ) from None


def _under_way(ours: Sequence[AgentDispatch]) -> list[AgentDispatch]:
    """Returns the dispatches, oldest first, that are young enough to bring an agent yet."""
    since_ns = time.time_ns() - int(IN_FLIGHT_S * 1e9)
    return [each for each in ours if each.state.created_at > since_ns]
