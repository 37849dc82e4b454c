"""Failover: watches the rooms with labvoice's agents and replaces an agent that is lost.

LiveKit's own server needs about 21 s to notice a dead agent and never replaces it. labvoice's
agents publish heartbeats as participant attributes (see :mod:`labvoice.agent.presence`); the
supervisor reads them through the server's API, so workers may run on any host. For the workers of
its own lab it also checks whether the job's process exists, which is faster.

Other agents publish no heartbeat. Such an agent is lost if it has left the room and its job has not
succeeded: the server notices a killed agent after some 21 s, and the supervisor waits 12 s more in
which the job may still succeed. The replacement gets the same metadata, without the conversation's
history.

All its state is in the server, so the supervisor may be stopped and started at any time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

from livekit import api
from livekit.protocol.models import ParticipantInfo

from labvoice.concurrency import cancel
from labvoice.dispatch.dispatcher import Dispatcher
from labvoice.dispatch.rooms import (
    ATTRIBUTE_AGENT_NAME,
    agent_names,
    delete_if_empty,
    is_agent,
    is_human,
    job_identities,
    participants,
    remove_agent,
)
from labvoice.failover.clock import LoopClock
from labvoice.failover.replacement import SERVER_ERRORS, Replacements
from labvoice.failover.watched import Watched, is_ours
from labvoice.stack.workers.events import EventLog
from labvoice.stack.workers.pool import Pool

_PAUSE_S: Final = 0.2
_BUSY: Final = 4
"""Lower bound of the polling interval, as a multiple of the time that one round took: with many
rooms the supervisor polls less often rather than taking the processor from the calls."""
_LONGEST_PAUSE_S: Final = 2.0
_ROOM_S: Final = 3.0
"""Timeout of one room in a round, in seconds."""
_REQUESTS_AT_ONCE: Final = 8
_GRACE_S: Final = 0.5
"""Time without its agent after which a room counts as having lost it, in seconds."""
_RESTART_GRACE_S: Final = 5.0
"""The same after a server restart, in which participants need time to reconnect."""
_RESTART_MEMORY_S: Final = 60.0
"""Time that a room may take to reappear after a server restart, in seconds."""
_ORPHAN_S: Final = 5.0
"""Time without any agent after which a room with a dispatch and a caller is checked for an agent
that was lost while no supervisor ran, in seconds."""
_CLOSING_S: Final = 12.0
"""Time after its leaving in which the job of an agent that is not labvoice's may still succeed, in
seconds: livekit-agents gives a process 10 s (worker.py, `shutdown_process_timeout`)."""
_REMOVAL_S: Final = 1.0
"""Longest wait for the answer to a removal, in seconds. A cluster goes on listing the participants
of a lost node, and nobody removes them."""
_REMOVE_AGAIN_S: Final = 5.0
_DOUBLE_S: Final = 2.0
"""Time for which two agents of one name are tolerated in a room, in seconds: one may be leaving."""


class Supervisor:
    """Watches all rooms of a server, and replaces lost agents.

    Args:
        local: The workers on this host; None if there are none.
        lost_after_s: Time without a heartbeat after which an agent counts as lost, in seconds.
            Agents send one every 0.4 s.

    Attributes:
        empty_room_s: Time after which an empty room that had an agent is deleted, in seconds;
            LiveKit's default is 300.
        cold_start_s: Time in which the agent of a running job must join, in seconds, for it may
            load models first: the server calls a job running as soon as it asks a worker (LiveKit
            `pkg/agent/worker.go`, AssignJob).
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        log: EventLog,
        *,
        local: Pool | None = None,
        lost_after_s: float = 1.2,
    ) -> None:
        self._dispatcher = dispatcher
        self._log = log
        self._local = local
        self._lost_after_s = lost_after_s
        self.empty_room_s = 30.0
        self.cold_start_s = 60.0
        self._agents: dict[str, dict[str, Watched]] = {}
        self._buried: deque[str] = deque(maxlen=1000)
        self._empty_since: dict[str, float] = {}
        self._orphan_since: dict[str, float] = {}
        self._double_since: dict[str, dict[str, float]] = {}
        self._others_seen: dict[str, dict[str, float]] = {}
        self._not_removed: dict[str, dict[str, float]] = {}
        self._unseen: set[str] = set()
        self._server_back_s = -_RESTART_MEMORY_S
        self._reachable = True
        self._clock = LoopClock()
        self._limit = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        self._replacements = Replacements(
            dispatcher,
            log,
            local.worse_workers if local is not None else lambda *_: [],
        )

    # -- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Starts watching; does nothing if it already does."""
        if not self.running:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops watching; a replacement under way is left to the next supervisor."""
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)
        await self._replacements.stop()

    @property
    def replaced(self) -> int:
        """Number of agents replaced."""
        return self._replacements.done

    @property
    def running(self) -> bool:
        """Whether it watches."""
        return self._task is not None and not self._task.done()

    def __repr__(self) -> str:
        state = "watching" if self.running else "stopped"
        watched = sum(map(len, self._agents.values()))
        return f"<Supervisor {state} agents={watched} replaced={self.replaced}>"

    async def _run(self) -> None:
        ticking = asyncio.create_task(self._clock.run())
        try:
            await self._watch()
        finally:
            ticking.cancel()

    async def _watch(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                await self._look()
            except Exception as error:  # any error: the supervisor must keep running
                detail = f"{type(error).__name__}: {error}"
                self._log.add("supervisor_failed", detail=detail)
            took_s = time.monotonic() - began_s
            await asyncio.sleep(max(_PAUSE_S, min(_BUSY * took_s, _LONGEST_PAUSE_S)))

    # -- watching -----------------------------------------------------------------------

    @property
    def _restarted(self) -> bool:
        """Whether the server restarted recently."""
        return time.monotonic() - self._server_back_s < _RESTART_MEMORY_S

    async def _look(self) -> None:
        """One round: lists all rooms and checks each."""
        service = self._dispatcher.api.room
        try:
            rooms = {room.name for room in (await service.list_rooms(api.ListRoomsRequest())).rooms}
        except SERVER_ERRORS as error:
            if self._reachable:
                self._log.add("server_lost", detail=str(error) or type(error).__name__)
            self._reachable = False
            return
        if not self._reachable:
            self._log.add("server_back")
            self._server_back_s = time.monotonic()
            self._reachable = True
        await asyncio.gather(*map(self._look_at, rooms))
        # A deleted room is finished, unless the server was restarted meanwhile.
        tables: tuple[dict[str, Any], ...] = (
            self._agents,
            self._empty_since,
            self._orphan_since,
            self._double_since,
            self._others_seen,
            self._not_removed,
        )
        if not self._restarted:
            for room in {name for table in tables for name in table} - rooms:
                self._replacements.forget(room)
                for table in tables:
                    table.pop(room, None)
        self._unseen &= rooms

    async def _look_at(self, room: str) -> None:
        """Checks one room; an error in it does not stop the check of the others."""
        async with self._limit:
            try:
                async with asyncio.timeout(_ROOM_S):
                    asked_s = self._clock()
                    seen = await participants(self._dispatcher.api, room)
                    await self._judge(room, seen, asked_s)
            except Exception as error:
                if room not in self._unseen:
                    detail = f"{type(error).__name__}: {error}"
                    self._log.add("look_failed", room=room, detail=detail)
                self._unseen.add(room)
            else:
                self._unseen.discard(room)

    async def _judge(self, room: str, seen: list[ParticipantInfo], now_s: float) -> None:
        present = {
            p.identity: p
            for p in seen
            if is_ours(p)
            and not self._replacements.under_way(room, p.attributes.get(ATTRIBUTE_AGENT_NAME, ""))
        }
        for lost in [p for p in seen if p.identity in self._buried]:
            present.pop(lost.identity, None)
            await self._remove(room, lost)  # it has come back
        if others := [p.identity for p in seen if is_agent(p) and not is_ours(p)]:
            self._others_seen.setdefault(room, {}).update(dict.fromkeys(others, now_s))
        watched = self._agents.setdefault(room, {}) if present else self._agents.get(room, {})
        for identity, participant in present.items():
            if identity not in watched:
                watched[identity] = Watched(room, participant, now_s)
            watched[identity].update(participant, now_s)
        if room in self._agents:
            await self._clean(room, seen, now_s)
        unwatched = not watched
        await self._replace_lost(room, watched, present, any(map(is_human, seen)), now_s)
        await self._thin_out(room, seen, now_s)
        if unwatched:
            await self._look_for_orphan(room, seen, now_s)

    async def _replace_lost(
        self,
        room: str,
        watched: dict[str, Watched],
        present: dict[str, ParticipantInfo],
        human: bool,
        now_s: float,
    ) -> None:
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
            # An agent that left with its caller is not lost; one that dies while it waits for its
            # caller is.
            missed = (identity in present or human) and not others and not agent.leaving
            missed = missed and not self._replacements.under_way(room, agent.agent_name)
            if identity in present or missed:
                self._buried.append(identity)
            try:
                if identity in present:
                    await self._remove(room, present[identity])
            finally:
                if missed:
                    self._replace(agent, cause)

    def _loss(self, agent: Watched, present: bool, now_s: float) -> str:
        """Returns how an agent was lost; empty if it was not."""
        if not present:
            grace_s = _RESTART_GRACE_S if self._restarted else _GRACE_S
            return (
                "it left the room without a reason" if agent.missing_for(now_s) >= grace_s else ""
            )
        if self._is_dead(agent.job_id):
            return "its process died"
        silent_s = agent.silent_for(now_s)
        return f"it was silent for {silent_s:.1f} s" if silent_s >= self._lost_after_s else ""

    async def _thin_out(self, room: str, seen: list[ParticipantInfo], now_s: float) -> None:
        """Removes duplicates of each agent name that this lab serves or has an agent of."""
        names = set(self._local.names) if self._local is not None else set()
        names |= {p.attributes.get(ATTRIBUTE_AGENT_NAME, "") for p in seen if is_ours(p)}
        there = [
            p.attributes.get(ATTRIBUTE_AGENT_NAME, "")
            for p in seen
            if is_agent(p)
            and p.state == ParticipantInfo.State.ACTIVE
            and p.identity not in self._buried
        ]
        doubled = {name for name in names if name and there.count(name) > 1}
        since = self._double_since.pop(room, {})
        if doubled:
            self._double_since[room] = {name: since.get(name, now_s) for name in doubled}
        for name, since_s in self._double_since.get(room, {}).items():
            if now_s - since_s >= _DOUBLE_S:
                detail = f"{there.count(name)} agents named {name!r}; the first one stays"
                self._log.add("duplicate_agent", room=room, detail=detail)
                await self._dispatcher.keep_one(room, name)

    async def _look_for_orphan(self, room: str, seen: list[ParticipantInfo], now_s: float) -> None:
        """Finds a caller whose agent was lost while no supervisor ran, or never joined."""
        if not any(map(is_human, seen)) or any(map(is_ours, seen)):
            self._orphan_since.pop(room, None)
            return
        since_s = self._orphan_since.setdefault(room, now_s)
        if now_s - since_s < _ORPHAN_S:
            return
        self._orphan_since[room] = now_s
        dispatches = await self._dispatcher.api.agent_dispatch.list_dispatch(room)
        there = set(agent_names(seen, dispatches).values())
        if None in there:
            return  # an agent whose dispatch is not known yet
        for found in dispatches:
            if found.agent_name in there or self._replacements.under_way(room, found.agent_name):
                continue
            identities = job_identities(found.state.jobs[-1]) if found.state.jobs else set()
            others = self._others_seen.get(room, {})
            left_s = [now_s - others[each] for each in identities if each in others]
            gone = any(each_s >= _CLOSING_S for each_s in left_s)
            agent = Watched.from_dispatch(
                room,
                found,
                now_s,
                lambda job_id, gone=gone: gone or self._is_dead(job_id),  # type: ignore[misc]
                wall_s=time.time(),
                cold_start_s=self.cold_start_s,
            )
            if agent is None:
                continue
            agent.ours = not left_s
            self._replace(
                agent,
                "it left and its job did not succeed"
                if left_s
                else "it was lost while no supervisor ran, or never joined",
            )

    def _is_dead(self, job_id: str) -> bool:
        process = self._local.process_of(job_id) if self._local is not None else None
        return process is not None and not process.alive

    async def _clean(self, room: str, seen: list[ParticipantInfo], now_s: float) -> None:
        """Deletes a room that had an agent and has been empty too long."""
        if seen:
            self._empty_since.pop(room, None)
            return
        empty_s = now_s - self._empty_since.setdefault(room, now_s)
        if empty_s >= self.empty_room_s and await delete_if_empty(self._dispatcher.api, room):
            self._log.add("room_removed", room=room, detail="it was empty")

    async def _remove(self, room: str, agent: ParticipantInfo) -> None:
        """Removes an agent from its room, if it is still there and its server answers."""
        again_s = self._not_removed.get(room, {}).get(agent.sid, 0.0)
        if time.monotonic() < again_s:
            return
        try:
            async with asyncio.timeout(_REMOVAL_S):
                removed = await remove_agent(self._dispatcher.api, room, agent.identity)
        except SERVER_ERRORS:
            again_s = time.monotonic() + _REMOVE_AGAIN_S
            self._not_removed.setdefault(room, {})[agent.sid] = again_s
        else:
            if removed:
                self._log.add("agent_removed", room=room, detail=agent.identity)

    def _replace(self, agent: Watched, cause: str) -> None:
        self._log.add(
            "agent_lost",
            room=agent.room,
            detail=f"{agent.identity}: {cause}",
            job_id=agent.job_id,
            dispatch_id=agent.dispatch_id,
        )
        self._replacements.begin(agent)
