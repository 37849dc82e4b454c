"""What one call has to do with Letta: load, follow, write back, and tell how it stands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Literal

from letta_client import AsyncLetta

from labvoice.agent.memory import MemorySnapshot, watch
from labvoice.agent.turn_store import TurnStore
from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.letta import in_words, is_agent_id, new_client, resolve
from labvoice.settings import Settings

logger = logging.getLogger("labvoice.agent")

_FIRST_TOKEN_TIMEOUT_S: Final = 4.0
"""How long Letta may think in letta mode before the fast model answers instead, in seconds."""
_RESOLVE_PAUSE_S: Final = 2.0

MemoryState = Literal["off", "loading", "ready", "unavailable"]


class CallMemory:
    """The memory of one call.

    Args:
        settings: Letta's address and key, and the file of the turns.
        agent: Id or name of the Letta agent; None: no memory.
        room: Name of the room.
        on_state: Told the state whenever it changes.

    Attributes:
        state: `off`, `loading`, `ready` or `unavailable`; the last one is retried.
        memory_load_s: From the start to the first blocks, in seconds; None before.
        client: Client of the Letta server; None without memory.
        agent_id: Id of the Letta agent; None until it is known.
        error: Why the memory is unavailable, in words; empty when it is not.
        updates: How often the blocks were taken up: once, and again for each change seen.
    """

    def __init__(
        self,
        settings: Settings,
        agent: str | None,
        room: str,
        on_state: Callable[[MemoryState], None],
    ) -> None:
        self.state: MemoryState = "off"
        self.memory_load_s: float | None = None
        self.client: AsyncLetta | None = None
        self.agent_id: str | None = agent if agent and is_agent_id(agent) else None
        self.error = ""
        self.updates = 0
        self._agent, self._room, self._on_state = agent, room, on_state
        self._store: TurnStore | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        if agent and settings.letta_base_url and settings.letta_turns_path:
            self.client = new_client(settings.letta_base_url, settings.letta_api_key)
            self._store = TurnStore(Path(settings.letta_turns_path))

    def start(self, on_memory: Callable[[MemorySnapshot], None]) -> None:
        """Begins to load and follow the memory in the background.

        Args:
            on_memory: Called with the blocks when they are first there and when they change.
        """
        if self.client is not None:
            self._set("loading")
            self.spawn(self._follow(self.client, on_memory, time.monotonic()))

    async def _follow(
        self, client: AsyncLetta, on_memory: Callable[[MemorySnapshot], None], began_s: float
    ) -> None:
        assert self._agent is not None
        assert self._store is not None
        while self.agent_id is None:
            try:
                self.agent_id = await resolve(client, self._agent)
                await self._store.rename(self._agent, self.agent_id)
            except LabvoiceError as error:
                logger.warning("no memory for now: %s", error.observed)
                self._set("unavailable", error)
                await asyncio.sleep(_RESOLVE_PAUSE_S)

        def changed(snapshot: MemorySnapshot) -> None:
            if self.memory_load_s is None:
                self.memory_load_s = time.monotonic() - began_s
            self.updates += 1
            self._set("ready")
            on_memory(snapshot)

        await watch(
            client,
            self.agent_id,
            changed,
            on_error=lambda error: self._set("unavailable" if error else "ready", error),
        )

    def _set(self, state: MemoryState, error: LabvoiceError | None = None) -> None:
        self.error = error.observed if error else ""
        if state != self.state:
            self.state = state
            self._on_state(state)

    def write_back(self, turn_id: str, user_text: str, agent_text: str, *, sent: bool) -> None:
        """Puts a finished turn on disk; the worker brings it to Letta.

        Args:
            turn_id: Its id, and the `otid` of its message in Letta.
            user_text: What the user said.
            agent_text: What the agent answered.
            sent: Letta may have it already; the worker looks before it sends.
        """
        if self._store is not None and self._agent is not None:
            agent = self.agent_id or self._agent
            self.spawn(
                self._store.put(agent, self._room, turn_id, user_text, agent_text, int(sent))
            )

    async def synced(self) -> dict[str, float]:
        """Seconds from the end of each of this call's turns to its being in Letta, by turn id."""
        return await self._store.synced(self._room) if self._store is not None else {}

    async def facts(self) -> dict[str, Any]:
        """How the memory stands, for the caller: state, error, and the turns of all calls."""
        waiting, _, lost, error = (
            await self._store.counts() if self._store is not None else (0, None, 0, None)
        )
        return {
            "state": self.state,
            "error": self.error or error or "",
            "updates": self.updates,
            "memory_load_s": self.memory_load_s,
            "waiting_turns": waiting,
            "lost_turns": lost,
        }

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something in the background; it is given a moment to finish at the end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stream(self, turn_id: str, user_text: str) -> AsyncGenerator[str, None]:
        """Has Letta itself answer, token by token; left early, its run is cancelled.

        Letta keeps nothing of a cancelled run, not even what the user said (0.16.8, by trial).

        Args:
            turn_id: The `otid` of the message.
            user_text: What the user said.

        Raises:
            LabvoiceError: Letta does not answer in time, or not at all.
        """
        if self.client is None or self.agent_id is None:
            raise LabvoiceError("the Letta agent is not there yet")
        if self.state == "unavailable":  # the last look at it failed; do not keep the user waiting
            raise LabvoiceError(self.error)
        client, agent_id = self.client, self.agent_id
        run: list[str] = []
        done = False
        try:
            with in_words(client, f"the agent {agent_id}"):
                async with asyncio.timeout(_FIRST_TOKEN_TIMEOUT_S):
                    answer = await client.agents.messages.create(
                        agent_id,
                        messages=[{"role": "user", "content": user_text, "otid": turn_id}],
                        streaming=True,
                        stream_tokens=True,
                        include_pings=True,  # the first one, at once, names the run
                    )
                    pieces = _texts(answer, run)
                    first = await anext(pieces, None)
                if first is None:
                    raise LabvoiceError("Letta ended the turn without an answer")
                yield first
                async for piece in pieces:
                    yield piece
                done = True
        except TimeoutError:
            raise StageTimeoutError(
                "letta_ttft", _FIRST_TOKEN_TIMEOUT_S, "Letta has not answered yet"
            ) from None
        finally:
            if run and not done:
                self.spawn(self._cancel_run(client, agent_id, run))

    @staticmethod
    async def _cancel_run(client: AsyncLetta, agent_id: str, run: list[str]) -> None:
        try:
            with in_words(client, f"the run of {agent_id}"):
                # By its id: the agent may be talking in another room too.
                await client.agents.messages.cancel(agent_id, run_ids=run)
        except LabvoiceError as error:
            logger.warning("the run could not be cancelled: %s", error.observed)

    async def aclose(self) -> None:
        """Finishes what is being put on disk and closes the connections."""
        puts = [task for task in self._tasks if not task.done()]
        if puts:
            await asyncio.wait(puts, timeout=1.0)
        for task in puts:
            task.cancel()
        if self._store is not None:
            await self._store.close()
        if self.client is not None:
            await self.client.close()


async def _texts(answer: Any, run: list[str]) -> AsyncGenerator[str, None]:
    """The words of a streamed answer; puts the id of its run into `run` when it is known."""
    async for chunk in answer:
        if not run and chunk.run_id:
            run.append(chunk.run_id)
        if chunk.message_type == "assistant_message":
            content = chunk.content
            text = content if isinstance(content, str) else "".join(p.text for p in content)
            if text:
                yield text
        elif chunk.message_type == "error_message":
            raise LabvoiceError(f"Letta's turn failed: {chunk.message}")
