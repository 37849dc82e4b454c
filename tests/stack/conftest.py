"""One real lab for the tests that only need any."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from livekit import api

from labvoice.lab import Lab
from labvoice.settings import load_settings
from labvoice.speech.utterances import Utterance, human_utterances
from tests.serving import serving
from tests.stack.faulty_letta import FaultyLetta
from tests.stack.real_letta import Running
from tests.stack.recording_model import RecordingModel


@pytest.fixture(scope="session")
async def lab() -> AsyncIterator[Lab]:
    """A running stack: LiveKit server, paced model and one worker."""
    async with Lab(llm="paced", letta=False) as running:
        yield running


@pytest.fixture
def its_lab(request: pytest.FixtureRequest) -> Lab | None:
    """The lab that a test asks for, if it does."""
    return request.getfixturevalue("lab") if "lab" in request.fixturenames else None


async def delete_rooms(lab: Lab) -> None:
    """Deletes a lab's rooms: an agent that is left in one keeps its worker from idling."""
    listed = await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
    for room in listed.rooms:
        with contextlib.suppress(api.TwirpError):  # it has gone meanwhile
            await lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room.name))


@pytest.fixture(autouse=True)
async def _rooms_and_workers_end_with_their_test(its_lab: Lab | None) -> AsyncIterator[None]:
    """What a test has added to a lab which others use is not there for the next one."""
    before = list(its_lab.pool.workers) if its_lab else []
    yield
    if its_lab is None:
        return
    await delete_rooms(its_lab)
    if len(its_lab.pool.workers) == len(before):
        return
    for worker in set(its_lab.pool.workers) - set(before):
        if worker.agent_name != its_lab.settings.agent_name:  # else it has replaced one of them
            worker.settings = worker.settings.model_copy(update={"drain_timeout_s": 0.0})
            its_lab.pool.remove(worker)
    await its_lab.pool.drained()


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
