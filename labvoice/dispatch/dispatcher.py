"""Explicit dispatch by name, confirmed by the job's assignment and the agent's presence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from livekit import api
from livekit.protocol.agent import JobState
from livekit.protocol.models import ParticipantInfo
from pydantic import SecretStr

from labvoice.dispatch.diagnosis import Evidence, diagnose
from labvoice.errors import (
    CredentialsError,
    DuplicateAgentError,
    LabvoiceError,
    ServerUnreachableError,
)
from labvoice.job import ATTRIBUTE_DISPATCH_ID, ATTRIBUTE_WORKER_ID, JobMetadata, check_name

_POLL_S = 0.05
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
        attempts: How many dispatches were made, lost ones included; 0 when the agent was there.
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
    """

    def __init__(
        self, url: str, api_key: str, api_secret: SecretStr, evidence: Evidence | None = None
    ) -> None:
        self._url = url
        self._key = api_key
        self._secret = api_secret
        self._evidence = evidence
        self._api: api.LiveKitAPI | None = None

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
        room is kept: asking twice does not make two.

        Args:
            room: Name of the room.
            agent_name: Name under which the worker is registered.
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
        check_name(agent_name, "agent name")
        until = time.monotonic() + timeout_s
        marks: dict[str, float] = {}

        def mark(name: str) -> None:
            if name not in marks:
                marks[name] = time.monotonic()
                if on_mark is not None:
                    on_mark(name, marks[name])

        async with self._server_errors():
            rooms = await self.api.room.list_rooms(api.ListRoomsRequest(names=[room]))
            room_existed = bool(rooms.rooms)
            if room_existed and (there := await self._agents(room, agent_name)):
                if len(there) > 1:
                    raise self._duplicate(room, agent_name, there)
                return self._confirmed(room, agent_name, there[0], True, 0, marks)
            job: JobState | None = None
            ids: list[str] = []
            present: list[ParticipantInfo] = []
            while time.monotonic() < until:
                mark("dispatch_requested")
                made = await self.api.agent_dispatch.create_dispatch(
                    api.CreateAgentDispatchRequest(
                        agent_name=agent_name,
                        room=room,
                        metadata=metadata.model_dump_json(exclude_none=True) if metadata else "",
                    )
                )
                mark("dispatch_acknowledged")
                ids.append(made.id)
                attempt_until = min(until, time.monotonic() + _ATTEMPT_S)
                while time.monotonic() < (until if len(present) > 1 else attempt_until):
                    await asyncio.sleep(_POLL_S)
                    present = await self._agents(room, agent_name)
                    # Two at once may be a slow first one that its deleted dispatch ends.
                    if len(present) == 1:
                        return self._confirmed(
                            room, agent_name, present[0], room_existed, len(ids), marks
                        )
                if len(present) > 1:
                    raise self._duplicate(room, agent_name, present)
                if job := await self._job(room, made.id):
                    break
                await self.api.agent_dispatch.delete_dispatch(made.id, room)
        raise diagnose(
            agent_name=agent_name,
            room=room,
            dispatch_ids=ids,
            job=job,
            timeout_s=timeout_s,
            workers=await self._evidence() if self._evidence else None,
        )

    async def _agents(self, room: str, agent_name: str) -> list[ParticipantInfo]:
        listed = await self.api.room.list_participants(api.ListParticipantsRequest(room=room))
        return [
            participant
            for participant in listed.participants
            if participant.kind == ParticipantInfo.Kind.AGENT
            and participant.state == ParticipantInfo.State.ACTIVE
            and participant.attributes.get(_ATTRIBUTE_AGENT_NAME) == agent_name
        ]

    async def _job(self, room: str, dispatch_id: str) -> JobState | None:
        found = await self.api.agent_dispatch.get_dispatch(dispatch_id, room)
        jobs = found.state.jobs if found is not None else []
        return jobs[-1].state if jobs else None  # the server may restart a failed job

    @staticmethod
    def _confirmed(
        room: str,
        name: str,
        agent: ParticipantInfo,
        room_existed: bool,
        attempts: int,
        marks: dict[str, float],
    ) -> Dispatch:
        return Dispatch(
            room,
            name,
            agent.attributes.get(ATTRIBUTE_DISPATCH_ID, ""),
            agent.identity.removeprefix("agent-"),
            agent.attributes.get(ATTRIBUTE_WORKER_ID, ""),
            agent.identity,
            room_existed,
            attempts,
            marks,
        )

    @staticmethod
    def _duplicate(room: str, name: str, present: list[ParticipantInfo]) -> DuplicateAgentError:
        return DuplicateAgentError(
            f"{len(present)} agents named {name!r} are in room {room!r}: "
            + ", ".join(participant.identity for participant in present),
            "remove one with the room service's RemoveParticipant, or use a fresh room",
        )

    @asynccontextmanager
    async def _server_errors(self) -> AsyncIterator[None]:
        try:
            yield
        except api.TwirpError as error:
            if error.status in (401, 403):
                raise CredentialsError(
                    f"the LiveKit server at {self._url} refuses the key or the secret",
                    "compare LIVEKIT_API_KEY and LIVEKIT_API_SECRET with the server's",
                ) from None
            raise LabvoiceError(
                f"the LiveKit server at {self._url} answered {error.code}: {error.message}"
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServerUnreachableError(
                f"no LiveKit server answers at {self._url}: {error or type(error).__name__}",
                "start one with `labvoice up`, or correct LIVEKIT_URL",
            ) from None
