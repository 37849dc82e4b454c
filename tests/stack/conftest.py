"""One real lab for the tests that only need any."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from labvoice.caller.voice import Utterance, human_utterances
from labvoice.lab import Lab
from labvoice.settings import load_settings
from tests.serving import serving
from tests.stack.faulty_letta import FaultyLetta
from tests.stack.real_letta import Running
from tests.stack.recording_model import RecordingModel


@pytest.fixture(scope="session")
async def lab() -> AsyncIterator[Lab]:
    """A running stack: LiveKit server, paced model and one worker."""
    async with Lab(llm="paced", letta=False) as running:
        yield running


@pytest.fixture(scope="session")
def recorded(lab: Lab) -> list[Utterance]:
    """Clauses spoken by a human."""
    return human_utterances(lab.settings)


@pytest.fixture(scope="session")
async def letta(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One Letta server for all tests; its environment comes from the user's cache."""
    folder = tmp_path_factory.mktemp("letta")
    running = Running(load_settings(llm="small", data_dir=folder / "data"), folder / "state")
    await running.start()
    yield running
    await running.server.stop()


@pytest.fixture(scope="module")
async def proxy(letta: Running) -> AsyncIterator[FaultyLetta]:
    """Stands between the workers and Letta."""
    between = FaultyLetta(letta.server.base_url)
    await between.set("pass")
    yield between
    await between.close()


@pytest.fixture(scope="module")
async def model() -> AsyncIterator[RecordingModel]:
    """A fast model behind the agent; it keeps what it was prompted with."""
    recording = RecordingModel()
    async with serving(recording.app, recording.port):
        yield recording
