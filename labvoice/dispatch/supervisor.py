"""Failover: watches the rooms with labvoice's agents and replaces an agent that is lost.

LiveKit's own server needs about 21 s to notice a dead agent and never replaces it. Here every
agent counts up an attribute of its own (see :mod:`labvoice.agent.presence`); the supervisor
reads the attributes through the server's API, so that workers may run on any host. For the
workers of its own lab it also looks whether the job's process is there, which is faster.

All that it needs to know is in the server: it may be stopped and started at any time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import aiohttp
from livekit import api
from livekit.protocol.models import ParticipantInfo

from labvoice.dispatch.dispatcher import Dispatcher
from labvoice.dispatch.watched import ATTRIBUTE_AGENT_NAME, Watched, is_ours
from labvoice.errors import LabvoiceError, MetadataError
from labvoice.job import ATTRIBUTE_DISPATCH_ID, JobMetadata, Resume, parse_metadata

_PAUSE_S: Final = 0.25
_BUSY: Final = 4
"""Pauses are at least so many times as long as the questions took: with many rooms the
supervisor looks less often rather than taking the processor from the calls."""
_REQUESTS_AT_ONCE: Final = 8
_GRACE_S: Final = 0.5
"""How long a room may be without its agent before that counts as a loss."""
_RESTART_GRACE_S: Final = 5.0
"""The same after the server was away: whoever was in the room needs time to come back."""
_RESTART_MEMORY_S: Final = 60.0
"""How long after a restart of the server a room may take to come back."""
_ORPHAN_S: Final = 5.0
"""How long a room with a dispatch and a caller may be without any agent. Only a room whose
agent was lost while no supervisor ran gets so far."""
_DISPATCH_TIMEOUT_S: Final = 10.0
_TRY_AGAIN_S: Final = (1.0, 2.0, 4.0, 8.0)
_BUDGET: Final = 5
_BUDGET_WINDOW_S: Final = 60.0
"""At most 5 replacements a minute in a room: an agent that always dies is no accident."""
_SERVER_ERRORS: Final = (api.TwirpError, aiohttp.ClientError, TimeoutError, OSError)
_EMPTY_ROOM_S: Final = 30.0
"""How long a room that had an agent may be empty; LiveKit's own default is 300 s."""


class JobProcessView(Protocol):
    """A job's process, seen from the same host."""

    @property
    def alive(self) -> bool:
        """Whether it is there."""


class LocalWorkers(Protocol):
    """What the supervisor may ask of the workers on its own host."""

    def process_of(self, job_id: str) -> JobProcessView | None:
        """The process that runs a job; None for a job of somebody else's worker."""

    def worse_workers(self, agent_name: str, lost_worker_id: str) -> list[str]:
        """Ids of workers that shall leave a job to better ones."""


class Log(Protocol):
    """Takes the supervisor's events."""

    def add(
        self,
        event: str,
        *,
        room: str = "",
        detail: str = "",
        job_id: str = "",
        dispatch_id: str = "",
    ) -> None:
        """Adds an event; the ids are of the job and the dispatch that it is about."""


class Supervisor:
    """Watches all rooms of a server that have labvoice's agents.

    Args:
        dispatcher: Puts the replacements into the rooms.
        log: Takes what happened.
        local: The workers on this host; None when there are none to ask.
        lost_after_s: Silence of an agent after which it counts as lost, in seconds. An agent
            beats every 0.5 s.

    Attributes:
        replaced: How many agents were replaced.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        log: Log,
        *,
        local: LocalWorkers | None = None,
        lost_after_s: float = 1.5,
    ) -> None:
        self.replaced = 0
        self._dispatcher = dispatcher
        self._log = log
        self._local = local
        self._lost_after_s = lost_after_s
        self._agents: dict[str, dict[str, Watched]] = {}
        self._buried: deque[str] = deque(maxlen=1000)
        self._replacing: dict[str, asyncio.Task[None]] = {}
        self._replacements: dict[str, deque[float]] = {}
        self._empty_since: dict[str, float] = {}
        self._orphan_since: dict[str, float] = {}
        self._server_back_s = -_RESTART_MEMORY_S
        self._reachable = True
        self._limit = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to watch; does nothing while it does already."""
        if not self.running:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops watching; a replacement under way is abandoned. Safe to call twice."""
        tasks = [task for task in (self._task, *self._replacing.values()) if task is not None]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._replacing.clear()

    @property
    def running(self) -> bool:
        """Whether it watches."""
        return self._task is not None and not self._task.done()

    def __repr__(self) -> str:
        state = "watching" if self.running else "stopped"
        watched = sum(map(len, self._agents.values()))
        return f"<Supervisor {state} agents={watched} replaced={self.replaced}>"

    async def _run(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                await self._look()
            except _SERVER_ERRORS as error:
                if self._reachable:
                    self._log.add("server_lost", detail=str(error) or type(error).__name__)
                self._reachable = False
            else:
                if not self._reachable:
                    self._log.add("server_back")
                    self._server_back_s = time.monotonic()
                self._reachable = True
            took_s = time.monotonic() - began_s
            await asyncio.sleep(max(_PAUSE_S, _BUSY * took_s))

    # -- looking ------------------------------------------------------------------------

    async def _look(self) -> None:
        """One round: asks for every room and judges what is seen."""
        service = self._dispatcher.api.room
        rooms = [room.name for room in (await service.list_rooms(api.ListRoomsRequest())).rooms]

        async def ask(room: str) -> tuple[float, list[ParticipantInfo]]:
            async with self._limit:
                asked_s = time.monotonic()
                request = api.ListParticipantsRequest(room=room)
                return asked_s, list((await service.list_participants(request)).participants)

        seen = await asyncio.gather(*(ask(room) for room in rooms))
        for room, (asked_s, participants) in zip(rooms, seen, strict=True):
            if room not in self._replacing:
                await self._judge(room, participants, asked_s)
        restarted = time.monotonic() - self._server_back_s < _RESTART_MEMORY_S
        for room in [name for name in self._agents if name not in rooms]:
            # A room that is gone is over, unless its server was restarted under it.
            if not restarted and self._reachable:
                self._forget(room)

    def _forget(self, room: str) -> None:
        for table in (self._agents, self._empty_since, self._orphan_since, self._replacements):
            table.pop(room, None)

    async def _judge(self, room: str, participants: list[ParticipantInfo], now_s: float) -> None:
        present = {p.identity: p for p in participants if is_ours(p)}
        for identity in [each for each in present if each in self._buried]:
            del present[identity]
            await self._remove(room, identity)  # one that was given up has come back
        if not present and room not in self._agents:
            await self._look_for_orphan(room, participants, now_s)
            return
        watched = self._agents.setdefault(room, {})
        for identity, participant in present.items():
            if identity not in watched:
                watched[identity] = await self._meet(room, participant, now_s)
            watched[identity].update(participant, now_s)
        await self._clean(room, participants, now_s)
        lost = {
            identity: cause
            for identity, agent in watched.items()
            if (cause := self._loss(agent, identity in present, now_s))
        }
        for identity, cause in lost.items():
            agent = watched.pop(identity)
            others = [
                other
                for other in present
                if other not in lost and watched[other].agent_name == agent.agent_name
            ]
            if identity in present:
                self._buried.append(identity)
                await self._remove(room, identity)
            # An agent that went when its caller did is no loss; one that dies while it waits
            # for its caller is.
            missed = identity in present or any(_is_human(p) for p in participants)
            if missed and not others and not agent.leaving:
                self._replace(agent, cause)

    def _loss(self, agent: Watched, present: bool, now_s: float) -> str:
        """Returns how an agent was lost; empty while it was not."""
        if not present:
            restarted = now_s - self._server_back_s < _RESTART_MEMORY_S
            grace_s = _RESTART_GRACE_S if restarted else _GRACE_S
            return "it left without a word" if agent.missing_for(now_s) >= grace_s else ""
        process = self._local.process_of(agent.job_id) if self._local else None
        if process is not None and not process.alive:
            return "its process died"
        silent_s = agent.silent_for(now_s)
        return f"it was silent for {silent_s:.1f} s" if silent_s >= self._lost_after_s else ""

    async def _meet(self, room: str, participant: ParticipantInfo, now_s: float) -> Watched:
        """Notes a new agent, with what its dispatch told it."""
        dispatch_id = participant.attributes[ATTRIBUTE_DISPATCH_ID]
        found = await self._dispatcher.api.agent_dispatch.get_dispatch(dispatch_id, room)
        return Watched(room, participant, found.metadata if found is not None else "", now_s)

    async def _look_for_orphan(
        self, room: str, participants: list[ParticipantInfo], now_s: float
    ) -> None:
        """Finds a caller whose agent was lost while nobody watched."""
        if not any(_is_human(p) for p in participants):
            self._orphan_since.pop(room, None)
            return
        since_s = self._orphan_since.setdefault(room, now_s)
        if now_s - since_s < _ORPHAN_S:
            return
        self._orphan_since[room] = now_s
        there = {p.attributes.get(ATTRIBUTE_AGENT_NAME) for p in participants}
        for found in await self._dispatcher.api.agent_dispatch.list_dispatch(room):
            agent = Watched.from_dispatch(room, found, now_s)
            if agent is not None and agent.agent_name not in there:
                self._replace(agent, "it was lost while no supervisor ran")
                return

    async def _clean(self, room: str, participants: list[ParticipantInfo], now_s: float) -> None:
        """Deletes a room that had an agent and has been empty for long."""
        if participants:
            self._empty_since.pop(room, None)
        elif now_s - self._empty_since.setdefault(room, now_s) >= _EMPTY_ROOM_S:
            await self._dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room))
            self._log.add("room_removed", room=room, detail="it was empty")

    async def _remove(self, room: str, identity: str) -> None:
        """Removes an agent from its room; that it is gone already is just as well."""
        request = api.RoomParticipantIdentity(room=room, identity=identity)
        if await _found(self._dispatcher.api.room.remove_participant(request)):
            self._log.add("agent_removed", room=room, detail=identity)

    # -- replacing ----------------------------------------------------------------------

    def _replace(self, agent: Watched, cause: str) -> None:
        now_s = time.monotonic()
        self._log.add(
            "agent_lost",
            room=agent.room,
            detail=f"{agent.identity}: {cause}",
            job_id=agent.job_id,
            dispatch_id=agent.dispatch_id,
        )
        recent = self._replacements.setdefault(agent.room, deque())
        while recent and now_s - recent[0] > _BUDGET_WINDOW_S:
            recent.popleft()
        if len(recent) >= _BUDGET:
            detail = f"{_BUDGET} agents were lost within {_BUDGET_WINDOW_S:g} s"
            self._log.add("given_up", room=agent.room, detail=detail)
            return
        recent.append(now_s)
        task = asyncio.create_task(self._bring(agent))
        self._replacing[agent.room] = task

        def done(_: object) -> None:
            self._replacing.pop(agent.room, None)

        task.add_done_callback(done)

    async def _bring(self, agent: Watched) -> None:
        """Brings another agent into the room, with the lost one's conversation."""
        began_s = time.monotonic()
        withdrawn = time.monotonic() - self._server_back_s < _RESTART_MEMORY_S
        for pause_s in (0.0, *_TRY_AGAIN_S):
            await asyncio.sleep(pause_s)
            try:
                if not await self._wanted(agent, withdrawn):
                    detail = "nobody wants it any more"
                    self._log.add("not_replaced", room=agent.room, detail=detail)
                    return
                # The lost agent's dispatch must not count any more, or the new one is refused.
                service = self._dispatcher.api.agent_dispatch
                await _found(service.delete_dispatch(agent.dispatch_id, agent.room))
                withdrawn = True
                done = await self._dispatcher.dispatch(
                    agent.room,
                    agent.agent_name,
                    metadata=self._metadata(agent),
                    timeout_s=_DISPATCH_TIMEOUT_S,
                )
            except (LabvoiceError, *_SERVER_ERRORS) as error:
                words = error.observed if isinstance(error, LabvoiceError) else str(error)
                self._log.add("replacement_failed", room=agent.room, detail=words)
                continue
            self.replaced += 1
            took_s = time.monotonic() - began_s
            detail = f"{done.agent_identity} after {took_s:.2f} s"
            self._log.add(
                "agent_replaced",
                room=agent.room,
                detail=detail,
                job_id=done.job_id,
                dispatch_id=done.dispatch_id,
            )
            return
        self._log.add("given_up", room=agent.room, detail="no agent could be brought")

    async def _wanted(self, agent: Watched, withdrawn: bool) -> bool:
        """Whether the room is there and nobody but us has deleted the agent's dispatch."""
        service = self._dispatcher.api
        rooms = await service.room.list_rooms(api.ListRoomsRequest(names=[agent.room]))
        if not rooms.rooms or withdrawn:
            return bool(rooms.rooms)
        found = await service.agent_dispatch.list_dispatch(agent.room)
        return agent.dispatch_id in {dispatch.id for dispatch in found}

    def _metadata(self, agent: Watched) -> JobMetadata:
        try:
            metadata = parse_metadata(agent.metadata)
        except MetadataError:
            metadata = JobMetadata()
        avoided = (
            self._local.worse_workers(agent.agent_name, agent.worker_id) if self._local else []
        )
        resume = Resume(history=agent.history, avoid_workers=avoided[:64])
        return metadata.model_copy(update={"resume": resume})


def _is_human(participant: ParticipantInfo) -> bool:
    return participant.kind in (ParticipantInfo.Kind.STANDARD, ParticipantInfo.Kind.SIP)


async def _found(request: Coroutine[Any, Any, object]) -> bool:
    """Sends a request; False when what it is about is gone already."""
    try:
        await request
    except api.TwirpError as error:
        if error.status == 404:
            return False
        raise
    return True
