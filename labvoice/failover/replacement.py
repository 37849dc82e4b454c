"""Replaces a lost agent, with retries for as long as a human is in the room."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import aiohttp
from livekit import api

from labvoice.concurrency import cancel
from labvoice.dispatch.agents import agents_of
from labvoice.dispatch.dispatcher import Dispatcher
from labvoice.dispatch.rooms import (
    began_after,
    dispatches_of,
    is_human,
    participants,
    withdraw,
)
from labvoice.errors import LabvoiceError, MetadataError
from labvoice.failover.watched import Watched
from labvoice.protocol.metadata import Metadata, Resume, metadata_text, parse_metadata
from labvoice.stack.workers.events import EventLog

SERVER_ERRORS: Final = (api.TwirpError, aiohttp.ClientError, TimeoutError)
_DISPATCH_TIMEOUT_S: Final = 10.0
_TRY_AGAIN_S: Final = (1.0, 2.0, 4.0, 8.0)
_SLOWLY_S: Final = 15.0
"""Pause between later retries while a human is in the room, in seconds."""
_BUDGET: Final = 5
_BUDGET_WINDOW_S: Final = 60.0
"""At most 5 replacements a minute in a room, so that a crashing agent is not restarted forever."""
_PUT_BACK_S: Final = 3.0


class Replacements:
    """The replacements under way.

    Args:
        avoided: Returns ids of workers to avoid, by agent name and the id of the worker that lost
            its agent.

    Attributes:
        done: Number of replacements that joined.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        log: EventLog,
        avoided: Callable[[str, str], list[str]],
    ) -> None:
        self.done = 0
        self._dispatcher = dispatcher
        self._log = log
        self._avoided = avoided
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._recent: dict[str, deque[float]] = {}

    def under_way(self, room: str, agent_name: str) -> bool:
        """Whether a replacement of that agent name is under way in the room."""
        return (room, agent_name) in self._tasks

    def begin(self, agent: Watched) -> None:
        """Starts to replace a lost agent."""
        now_s = time.monotonic()
        recent = self._recent.setdefault(agent.room, deque())
        while recent and now_s - recent[0] > _BUDGET_WINDOW_S:
            recent.popleft()
        pause_s = 0.0
        if len(recent) >= _BUDGET:
            pause_s = recent[-_BUDGET] + _BUDGET_WINDOW_S - now_s
            detail = f"{_BUDGET} agents were lost within {_BUDGET_WINDOW_S:g} s"
            self._log.add("replacement_waits", room=agent.room, detail=f"{pause_s:.0f} s: {detail}")
        recent.append(now_s + pause_s)
        key = agent.room, agent.agent_name
        task = asyncio.create_task(self._bring(agent, pause_s))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def forget(self, room: str) -> None:
        """Resets the count of lost agents of a room."""
        self._recent.pop(room, None)

    async def stop(self) -> None:
        """Cancels the replacements; each room keeps a dispatch for the next supervisor."""
        await cancel(*self._tasks.values())

    async def _bring(self, agent: Watched, pause_s: float) -> None:
        over = False
        try:
            over = await self._try(agent, pause_s)
        finally:
            if not over:
                await asyncio.shield(asyncio.create_task(self._put_back(agent)))

    async def _try(self, agent: Watched, pause_s: float) -> bool:
        """Retries until an agent has joined, or none is needed any more.

        Returns:
            Whether the replacement is finished; otherwise a caller may still come.
        """
        began_s = time.monotonic()
        pauses = itertools.chain((pause_s, *_TRY_AGAIN_S), itertools.repeat(_SLOWLY_S))
        for number, each_s in enumerate(pauses):
            await asyncio.sleep(each_s)
            try:
                if reason := await self._called_off(agent):
                    self._log.add("not_replaced", room=agent.room, detail=reason)
                    return True
                if number > len(_TRY_AGAIN_S) and not await self._has_human(agent.room):
                    self._log.add("not_replaced", room=agent.room, detail="nobody waits for it")
                    return False
                identity = await self._replace(agent)
            except (LabvoiceError, *SERVER_ERRORS) as error:
                words = error.observed if isinstance(error, LabvoiceError) else str(error)
                detail = words or type(error).__name__
                self._log.add("replacement_failed", room=agent.room, detail=detail)
                await self._put_back(agent)
                continue
            self.done += 1
            detail = f"{identity} after {time.monotonic() - began_s:.2f} s"
            self._log.add(
                "agent_replaced",
                room=agent.room,
                detail=detail,
                job_id=identity.removeprefix("agent-"),
            )
            return True
        raise AssertionError("the pauses have no end")

    async def _replace(self, agent: Watched) -> str:
        """Dispatches one replacement, and returns its identity."""
        server = self._dispatcher.api
        there = await agents_of(server, agent.room, agent.agent_name)
        if found := [each.identity for each in there if each.identity != agent.identity]:
            return found[0]  # from the restored dispatch, or from another dispatcher
        if agent.dispatch_id:
            # The lost agent's dispatch must not be valid any more, or the new job is refused.
            await withdraw(server, agent.room, agent.dispatch_id)
            agent.dispatch_id = ""
        done = await self._dispatcher.dispatch(
            agent.room,
            agent.agent_name,
            metadata=self._metadata(agent, self._avoided(agent.agent_name, agent.worker_id)),
            timeout_s=_DISPATCH_TIMEOUT_S,
        )
        return done.agent_identity

    async def _called_off(self, agent: Watched) -> str:
        """Returns why no replacement is needed any more; empty if one is."""
        server = self._dispatcher.api
        rooms = await server.room.list_rooms(api.ListRoomsRequest(names=[agent.room]))
        if not rooms.rooms:
            return "its room is gone"
        if agent.dispatch_id:
            found = await dispatches_of(server, agent.room)
            if agent.dispatch_id not in {dispatch.id for dispatch in found}:
                if not began_after(found, agent.joined_at_ms):
                    return "its dispatch was withdrawn"
                agent.dispatch_id = ""
        return ""

    async def _has_human(self, room: str) -> bool:
        return any(map(is_human, await participants(self._dispatcher.api, room)))

    async def _put_back(self, agent: Watched) -> None:
        """Ensures that the room has a dispatch, by which a supervisor finds it again."""
        if agent.dispatch_id:
            return
        request = api.CreateAgentDispatchRequest(
            agent_name=agent.agent_name,
            room=agent.room,
            metadata=metadata_text(self._metadata(agent, [])),
        )
        with contextlib.suppress(*SERVER_ERRORS):
            async with asyncio.timeout(_PUT_BACK_S):
                made = await self._dispatcher.api.agent_dispatch.create_dispatch(request)
                agent.dispatch_id = made.id

    def _metadata(self, agent: Watched, avoided: list[str]) -> Metadata:
        """Returns the replacement's metadata; metadata that is not labvoice's is unchanged."""
        if not agent.ours:
            return agent.metadata
        try:
            metadata = parse_metadata(agent.metadata)
        except MetadataError:
            return agent.metadata
        if not agent.begun:  # the first agent of the call: no apology
            return metadata
        resume = Resume(history=agent.history, avoid_workers=avoided[:64])
        return metadata.model_copy(update={"resume": resume})
