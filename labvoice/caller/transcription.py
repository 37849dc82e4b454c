"""What an agent publishes of its words as text streams, for one that hosts no session events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from livekit import rtc
from livekit.rtc.data_stream import StreamError

from labvoice.caller.turns import Item
from labvoice.concurrency import cancel

TOPIC: Final = "lk.transcription"  # livekit.agents.types.TOPIC_TRANSCRIPTION
_FINAL: Final = "lk.transcription_final"
_SEGMENT: Final = "lk.segment_id"


class Transcription:
    """Reads the text streams of a room; every finished one is a message of the conversation.

    An agent's words come as one stream a message; the user's as one stream for each version of
    what was recognised, of which the final one says so.

    Args:
        identity: The caller's own: words under it are the user's.
        on_item: Called with every finished message.
    """

    def __init__(self, room: rtc.Room, identity: str, on_item: Callable[[Item], None]) -> None:
        self._identity = identity
        self._on_item = on_item
        self._room = room
        self._reading: set[asyncio.Task[None]] = set()
        room.register_text_stream_handler(TOPIC, self._on_stream)

    def _on_stream(self, reader: rtc.TextStreamReader, sender: str) -> None:
        task = asyncio.create_task(self._read(reader, sender))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read(self, reader: rtc.TextStreamReader, sender: str) -> None:
        words = ""
        with contextlib.suppress(StreamError):  # its sender left: what came until then was said
            async for part in reader:
                words += part
        text = words.strip()
        told = reader.info.attributes or {}
        by_user = sender == self._identity
        if not text or (by_user and told.get(_FINAL) == "false"):
            return
        role = "user" if by_user else "assistant"
        self._on_item(Item(told.get(_SEGMENT, reader.info.stream_id), role, text))

    async def aclose(self) -> None:
        """Stops reading; nobody is told of messages any more."""
        self._room.unregister_text_stream_handler(TOPIC)
        self._on_item = lambda _: None  # its owner, which has this reader
        await cancel(*self._reading)
