"""The reference model `paced`: the same reply with the same timing for every request.

It separates the pipeline's latency from the model's. The first token comes 200 ms after the request
has arrived, each further one 35 ms after the one before, all counted from the arrival so that
nothing drifts. Run as `python -m labvoice.stack.models.paced_model PORT`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from typing import Final

from labvoice.stack.models.openai_http import ChatRequest, ChatServer, sleep_until

MODEL: Final = "paced"
FIRST_TOKEN_S: Final = 0.200
TOKEN_S: Final = 0.035
REPLY: Final = "Sure, I can help you with that. Let me take a quick look."
"""16 tokens: the first clause is complete with token 2 (0.235 s), the first sentence with
token 9 (0.480 s), the reply with token 16 (0.725 s)."""
TOKENS: Final = tuple(re.findall(r" ?\w+|[^\w ]", REPLY))
"""Words with the space before them, and punctuation marks, as language models cut text."""


async def answer(_: ChatRequest, arrived_s: float) -> AsyncIterator[str]:
    """Yields the reply's tokens on schedule."""
    for index, token in enumerate(TOKENS):
        await sleep_until(arrived_s + FIRST_TOKEN_S + index * TOKEN_S)
        yield token


if __name__ == "__main__":
    ChatServer(MODEL, answer).run(int(sys.argv[1]))
