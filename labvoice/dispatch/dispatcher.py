"""Explicit dispatch by agent name, confirmed by the agent's presence in the room."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
from livekit import api
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo
from pydantic import SecretStr

from labvoice.dispatch.agents import (
    is_active,
    keep_first,
    look,
    look_and_tidy,
    named_agents,
    remove,
)
from labvoice.dispatch.diagnosis import Evidence, ServerEvidence, diagnose
from labvoice.dispatch.media import announced_addresses
from labvoice.dispatch.records import KEPT, DispatchRecord, recorded
from labvoice.dispatch.request import DispatchRequest, under_way
from labvoice.dispatch.rooms import clear, withdraw
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import (
    CredentialsError,
    LabvoiceError,
    ServerAnswerError,
    ServerUnreachableError,
)
from labvoice.protocol.metadata import (
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_WORKER_ID,
    Metadata,
    check_name,
    metadata_text,
)
from labvoice.protocol.vocabulary import Mark
from labvoice.proxies import livekit_api
from labvoice.show import Facts
from labvoice.stack.livekit.log import LiveKitLog

DISPATCH_TIMEOUT_S = 10.0
_POLL_S = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 1.0
_LONGEST_POLL_S = 0.3
_ATTEMPT_S = 3.5
"""Seconds without an agent after which a dispatch is retried: the server's job request gives up
after 3 s and is not repeated (psrpc's default request timeout). Deleting the first dispatch ends an
agent that is only slow. The dispatch's list of jobs is no evidence: on a fresh server a job appears
there up to 5 s after its assignment (LiveKit `pkg/agent/client.go`, LaunchJob waits for
`CheckEnabledTimeout`)."""
_CALLED_OFF_S = 3.0
"""Seconds in which an agent leaves after its dispatch was deleted."""
_CALL_OFF_S = 3.0
_WITHOUT_MEDIA_S = 1.0
"""An agent's media is connected some 0.1 s after its signalling."""
_PASSING_CODES = ("unavailable", "deadline_exceeded", "internal", "aborted")


@dataclass(frozen=True, repr=False)
class Dispatch:
    """A confirmed dispatch: exactly one live agent of that name is in the room.

    Attributes:
        dispatch_id: Id from the server; empty if an agent of another program was found in the room.
        worker_id: Id of the worker that took the job; empty if the server does not report it.
        found: Whether an agent or its dispatch already existed: by a token, by automatic dispatch,
            or by another caller.
        attempts: Number of dispatches created, lost ones included; 0 if one was found.
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

    def _facts(self) -> Facts:
        name = repr(self.agent_name) if self.agent_name else "a worker that serves every room"
        how = "found there" if self.found else f"dispatched, attempts: {self.attempts}"
        rows = [
            ("dispatch", self.dispatch_id or "unknown"),
            ("job", self.job_id),
            ("worker", self.worker_id or "unknown"),
            ("room was there before", "yes" if self.room_existed else "no"),
        ]
        if len(self.marks) > 1:
            took_s = self.marks["dispatch_acknowledged"] - self.marks["dispatch_requested"]
            rows.append(("acknowledged after", f"{took_s * 1000:.0f} ms"))
        return Facts(f"Dispatch: {name} is in room {self.room!r}, {how}", rows=rows)

    def __repr__(self) -> str:
        return self._facts().text()

    def _repr_html_(self) -> str:
        return self._facts().html()


class Dispatcher:
    """Dispatches agents through one LiveKit server; use it as an async context manager.

    Args:
        evidence: Returns the workers' status for the diagnosis of a failed dispatch; None if no
            worker can be asked.
        log: The log of the lab's own server, which shows a lost job request at once.
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
        self._open = AsyncExitStack()
        self.history: deque[DispatchRecord] = deque(maxlen=KEPT)

    async def __aenter__(self) -> Dispatcher:
        client = livekit_api(self._url, self._key, self._secret.get_secret_value())
        self._api = await self._open.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._api = None
        await self._open.aclose()

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
        metadata: Metadata = None,
        timeout_s: float = DISPATCH_TIMEOUT_S,
        on_mark: Callable[[Mark], None] | None = None,
    ) -> Dispatch:
        """Puts exactly one agent into a room and returns when it has joined.

        The room is created if it does not exist. The call is idempotent, also across processes: an
        agent of that name that is already in the room is kept, and a pending dispatch is awaited. A
        lost job request is retried until the timeout, so a worker that registers meanwhile is
        found.

        Args:
            agent_name: Agent name that the worker registered with; empty for a worker that serves
                every room.
            metadata: Metadata of the dispatch: labvoice's own, or any text or dictionary for
                another agent, sent unchanged.
            on_mark: Called with each mark as it is set.

        Raises:
            RoomNameError: The room or agent name is invalid.
            DispatchError: The agent did not join; the class and its `outcome` name the cause.
            ServerUnreachableError: The server does not answer.
            CredentialsError: It refuses the key or the secret.
        """
        with recorded(self.history, room, agent_name):
            check_name(room)
            if agent_name:
                check_name(agent_name, "agent name")
            until = time.monotonic() + timeout_s
            request = DispatchRequest(room, agent_name, metadata, until, on_mark)
            return await self._dispatch(request, timeout_s)

    async def _dispatch(self, request: DispatchRequest, timeout_s: float) -> Dispatch:
        room, agent_name = request.room, request.agent_name
        agent: ParticipantInfo | None = None
        try:
            async with self.server_errors():
                if agents := await self._bring(request):
                    agent = await keep_first(self.api, room, agent_name, agents)
        finally:
            if agent is None:
                # The caller may have been cancelled: no dispatch of it may start an agent later.
                await asyncio.shield(asyncio.create_task(self._call_off(request)))
        if agent is not None:
            told = agent.attributes
            claim = request.claims[-1] if request.claims else ""
            return Dispatch(
                room,
                agent_name,
                told.get(ATTRIBUTE_DISPATCH_ID, claim),
                agent.identity.removeprefix("agent-"),
                told.get(ATTRIBUTE_WORKER_ID, request.job.worker_id if request.job else ""),
                agent.identity,
                request.room_existed,
                request.found,
                len(request.made),
                request.marks,
            )
        blocked = request.without_media_s >= _WITHOUT_MEDIA_S
        error = diagnose(
            agent_name=agent_name,
            room=room,
            dispatch_ids=request.claims,
            job=request.job,
            timeout_s=timeout_s,
            workers=await self._evidence() if self._evidence else None,
            server=self._server_evidence(request),
            media=await self._media_addresses(room) if blocked else None,
        )
        error.dispatch_ids = tuple(request.claims)
        raise error

    async def _media_addresses(self, room: str) -> list[str]:
        identity = f"media-check-{secrets.token_hex(4)}"
        token = caller_token(self._key, self._secret, room, identity)
        return await announced_addresses(self._url, token) or []

    async def why_ended(self, dispatch_id: str, agent_identity: str = "") -> str:
        """Returns why a dispatch's job ended; empty if unknown.

        labvoice's worker reports the cause; for another worker, the log of the lab's own server has
        the job's last state.
        """
        for worker in (await self._evidence() if self._evidence else None) or ():
            if ending := worker.endings.get(dispatch_id):
                return ending.reason
        ended = self._log.ended(agent_identity.removeprefix("agent-")) if self._log else ""
        return f"the server's log says {ended}" if ended else ""

    async def keep_one(self, room: str, agent_name: str) -> None:
        """Removes every agent of that name except the first to join.

        Raises:
            DuplicateAgentError: The others are still in the room.
            ServerUnreachableError: The server does not answer.
        """
        async with self.server_errors():
            agents, strays, _ = await look(self.api, room, agent_name)
            if agents or strays:
                await keep_first(self.api, room, agent_name, agents or strays)

    async def end_room(self, room: str, agent_name: str) -> None:
        """Ends the agent of a finished call, and deletes the room unless a human is in it."""
        with contextlib.suppress(api.TwirpError, aiohttp.ClientError, TimeoutError):
            await clear(self.api, room, agent_name=agent_name)

    async def _bring(self, request: DispatchRequest) -> list[ParticipantInfo]:
        """Retries until an agent has joined, the timeout, or a failure that a retry cannot repair.

        A server that never answered is unreachable. One that answered before, or broke the
        connection off, is asked again until the timeout: it may be restarting or busy.
        """
        agents: list[ParticipantInfo] = []
        ours: Sequence[AgentDispatch] | None = None
        answered = looked = room_asked = False
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if not room_asked:
                    names = api.ListRoomsRequest(names=[request.room])
                    exists = bool((await self.api.room.list_rooms(names)).rooms)
                    if not answered:
                        request.room_existed = exists
                    answered = room_asked = True
                    if not exists:
                        # Asking for the dispatches of such a room takes the server 3 s, and fails.
                        ours, looked = [], True
                if not looked:
                    agents, ours = await self._first_look(request.room, request.agent_name)
                    request.found = bool(agents or under_way(ours))
                    looked = True
                elif ours is None:
                    agents, ours = await look_and_tidy(self.api, request.room, request.agent_name)
                if agents or request.over or request.left_s <= 0:
                    break
                if agents := await self._attempt(request, ours):
                    break
                ours = None
                if request.lost:
                    await asyncio.sleep(min(pause_s, max(0.0, request.left_s)))
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            except (api.TwirpError, aiohttp.ClientError, TimeoutError) as error:
                if not (_passes(error) if answered else _broke_off(error)):
                    raise
                if request.left_s <= pause_s:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                # What broke off may have been what would have created the room.
                ours, room_asked = None, False
        return agents

    async def _first_look(
        self, room: str, agent_name: str
    ) -> tuple[list[ParticipantInfo], list[AgentDispatch]]:
        """Looks for an existing agent or dispatch before creating one.

        A restarted server has lost its dispatches, so an agent that survived the restart has an
        unknown one. So has an agent that was just withdrawn; it leaves soon.
        """
        until = time.monotonic() + _CALLED_OFF_S
        while True:
            agents, strays, ours = await look(self.api, room, agent_name)
            if agents or ours or not strays:
                await remove(self.api, room, strays)
                return agents, ours
            if time.monotonic() > until:
                return strays, ours
            await asyncio.sleep(_POLL_S)

    async def _attempt(
        self, request: DispatchRequest, ours: Sequence[AgentDispatch]
    ) -> list[ParticipantInfo]:
        """Waits for the agent of one dispatch; withdraws the dispatch if the agent does not join.

        A lost request or an ended job is recorded in the request.
        """
        request.mark("dispatch_requested")
        asked_s = time.time()
        claim = await self._claim(request, ours)
        request.mark("dispatch_acknowledged")
        room, name = request.room, request.agent_name
        while request.left_s > 0:
            attempt_until = min(request.until, time.monotonic() + _ATTEMPT_S)
            if agents := await self._wait(request, attempt_until, asked_s):
                return agents
            if self._lost(room, name, asked_s) or self._job_ended(room, name, asked_s):
                break
            found = await self.api.agent_dispatch.get_dispatch(claim, room)
            jobs = found.state.jobs if found is not None else []
            if jobs:
                request.job = jobs[-1].state  # the server may restart a failed job
            if found is None:
                break  # another process withdrew it
            taken = jobs or self._assigned(room, name, asked_s)
            # An agent without a name may be its own: the server lists the job 5 s late.
            if not taken and None not in {name for _, name in await named_agents(self.api, room)}:
                break  # no worker has taken it
        request.lost = self._lost(room, name, asked_s)
        request.over = self._job_ended(room, name, asked_s)
        # A slow agent of this dispatch must not join next to the following one. A dispatch that
        # another caller waits for stays, unless it cannot succeed.
        if claim in request.own or request.lost or request.over or request.left_s > 0:
            await self._withdraw(request, claim)
        return []

    async def _claim(self, request: DispatchRequest, ours: Sequence[AgentDispatch]) -> str:
        """Finds or creates the one valid dispatch, and returns its id.

        Callers in several processes agree without communicating: the oldest pending dispatch is
        valid, and a caller that created another one withdraws it. A labvoice worker refuses the job
        of an invalid one (:func:`labvoice.protocol.metadata.refusal`).
        """
        if coming := under_way(ours):
            return request.claim(coming[0].id)
        for left_over in ours:
            await self._withdraw(request, left_over.id)
        message = api.CreateAgentDispatchRequest(
            agent_name=request.agent_name,
            room=request.room,
            metadata=metadata_text(request.metadata),
        )
        making = asyncio.create_task(self.api.agent_dispatch.create_dispatch(message))
        request.made.append(making)
        made = await asyncio.shield(making)  # even if cancelled, the created dispatch is known
        request.own.add(made.id)
        _, ours = await look_and_tidy(self.api, request.room, request.agent_name)
        if ours and ours[0].id != made.id:
            await self._withdraw(request, made.id)
            return request.claim(ours[0].id)
        return request.claim(made.id)

    async def _call_off(self, request: DispatchRequest) -> None:
        """Withdraws the dispatches that a failed request created and has not withdrawn yet."""
        errors = (api.TwirpError, aiohttp.ClientError, TimeoutError)
        with contextlib.suppress(*errors):
            async with asyncio.timeout(_CALL_OFF_S):
                for making in request.made:
                    with contextlib.suppress(*errors):
                        request.own.add((await making).id)
                for dispatch_id in request.own - request.withdrawn:
                    await self._withdraw(request, dispatch_id)

    async def _withdraw(self, request: DispatchRequest, dispatch_id: str) -> None:
        await withdraw(self.api, request.room, dispatch_id)
        request.withdrawn.add(dispatch_id)

    async def _wait(
        self, request: DispatchRequest, until: float, asked_s: float
    ) -> list[ParticipantInfo]:
        """Returns the agents as soon as one has joined; none if it cannot, or not in time."""
        room, agent_name = request.room, request.agent_name
        pause_s = _POLL_S
        while time.monotonic() < until:
            await asyncio.sleep(pause_s)
            named = await named_agents(self.api, room, connecting=True)
            seen = [agent for agent, name in named if name == agent_name]
            request.note_states(seen)
            if any(map(is_active, seen)):
                agents, _ = await look_and_tidy(self.api, room, agent_name)
                if agents:
                    return agents
            if self._lost(room, agent_name, asked_s) or self._job_ended(room, agent_name, asked_s):
                return []
            pause_s = min(pause_s * 1.2, _LONGEST_POLL_S)
        return []

    # -- what the server's log shows sooner than a timeout ---------------------------------

    def _lost(self, room: str, agent_name: str, since_s: float) -> bool:
        return self._log is not None and self._log.lost(room, agent_name, since_s) is not None

    def _assigned(self, room: str, agent_name: str, since_s: float) -> bool:
        return self._log is not None and self._log.job(room, agent_name, since_s) is not None

    def _job_ended(self, room: str, agent_name: str, since_s: float) -> bool:
        job = self._log.job(room, agent_name, since_s) if self._log is not None else None
        return job is not None and bool(job.ended)

    def _server_evidence(self, request: DispatchRequest) -> ServerEvidence | None:
        if self._log is None:
            return None
        room, agent_name, since_s = request.room, request.agent_name, request.since_s
        job = self._log.job(room, agent_name, since_s)
        if job is not None and not request.over:
            job = replace(job, ended="")  # the server ends a job whose dispatch is withdrawn
        lost = self._log.lost(room, agent_name, since_s)
        failed = self._log.failed_requests(agent_name, since_s)
        said = lost or (failed[-1] if failed else None)
        return ServerEvidence(
            sorted(set(self._log.workers().values())),
            job,
            str(said or ""),
        )

    @asynccontextmanager
    async def server_errors(self) -> AsyncIterator[None]:
        """Translates errors of the server's API inside the block into labvoice's errors.

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
                "see its log, and retry",
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServerUnreachableError(
                f"no LiveKit server answers at {self._url}: {error or type(error).__name__}",
                "start one with `labvoice up`, or correct LIVEKIT_URL",
            ) from None


def _passes(error: Exception) -> bool:
    """Whether a retry of the same request may succeed."""
    return not isinstance(error, api.TwirpError) or error.code in _PASSING_CODES


def _broke_off(error: Exception) -> bool:
    """Whether the error shows that a server is there, although it has not answered."""
    if isinstance(error, api.TwirpError | aiohttp.ServerDisconnectedError):
        return _passes(error)
    return isinstance(error, aiohttp.ClientOSError) and not isinstance(
        error, aiohttp.ClientConnectorError
    )
