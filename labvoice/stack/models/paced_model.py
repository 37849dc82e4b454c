"""The reference model `paced`: the same reply with the same timing for every request.

It separates the pipeline's latency from the model's. The first token comes 200 ms after the request
has arrived, each further one 35 ms after the one before, all counted from the arrival so that
nothing drifts. Who asks it to explain something "in detail" gets a reply that is long enough to be
interrupted, and from then on replies that repeat what was said last, so that it can be heard which
words a reply answers. Run as `python -m labvoice.stack.models.paced_model PORT`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from labvoice.stack.models.openai_http import ChatRequest, ChatServer, sleep_until, text_of

MODEL: Final = "paced"
FIRST_TOKEN_S: Final = 0.200
TOKEN_S: Final = 0.035
REPLY: Final = "Sure, I can help you with that. Let me take a quick look."
"""16 tokens: the first clause is complete with token 2 (0.235 s), the first sentence with
token 9 (0.480 s), the reply with token 16 (0.725 s)."""
LONG_REPLY: Final = (
    "Of course, and I will go through it with you step by step. First you collect everything that "
    "is needed and lay it out on the table in front of you. Then you begin with the largest part, "
    "slowly and with care, until there is nothing left of it to do. After that comes the smaller "
    "part, which takes a little longer than most people would expect. In the end you clean up, and "
    "look at what you have made."
)
"""Some 20 s of speech."""
_ASKS_AT_LENGTH: Final = re.compile(r"\bdetails?\b", re.IGNORECASE)
_TOKEN: Final = re.compile(r" ?\w+(?:['’]\w+)?|[^\w ]")
"""Words with the space before them, and punctuation marks, as language models cut text."""
TOKENS: Final = tuple(_TOKEN.findall(REPLY))


def reply_to(messages: Sequence[dict[str, Any]]) -> str:
    """Returns the reply to a conversation.

    Args:
        messages: OpenAI's; the user's count.
    """
    said = [text_of(message) for message in messages if message.get("role") == "user"]
    if not any(_ASKS_AT_LENGTH.search(text) for text in said):
        return REPLY
    if _ASKS_AT_LENGTH.search(said[-1]):
        return LONG_REPLY
    return f"You said: {said[-1].rstrip(' .?!')}. I will look at that at once."


async def answer(request: ChatRequest, arrived_s: float) -> AsyncIterator[str]:
    """Yields the reply's tokens on schedule."""
    for index, token in enumerate(_TOKEN.findall(reply_to(request.messages))):
        await sleep_until(arrived_s + FIRST_TOKEN_S + index * TOKEN_S)
        yield token


if __name__ == "__main__":
    ChatServer(MODEL, answer).run(int(sys.argv[1]))
