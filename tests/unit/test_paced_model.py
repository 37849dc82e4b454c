"""The reference model's replies: the same for everybody, long for who asks in detail."""

from __future__ import annotations

from typing import Any

import pytest

from labvoice.speech.utterances import DEFAULT_UTTERANCES
from labvoice.stack.models.paced_model import LONG_REPLY, REPLY, reply_to


def _user(*texts: str) -> list[dict[str, Any]]:
    system = {"role": "system", "content": "Explain everything in detail."}
    return [system, *({"role": "user", "content": text} for text in texts)]


@pytest.mark.parametrize("text", DEFAULT_UTTERANCES)
def test_what_the_benches_say_gets_the_fixed_reply(text: str) -> None:
    """What the system's prompt says does not matter."""
    assert reply_to(_user(text)) == REPLY


def test_who_asks_in_detail_gets_a_long_reply_and_then_echoes() -> None:
    """So a reply can be interrupted, and it can be heard which words the next one answers."""
    ask = "Please explain it in detail."
    assert reply_to(_user(ask)) == LONG_REPLY
    assert "what time is it" in reply_to(_user(ask, "Wait, what time is it?"))
    assert reply_to(_user("Hello.", ask)) == LONG_REPLY


def test_a_message_in_parts_is_read() -> None:
    """OpenAI's other form of a message; what has no text is passed over."""
    parts = [{"type": "image_url"}, {"type": "text", "text": "in detail, please"}]
    assert reply_to([{"role": "user", "content": parts}]) == LONG_REPLY
    assert reply_to([{"role": "assistant", "content": "in detail"}]) == REPLY
