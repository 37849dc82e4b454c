"""The assistant and its memory: hybrid (the default), letta, or direct.

hybrid: a fast streaming model answers; Letta's blocks are in its prompt, and every finished turn
is written back in the background. letta: Letta itself answers, token by token. direct: no memory.
A call never waits for Letta: what comes late is taken up when it comes, and where Letta does not
answer, the fast model does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from pathlib import Path
from typing import Any, Final, Literal

from letta_client import AsyncLetta
from livekit.agents import Agent, ConversationItemAddedEvent, FlushSentinel, ModelSettings, llm

from labvoice.agent.memory import MemorySnapshot, watch
from labvoice.agent.turn_store import TurnStore
from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.letta import in_words, new_client, resolve
from labvoice.settings import Mode, Settings

logger = logging.getLogger("labvoice.agent")

INSTRUCTIONS: Final = (
    "You are a helpful voice assistant. Answer in one or two short spoken sentences, "
    "without lists or markup."
)
_FIRST_TOKEN_TIMEOUT_S: Final = 4.0
"""How long Letta may think in letta mode before the fast model answers instead, in seconds."""
_RESOLVE_PAUSE_S: Final = 2.0

MemoryState = Literal["off", "loading", "ready", "unavailable"]


class CallMemory:
    """What one call has to do with Letta: load, follow, write back, and tell how it stands.

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
        self.agent_id: str | None = None
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
            self._spawn(self._follow(self.client, on_memory, time.monotonic()))

    async def _follow(
        self, client: AsyncLetta, on_memory: Callable[[MemorySnapshot], None], began_s: float
    ) -> None:
        assert self._agent is not None
        while self.agent_id is None:
            try:
                self.agent_id = await resolve(client, self._agent)
            except LabvoiceError as error:
                logger.warning("no memory for now: %s", error.observed)
                self._set("unavailable")
                await asyncio.sleep(_RESOLVE_PAUSE_S)

        def changed(snapshot: MemorySnapshot) -> None:
            if self.memory_load_s is None:
                self.memory_load_s = time.monotonic() - began_s
            self._set("ready")
            on_memory(snapshot)

        await watch(
            client,
            self.agent_id,
            changed,
            on_error=lambda error: self._set("unavailable" if error else "ready"),
        )

    def _set(self, state: MemoryState) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state)

    def write_back(self, turn_id: str, user_text: str, agent_text: str) -> None:
        """Puts a finished turn on disk; the worker brings it to Letta."""
        if self._store is not None and self._agent is not None:
            agent = self.agent_id or self._agent
            self._spawn(self._store.put(agent, self._room, turn_id, user_text, agent_text))

    async def synced(self) -> dict[str, float]:
        """Seconds from the end of each of this call's turns to its being in Letta, by turn id."""
        return await self._store.synced(self._room) if self._store is not None else {}

    async def waiting(self) -> int:
        """How many turns wait to be written, of all calls."""
        return (await self._store.counts())[0] if self._store is not None else 0

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stream(self, user_text: str) -> AsyncGenerator[str, None]:
        """Has Letta itself answer, token by token; left early, its run is cancelled.

        Raises:
            LabvoiceError: Letta does not answer in time, or not at all.
        """
        if self.client is None or self.agent_id is None:
            raise LabvoiceError("the Letta agent is not there yet")
        client, agent_id = self.client, self.agent_id
        done = False
        try:
            with in_words(client, f"the agent {agent_id}"):
                async with asyncio.timeout(_FIRST_TOKEN_TIMEOUT_S):
                    answer = await client.agents.messages.create(
                        agent_id,
                        messages=[{"role": "user", "content": user_text}],
                        streaming=True,
                        stream_tokens=True,
                        include_pings=False,
                    )
                    pieces = _texts(answer)
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
            if not done:
                self._spawn(self._cancel_run(client, agent_id))

    @staticmethod
    async def _cancel_run(client: AsyncLetta, agent_id: str) -> None:
        try:
            with in_words(client, f"the run of {agent_id}"):
                await client.agents.messages.cancel(agent_id)
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


async def _texts(answer: Any) -> AsyncGenerator[str, None]:
    async for chunk in answer:
        if chunk.message_type == "assistant_message":
            content = chunk.content
            text = content if isinstance(content, str) else "".join(p.text for p in content)
            if text:
                yield text
        elif chunk.message_type == "error_message":
            raise LabvoiceError(f"Letta's turn failed: {chunk.message}")


class LabAgent(Agent):
    """The assistant.

    Args:
        mode: How it answers and remembers.
        memory: Of this call.

    Attributes:
        figures: Measured here and not by LiveKit, in seconds: by message id, then stage.
    """

    def __init__(self, mode: Mode, memory: CallMemory) -> None:
        super().__init__(instructions=INSTRUCTIONS)
        self.figures: dict[str, dict[str, float]] = {}
        self._mode = mode
        self._memory = memory
        self._user_text = ""
        self._letta_ttft_s: float | None = None
        self._letta_answered = False

    async def on_enter(self) -> None:
        """Begins to follow the memory once the session is there."""
        if self._mode == "hybrid":
            self._memory.start(self._take_memory)
        elif self._mode == "letta":
            self._memory.start(lambda _: None)  # its prompt is Letta's own

    def _take_memory(self, snapshot: MemorySnapshot) -> None:
        text = INSTRUCTIONS
        if snapshot.text:
            # At the end, so that the instructions stay in the model's prefix cache.
            text += f"\n\nThis is your memory of yourself and of the user:\n\n{snapshot.text}"
        self._memory._spawn(self.update_instructions(text))

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterable[llm.ChatChunk | str | FlushSentinel]:
        """Answers by Letta in letta mode where Letta answers, by the fast model otherwise."""
        self._letta_ttft_s, self._letta_answered = None, False
        if self._mode == "letta":
            asked_s = time.monotonic()
            said = next(
                (m.text_content for m in reversed(chat_ctx.messages()) if m.role == "user"), ""
            )
            try:
                async for piece in self._memory.stream(said or ""):
                    if self._letta_ttft_s is None:
                        self._letta_ttft_s = time.monotonic() - asked_s
                        self._letta_answered = True
                    yield piece
                return
            except LabvoiceError as error:
                if self._letta_answered:
                    logger.warning("Letta broke off: %s", error.observed)
                    return
                logger.warning("the fast model answers instead of Letta: %s", error.observed)
        async for chunk in Agent.default.llm_node(self, chat_ctx, tools, model_settings):
            yield chunk

    def on_item(self, event: ConversationItemAddedEvent) -> None:
        """Takes note of a finished message: its figures, and the turn to write back."""
        message = event.item
        if not isinstance(message, llm.ChatMessage):
            return
        text = message.text_content or ""
        if message.role == "user":
            self._user_text = f"{self._user_text} {text}".strip()
        elif message.role == "assistant":
            figures = self.figures.setdefault(message.id, {})
            if "playback_latency" in message.metrics:
                figures["playback_latency"] = message.metrics["playback_latency"]
            if self._letta_ttft_s is not None:
                figures["letta_ttft"] = self._letta_ttft_s
            if self._user_text and self._mode != "direct" and not self._letta_answered:
                self._memory.write_back(message.id, self._user_text, text)
            self._user_text = ""
