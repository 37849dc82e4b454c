"""The memory of one call: loads and follows Letta's blocks, writes turns back, reports state."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import stamina

from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.memory.blocks import MemorySnapshot, watch
from labvoice.memory.client import MAX_STEPS, is_agent_id, new_client, resolve, translate_errors
from labvoice.memory.turn_store import DISK_ERRORS, Counts, TurnStore
from labvoice.settings import Settings

if TYPE_CHECKING:
    from letta_client import AsyncLetta

logger = logging.getLogger("labvoice.agent")

SILENCE_S: Final = 4.0
"""Timeout without progress from Letta in letta mode, in seconds; then the fast model answers. Each
round with a tool is progress; keep-alive pings are not."""
_FIRST_WORD_S: Final = 15.0
"""Timeout of all rounds before the first word together, in seconds."""
_RESOLVE_PAUSE_S: Final = 2.0
_PUT_PAUSE_S: Final = 1.0
_NOTE_S: Final = 1.0  # the user waits for it
_PUTS_AT_END_S: Final = 5.0

_retries = partial(
    stamina.retry_context, attempts=None, timeout=None, wait_jitter=0, wait_exp_base=1
)

MemoryState = Literal["off", "loading", "ready", "unavailable"]


class CallMemory:
    """The memory of one call.

    Args:
        settings: Letta's address and key, and the file of the turns.
        agent: Id or name of the Letta agent; None: no memory.
        on_state: Called whenever the state changes.
        silence_s: Timeout without progress from Letta in letta mode, in seconds.

    Attributes:
        state: `off`, `loading`, `ready` or `unavailable`; `unavailable` is retried.
        memory_load_s: From the start to the first blocks, in seconds; None before.
        client: Client of the Letta server; None without memory.
        agent_id: Id of the Letta agent; None until it is known.
        error: Why the memory is unavailable; empty if it is available.
        disk_error: Why turns cannot be written to disk; empty if they can.
        updates: How often the blocks were loaded: once, and again for each change.
    """

    def __init__(
        self,
        settings: Settings,
        agent: str | None,
        room: str,
        on_state: Callable[[MemoryState], None],
        *,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.state: MemoryState = "off"
        self.memory_load_s: float | None = None
        self.client: AsyncLetta | None = None
        self.agent_id: str | None = agent if agent and is_agent_id(agent) else None
        self.error = self.disk_error = ""
        self.updates = 0
        self._agent, self._room, self._on_state = agent, room, on_state
        self._silence_s = silence_s
        self._store: TurnStore | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._following: asyncio.Task[None] | None = None
        if agent and settings.letta_base_url and settings.letta_turns_path:
            self.client = new_client(settings.letta_base_url, settings.letta_api_key)
            self._store = TurnStore(Path(settings.letta_turns_path))

    def start(self, on_memory: Callable[[MemorySnapshot], None]) -> None:
        """Starts to load and follow the memory in the background.

        Args:
            on_memory: Called with the blocks when they are first loaded and when they change.
        """
        if self.client is not None:
            self._set("loading")
            self._following = asyncio.create_task(
                self._follow(self.client, on_memory, time.monotonic())
            )
            self._following.add_done_callback(_log_failure)

    async def _follow(
        self, client: AsyncLetta, on_memory: Callable[[MemorySnapshot], None], began_s: float
    ) -> None:
        assert self._agent is not None
        assert self._store is not None
        if self.agent_id is None:
            async for attempt in _retries(LabvoiceError, wait_initial=_RESOLVE_PAUSE_S):
                with attempt:
                    self.agent_id = await self._resolved(client, self._agent)
            assert self.agent_id is not None
            rename = partial(self._store.rename, self._agent, self.agent_id)
            self.spawn(self._on_disk(rename, "the turns on disk cannot be read"))

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
            on_error=lambda error: self._set(
                "unavailable" if error else "ready", error.observed if error else ""
            ),
        )

    async def _resolved(self, client: AsyncLetta, agent: str) -> str:
        try:
            return await resolve(client, agent)
        except LabvoiceError as error:
            logger.warning("no memory for now: %s", error.observed)
            self._set("unavailable", error.observed)
            raise

    def _set(self, state: MemoryState, error: str = "") -> None:
        self.error = error
        if state != self.state:
            self.state = state
            self._on_state(state)

    def write_back(self, turn_id: str, user_text: str, agent_text: str, *, sent: bool) -> None:
        """Writes a finished turn to disk; the worker sends it to Letta.

        Args:
            turn_id: Its id, and the `otid` of its message in Letta.
            sent: Letta may have it already; the worker checks before it sends.
        """
        if self._store is not None and self._agent is not None:
            agent = self.agent_id or self._agent
            put = partial(
                self._store.put, agent, self._room, turn_id, user_text, agent_text, int(sent)
            )
            self.spawn(self._on_disk(put, "a turn cannot be put on disk"))

    async def begin(self, turn_id: str, user_text: str, instead_of: str | None) -> None:
        """Records a turn on disk before the request to Letta; see :meth:`TurnStore.begin`.

        Without that record, a replacement agent would send the request again.
        """
        if self._store is not None and self._agent is not None:
            agent = self.agent_id or self._agent
            try:
                async with asyncio.timeout(_NOTE_S):
                    await self._store.begin(agent, self._room, turn_id, user_text, instead_of)
            except DISK_ERRORS as error:
                self.disk_error = f"a turn cannot be put on disk: {error}"
                logger.exception("a turn that begins cannot be put on disk")

    async def begun(self) -> tuple[str, str] | None:
        """Id and user text of the turn that a lost agent has sent to Letta in this room."""
        try:
            return await self._store.begun(self._room) if self._store is not None else None
        except DISK_ERRORS:
            logger.exception("the turns on disk cannot be read")
            return None

    async def _on_disk(self, work: Callable[[], Awaitable[object]], trouble: str) -> None:
        """Retries an operation on the file until it succeeds."""
        async for attempt in _retries(DISK_ERRORS, wait_initial=_PUT_PAUSE_S):
            with attempt:
                try:
                    await work()
                except DISK_ERRORS as error:
                    self.disk_error = f"{trouble}: {error}"
                    logger.warning("%s; trying again", self.disk_error)
                    raise
        self.disk_error = ""

    async def synced(self) -> dict[str, float]:
        """Seconds from the end of each turn until it is stored in Letta, by turn id."""
        return await self._store.synced(self._room) if self._store is not None else {}

    async def facts(self) -> dict[str, Any]:
        """The memory's status for the caller: its state, and the turns on disk.

        `waiting_turns` and `oldest_turn_age_s` (None when none waits) are of all calls that share
        the file; `lost_turns` and the errors are of this agent.
        """
        found = Counts()
        try:
            if self._store is not None:
                found = await self._store.counts(self.agent_id or self._agent)
        except DISK_ERRORS as error:
            self.disk_error = f"the turns on disk cannot be read: {error}"
        since = found.waiting_since
        return {
            "state": self.state,
            "error": self.disk_error or self.error or found.error or "",
            "updates": self.updates,
            "memory_load_s": self.memory_load_s,
            "waiting_turns": found.waiting,
            "oldest_turn_age_s": None if since is None else max(0.0, time.time() - since),
            "lost_turns": found.lost,
            "lost_error": found.lost_error or "",
        }

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs a task in the background; at the end of the call it gets a moment to finish."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)

    async def stream(
        self, turn_id: str, user_text: str, on_kept: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[str, None]:
        """Streams Letta's own answer, token by token; stopping early cancels its run.

        Letta stores a message at the end of the first round of its model (0.16.8,
        letta_agent_v3.py, `_checkpoint_messages`): of a run that is cancelled before, it keeps
        nothing, not even what the user said.

        Args:
            turn_id: The `otid` of the message.
            on_kept: Called when Letta has stored the message, even if the run fails later.

        Raises:
            LabvoiceError: Letta does not answer, not in time, or breaks off.
        """
        if self.client is None or self.agent_id is None:
            raise LabvoiceError("the Letta agent is not known yet")
        if self.state == "unavailable":  # the last request failed; do not keep the user waiting
            raise LabvoiceError(self.error)
        client, agent_id = self.client, self.agent_id
        run: list[str] = []
        done = spoken = False
        asked_s = time.monotonic()
        try:
            with translate_errors(client, f"the agent {agent_id}"):
                async with asyncio.timeout(self._silence_s):
                    answer = await client.agents.messages.create(
                        agent_id,
                        messages=[{"role": "user", "content": user_text, "otid": turn_id}],
                        max_steps=MAX_STEPS,
                        streaming=True,
                        stream_tokens=True,
                        include_pings=True,  # the first one, at once, names the run
                    )
                pieces = _texts(answer, run, on_kept)
                while True:
                    rest_s = self._silence_s
                    if not spoken:
                        rest_s = min(rest_s, asked_s + _FIRST_WORD_S - time.monotonic())
                    async with asyncio.timeout(rest_s):
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    if piece:
                        spoken = True
                        yield piece
                done = True
                if not spoken:
                    raise LabvoiceError("Letta ended the turn without an answer")
        except TimeoutError:
            stage = "letta_answer" if spoken else "letta_ttft"
            raise StageTimeoutError(
                stage, time.monotonic() - asked_s, "Letta shows no progress"
            ) from None
        finally:
            if run and not done:
                self.spawn(self._cancel_run(client, agent_id, run))

    @staticmethod
    async def _cancel_run(client: AsyncLetta, agent_id: str, run: list[str]) -> None:
        try:
            with translate_errors(client, f"the run of {agent_id}"):
                # By its id: the agent may be talking in another room too.
                await client.agents.messages.cancel(agent_id, run_ids=run)
        except LabvoiceError as error:
            logger.warning("the run could not be cancelled: %s", error.observed)

    async def aclose(self) -> None:
        """Finishes pending disk writes and closes the connections."""
        if self._following is not None:
            self._following.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_PUTS_AT_END_S)
            for task in late:
                task.cancel()
            if late and self.disk_error:
                logger.error("a turn of room %s is lost: %s", self._room, self.disk_error)
        if self._store is not None:
            await self._store.close()
        if self.client is not None:
            await self.client.close()


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("memory: a task failed", exc_info=error)


async def _texts(
    answer: Any, run: list[str], on_kept: Callable[[], None]
) -> AsyncGenerator[str, None]:
    """Yields the text of a streamed answer, and an empty text for other progress.

    Args:
        answer: The stream.
        run: Receives the id of its run when it is known.
        on_kept: Called when a tool has answered: a round has ended.
    """
    async for chunk in answer:
        if not run and chunk.run_id:
            run.append(chunk.run_id)
        if chunk.message_type == "assistant_message":
            content = chunk.content
            yield content if isinstance(content, str) else "".join(p.text for p in content)
        elif chunk.message_type == "error_message":
            raise LabvoiceError(f"Letta's turn failed: {chunk.message}")
        elif chunk.message_type != "ping":
            if chunk.message_type == "tool_return_message":
                on_kept()
            yield ""
