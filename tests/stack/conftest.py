"""One real lab for the tests that only need any."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from labvoice.caller.voice import Utterance, human_utterances
from labvoice.lab import Lab


@pytest.fixture(scope="session")
async def lab() -> AsyncIterator[Lab]:
    """A running stack: LiveKit server, paced model and one worker."""
    async with Lab(llm="paced", letta=False) as running:
        yield running


@pytest.fixture(scope="session")
def recorded(lab: Lab) -> list[Utterance]:
    """Clauses spoken by a human."""
    return human_utterances(lab.settings)
