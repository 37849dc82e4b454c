"""Publishes heartbeat, conversation and reason for leaving as the agent's attributes.

The LiveKit server keeps attributes: a supervisor on any host can read them without a connection to
the room, also after the agent's death or if it was started later.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from livekit import rtc
from livekit.agents import AgentSession, CloseReason, ConversationItemAddedEvent, llm

from labvoice.protocol.metadata import (
    ATTRIBUTE_HEARTBEAT,
    ATTRIBUTE_HISTORY,
    ATTRIBUTE_LEAVING,
    MAX_HISTORY_MESSAGES,
    MAX_TEXT_LENGTH,
    ChatTurn,
    pack_history,
)

HEARTBEAT_S: Final = 0.4
"""Pause between two heartbeats, in seconds."""
_LOOP_STALL_S: Final = 5.0
"""Time after which a blocked event loop counts as hung, in seconds; a 1 s stall does not."""
_ANSWER_S: Final = 2.0
ON_PURPOSE: Final = (
    CloseReason.PARTICIPANT_DISCONNECTED,
    CloseReason.USER_INITIATED,
    CloseReason.TASK_COMPLETED,
)
"""Reasons for leaving after which the agent is not replaced."""


class Presence:
    """Keeps the agent's attributes up to date.

    A separate thread sends heartbeats, so a busy event loop does not look like a dead process; a
    loop that hangs for seconds stops them.

    Args:
        history: The conversation of the lost agent that this one replaces.
    """

    def __init__(
        self, room: rtc.Room, session: AgentSession[None], history: Iterable[ChatTurn] = ()
    ) -> None:
        self._local = room.local_participant
        self._loop = asyncio.get_running_loop()
        self._turned_s = time.monotonic()
        self._ended = threading.Event()
        self._history = list(history)
        self._tasks: set[asyncio.Task[None]] = set()
        session.on("conversation_item_added", self._on_item)
        # After a full reconnection the server knows only the attributes of the token.
        room.on("reconnected", self._publish_history)

    def start(self) -> None:
        """Starts the heartbeat thread."""
        threading.Thread(
            target=lambda: asyncio.run(self._heartbeat()), name="heartbeat", daemon=True
        ).start()
        self._publish_history()

    async def _heartbeat(self) -> None:
        for count in itertools.count(1):
            try:
                self._loop.call_soon_threadsafe(self._turn)
            except RuntimeError:
                return  # the job's loop is closed
            if time.monotonic() - self._turned_s < _LOOP_STALL_S:
                # Not awaited: one answer in some hundred never comes (livekit 1.1.21).
                self._spawn(self._set(ATTRIBUTE_HEARTBEAT, str(count)))
            await asyncio.sleep(HEARTBEAT_S)
            if self._ended.is_set():
                return

    def _turn(self) -> None:
        self._turned_s = time.monotonic()

    async def _set(self, name: str, value: str) -> None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._local.set_attributes({name: value})
        except TimeoutError:
            return  # no connection: the supervisor must notice it

    def _on_item(self, event: ConversationItemAddedEvent) -> None:
        item = event.item
        if not isinstance(item, llm.ChatMessage) or not item.text_content:
            return
        if item.role == "user" or item.role == "assistant":
            self._history.append(ChatTurn(role=item.role, text=item.text_content[:MAX_TEXT_LENGTH]))
            del self._history[:-MAX_HISTORY_MESSAGES]
            self._publish_history()

    def _publish_history(self) -> None:
        if self._history:
            self._spawn(self._set(ATTRIBUTE_HISTORY, pack_history(self._history)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def leave(self, reason: str) -> None:
        """Stops the heartbeat; first publishes the reason of an intended end, if there is one."""
        if reason:
            await self._set(ATTRIBUTE_LEAVING, reason)
        self._ended.set()
