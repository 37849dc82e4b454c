"""An agent's words as text streams."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

from livekit import rtc
from livekit.rtc.data_stream import StreamError

from labvoice.caller.transcription import Transcription
from labvoice.caller.turns import Item


class _Room:
    """The part of a room that hands text streams on."""

    def register_text_stream_handler(self, topic: str, handler: Callable[..., None]) -> None:
        self.topic, self.handler = topic, handler

    def unregister_text_stream_handler(self, topic: str) -> None:
        assert topic == self.topic


class _Stream:
    """A text stream that ends in an error, as one of a participant that leaves does."""

    info = SimpleNamespace(attributes=None, stream_id="s1")

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "Let me "
        yield "see"
        raise StreamError("stream closed abnormally")


async def test_words_of_an_agent_that_leaves_in_mid_message_are_kept() -> None:
    """A stream that breaks off is a message of what it brought, and no error is left unhandled."""
    heard: list[Item] = []
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    room = _Room()
    reading = Transcription(cast("rtc.Room", room), "caller", heard.append)
    room.handler(_Stream(), "agent")
    for _ in range(20):
        await asyncio.sleep(0)
    await reading.aclose()
    assert [(item.role, item.text) for item in heard] == [("assistant", "Let me see")]
    assert not unhandled
