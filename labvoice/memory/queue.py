"""Writes finished turns to Letta in the background: in order, each exactly once.

The same agent may talk in several rooms at once: its turns are written one after another, in the
order in which they ended. A turn with unknown outcome (no answer, HTTP 500, a crash) is looked up
in Letta before it is sent again: by its `otid`, which Letta stores with the message but does not
check itself, and only when the agent has no active run, because Letta finishes a run whose client
has disconnected and stores the message only then (0.16.8, by trial).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from labvoice.concurrency import cancel
from labvoice.errors import CredentialsError, LabvoiceError, ServerUnreachableError, UsageError
from labvoice.memory.circuit import CircuitBreaker, CircuitOpenError
from labvoice.memory.client import (
    MAX_STEPS,
    AgentMissingError,
    NotReachedError,
    ServerFailedError,
    is_agent_id,
    resolve,
    translate_errors,
)
from labvoice.memory.text import turn_text
from labvoice.memory.turn_store import DISK_ERRORS, MAX_REFUSALS, Turn, TurnStore

if TYPE_CHECKING:
    from letta_client import AsyncLetta

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.5
LEASE_S: Final = 15.0
"""Time after which another process takes over a silent one's agents, in seconds."""
SEND_TIMEOUT_S: Final = 90.0
_RUN_LIMIT_S: Final = 120.0  # an older run that has not ended is dead
_LONGEST_PAUSE_S: Final = 30.0  # between two attempts at a turn that Letta refuses
_HISTORY: Final = 50
_ENDED_WELL: Final = {"end_turn", "max_steps", "tool_rule"}
_UNDER_WAY: Final = {"created", "running"}


class _UnderWayError(LabvoiceError):
    """Letta has an active run of the agent; the outcome is not known yet."""


class _RefusedError(LabvoiceError):
    """Letta refuses this turn; the request has ended, and the agent exists."""


class MemoryQueue:
    """Writes the finished turns of a file to Letta when it is available.

    Args:
        path: The file that holds the turns; one for each Letta server.
        client: Client of that server; see :func:`labvoice.memory.client.new_client`.
        own_server: The server is the embedded one, reached directly: if nothing listens on its
            port, its process and all its runs have ended. This does not hold for an address behind
            a tunnel or a proxy.
        breaker: Circuit breaker for a failing server.
        max_refusals: How often a turn is refused before the turns behind it go first.

    Attributes:
        store: The turns on disk.
    """

    def __init__(
        self,
        path: Path,
        client: AsyncLetta,
        *,
        own_server: bool = False,
        breaker: CircuitBreaker | None = None,
        max_refusals: int = MAX_REFUSALS,
    ) -> None:
        self.store = TurnStore(path, max_refusals)
        self._client = client
        self._own_server = own_server
        self._breaker = breaker or CircuitBreaker()
        self._holder = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._writers: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        # Runs that started before this have ended, although Letta may still list them: its list
        # includes runs that ended with their server or database.
        self._over_before: dict[str, float] = {}
        self._all_over_before = 0.0
        self._not_before_s: dict[str, float] = {}  # by agent, after refusals

    def start(self) -> None:
        """Starts to write in the background, including turns left by earlier processes."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="memory queue")

    async def close(self) -> None:
        """Stops writing; waiting turns stay on disk for the next process. The client stays open."""
        await cancel(*filter(None, (self._task, *self._writers.values())))
        await self.store.close()

    async def _run(self) -> None:
        while True:
            try:
                # While attempts are paused no lease is held: another worker may succeed.
                agents = [] if self._breaker.is_open else await self.store.waiting_agents()
                for agent_id in agents:
                    if agent_id in self._writers or self._put_off(agent_id):
                        continue
                    if await self._lease(agent_id):
                        writer = asyncio.create_task(self._write_all(agent_id))
                        self._writers[agent_id] = writer
                        writer.add_done_callback(partial(self._ended, agent_id))
            except DISK_ERRORS:
                _log.exception("the turns on disk cannot be read; trying again")
            await asyncio.sleep(_POLL_S)

    def _ended(self, agent_id: str, writer: asyncio.Task[None]) -> None:
        del self._writers[agent_id]
        if not writer.cancelled() and (error := writer.exception()):
            _log.error("writing to %s was interrupted; trying again", agent_id, exc_info=error)

    def _put_off(self, agent_id: str) -> bool:
        return self._breaker.is_open or time.monotonic() < self._not_before_s.get(agent_id, 0.0)

    async def _lease(self, agent_id: str) -> bool:
        return await self.store.lease(agent_id, self._holder, LEASE_S)

    async def _write_all(self, agent_id: str) -> None:
        """Writes an agent's turns one after another while the lease is held."""
        this = asyncio.current_task()
        assert this is not None

        async def keep_lease() -> None:
            while True:
                await asyncio.sleep(LEASE_S / 3)
                with suppress(*DISK_ERRORS):
                    if await self._lease(agent_id):
                        continue
                this.cancel()
                return

        keeper = asyncio.create_task(keep_lease())
        try:
            while not self._put_off(agent_id) and (turn := await self.store.next(agent_id)):
                await self._write(turn)
        finally:
            keeper.cancel()
            await self.store.release(agent_id, self._holder)

    async def _write(self, turn: Turn) -> None:
        """Tries once to write a turn to Letta; the store has the outcome."""
        try:
            async with self._breaker.attempt():
                await self._bring(turn)
        except CircuitOpenError:
            return
        except _UnderWayError:
            await asyncio.sleep(_POLL_S)
        except _RefusedError as error:
            _log.warning("turn %s was refused: %s", turn.turn_id, error.observed)
            pause_s = min(_LONGEST_PAUSE_S, _POLL_S * 2 ** min(turn.refused, 16))
            self._not_before_s[turn.agent_id] = time.monotonic() + pause_s
            await self.store.refused(turn, error.observed)
        except AgentMissingError as error:
            _log.warning("turn %s cannot be written: %s", turn.turn_id, error.observed)
            await self.store.lost(turn, error.observed)
        except NotReachedError as error:
            if self._own_server:
                self._all_over_before = time.time()  # its process has ended
            await self.store.unknown(turn, error.observed)
        except ServerFailedError as error:
            await self.store.refused(turn, error.observed)
        except (ServerUnreachableError, CredentialsError) as error:
            await self.store.unknown(turn, error.observed)
        else:
            if is_agent_id(turn.agent_id):  # otherwise only the agent's id was set
                await self.store.written(turn)

    async def _bring(self, turn: Turn) -> None:
        """Sends a turn that Letta does not have; resolves an agent's name to its id.

        Raises:
            AgentMissingError: The agent does not exist.
            _RefusedError: Letta refuses the turn.
        """
        agent = turn.agent_id
        try:
            if not is_agent_id(agent):
                await self.store.rename(agent, await resolve(self._client, agent))
            elif not turn.sent or not await self._arrived(turn):
                await self._send(turn)
        except UsageError as error:
            if is_agent_id(agent):
                with translate_errors(self._client, f"the agent {agent}"):
                    await self._client.agents.retrieve(agent)
            raise _RefusedError(error.observed, error.hint) from None

    async def _send(self, turn: Turn) -> None:
        await self.store.sending(turn)
        try:
            with translate_errors(self._client, f"the agent {turn.agent_id}"):
                answer = await self._client.agents.messages.create(
                    turn.agent_id,
                    messages=[
                        {
                            "role": "user",
                            "content": turn_text(turn.user_text, turn.agent_text),
                            "otid": turn.turn_id,
                        }
                    ],
                    max_steps=MAX_STEPS,
                    timeout=SEND_TIMEOUT_S,
                )
                # The client makes an object of anything; a garbled answer lacks this one.
                ending = answer.stop_reason.stop_reason
            if ending not in _ENDED_WELL:
                raise ServerFailedError(
                    f"Letta's turn ended with {ending!r}", "is the model behind Letta up?"
                )
        except NotReachedError as error:
            await self.store.not_sent(turn, error.observed)
            raise
        except ServerFailedError:
            self._over_before[turn.agent_id] = time.time()
            raise

    async def _arrived(self, turn: Turn) -> bool:
        """Determines the outcome of a turn that was sent.

        Raises:
            _UnderWayError: It is not decided yet.
        """
        agent = turn.agent_id
        over_before = max(
            time.time() - _RUN_LIMIT_S,
            self._over_before.get(agent, 0.0),
            self._all_over_before,
        )
        with translate_errors(self._client, f"the agent {agent}"):
            # In this order: a run that has ended has stored its message.
            runs = await self._client.runs.list(agent_id=agent, limit=_HISTORY)
            for run in runs.items:
                begun = run.created_at.timestamp() if run.created_at else 0.0
                if run.status in _UNDER_WAY and begun >= over_before:
                    raise _UnderWayError(f"Letta still works on {agent}")
            page = await self._client.agents.messages.list(
                agent,
                limit=_HISTORY,
                order="desc",
                include_return_message_types=["user_message"],
            )
            return any(getattr(message, "otid", None) == turn.turn_id for message in page.items)
