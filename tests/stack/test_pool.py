"""The pool by real workers: load spreads, names are kept apart, nothing is lost when it shrinks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from livekit import api

from labvoice.errors import ProcessError, UsageError
from labvoice.failover.watched import is_ours
from labvoice.faults import Faults
from labvoice.lab import Lab
from labvoice.speech.utterances import Utterance
from labvoice.stack.workers.pool import COLUMNS, Pool
from tests.stack.talking import PATIENCE_S, answered_turn


@pytest.fixture(scope="module")
async def pool_lab() -> AsyncIterator[Lab]:
    """A lab with two workers that takes no long breaks."""
    async with Lab(llm="paced", letta=False, workers=2, drain_timeout_s=60) as running:
        yield running


async def end(lab: Lab, *rooms: str) -> None:
    for room in rooms:
        await lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room))
    await lab.pool.wait_idle(150)


async def test_jobs_spread_over_the_workers(pool_lab: Lab) -> None:
    """Six rooms on two workers with four places each: both work, none is over its load."""
    rooms = [f"spread-{number}" for number in range(6)]
    for room in rooms:
        # A worker whose warm process is taken has to load its models first.
        await pool_lab.dispatcher.dispatch(room, pool_lab.settings.agent_name, timeout_s=PATIENCE_S)
    frame = pool_lab.pool.frame()
    assert list(frame.columns) == list(COLUMNS)
    assert frame["active_jobs"].sum() == len(rooms)
    assert (frame["active_jobs"] >= 1).all()
    assert (frame["load"] == frame["active_jobs"] / pool_lab.settings.max_jobs).all()
    assert (frame["memory"] > 0).all()
    for shown in (repr(pool_lab.pool), pool_lab.pool._repr_html_()):
        assert all(name in shown for name in frame["worker"])
        assert all(str(pid) in shown for pid in frame["pid"])
    await end(pool_lab, *rooms)


async def test_each_agent_name_has_its_workers(pool_lab: Lab) -> None:
    """Two names in one pool: a dispatch by name is taken by a worker of that name."""
    await pool_lab.add_workers(1, agent_name="second-agent", program="labvoice.agent.noop")
    with pytest.raises(UsageError, match="2 agent names"):
        await pool_lab.pool.scale(1)
    by_id = {worker.worker_id: worker.agent_name for worker in pool_lab.pool.workers}
    for room, name in (("name-1", "second-agent"), ("name-2", pool_lab.settings.agent_name)):
        done = await pool_lab.dispatch(room, name)
        assert by_id[done.worker_id] == name
    await end(pool_lab, "name-1", "name-2")
    await pool_lab.pool.scale(0, agent_name="second-agent")
    await pool_lab.pool.drained()
    assert {worker.agent_name for worker in pool_lab.pool.workers} == {pool_lab.settings.agent_name}


async def test_scaling_loses_no_call(pool_lab: Lab, recorded: list[Utterance]) -> None:
    """A worker is added while a call runs, which keeps its agent and goes on.

    A worker that is drained keeps its call to the end, takes no other, and then is gone.
    """
    name = pool_lab.settings.agent_name
    call = await pool_lab.call()
    await call.hear_greeting(PATIENCE_S)
    (worker,) = [w for w in pool_lab.pool.workers if w.worker_id == call.worker["worker_id"]]
    job = call.worker["job_id"]
    await pool_lab.pool.scale(3, agent_name=name)
    assert len(pool_lab.pool.workers) == 3
    going = pool_lab.pool.remove(worker)
    assert pool_lab.pool.frame().set_index("worker").loc[worker.process.name, "state"] == "draining"
    assert pool_lab.pool.remove(worker) is going
    await asyncio.sleep(1)
    other = await pool_lab.dispatch("while-draining")
    assert other.worker_id != worker.worker_id
    turn = await answered_turn(call, recorded[0])
    assert turn.outcome == "ok"
    assert call.worker["job_id"] == job
    assert worker.process.running
    await pool_lab.end_call(call)
    async with asyncio.timeout(PATIENCE_S):
        await going
    assert worker not in pool_lab.pool.workers
    assert not worker.process.running
    await end(pool_lab, "while-draining")
    assert len(pool_lab.pool.workers) == 2
    assert {"draining", "stopped", "registered", "started", "ended"} <= set(
        pool_lab.pool.events["event"]
    )


async def test_a_drain_that_takes_too_long_moves_the_call(pool_lab: Lab) -> None:
    """A call that outlives the drain's time goes on with an agent on another worker."""
    call = await pool_lab.call()
    await call.hear_greeting(PATIENCE_S)
    (worker,) = [w for w in pool_lab.pool.workers if w.worker_id == call.worker["worker_id"]]
    worker.settings = worker.settings.model_copy(update={"drain_timeout_s": 1.0})
    going = pool_lab.pool.remove(worker)
    await call.wait_for_replacement(PATIENCE_S)
    assert call.worker["worker_id"] != worker.worker_id
    await going
    listed = await pool_lab.dispatcher.api.room.list_participants(
        api.ListParticipantsRequest(room=call.room_name)
    )
    assert sum(is_ours(participant) for participant in listed.participants) == 1
    await pool_lab.end_call(call)
    await pool_lab.pool.scale(2, agent_name=pool_lab.settings.agent_name)


async def test_a_worker_that_dies_is_started_again(pool_lab: Lab) -> None:
    """A killed worker without a call comes back under another name, and the log tells."""
    worker = pool_lab.pool.workers[0]
    pool_lab.faults.kill_worker(worker)
    async with asyncio.timeout(120):
        while worker in pool_lab.pool.workers or len(pool_lab.pool.workers) < 2:
            await asyncio.sleep(0.2)
    events = pool_lab.pool.events
    lost = events[events["event"] == "worker_lost"]
    assert lost["worker"].iloc[-1] == worker.process.name
    assert events["at"].is_monotonic_increasing


async def test_wrong_sizes_are_refused_with_a_message(pool_lab: Lab) -> None:
    """A negative size and an unknown name are errors of use."""
    with pytest.raises(UsageError, match="fewer than 0"):
        await pool_lab.pool.scale(-1)
    with pytest.raises(UsageError, match="never had"):
        await pool_lab.pool.scale(1, agent_name="nobody")


async def brief_worker(lab: Lab, pool: Pool, folder: Path) -> None:
    """Adds a worker whose agents do nothing, which starts in seconds."""
    settings = lab.settings.model_copy(update={"agent_name": "brief-agent"})
    await pool.add(settings, state_dir=folder, program="labvoice.agent.noop")


def brief_processes() -> list[psutil.Process]:
    """All processes of such workers that this one has started and that still are there."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
        and "--agent-name=brief-agent" in process.cmdline()
    ]


async def test_only_a_worker_that_dies_without_a_job_is_given_up(
    pool_lab: Lab, tmp_path: Path
) -> None:
    """One that had served is started again however young it was; the next one, idle, is not."""
    pool = Pool(give_up_after=1)
    try:
        await brief_worker(pool_lab, pool, tmp_path)
        first = pool.workers[0]
        await pool_lab.dispatcher.dispatch("a-young-call", "brief-agent")
        # Else the supervisor might give the call to the next one, which then has served as well.
        await pool_lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room="a-young-call"))
        Faults(pool).kill_worker(first)
        async with asyncio.timeout(120):
            while first in pool.workers or not pool.workers:
                await asyncio.sleep(0.05)
        Faults(pool).kill_worker(pool.workers[0])
        async with asyncio.timeout(120):
            await pool.ended()
        told = list(pool.events["event"])
        assert told.count("worker_lost") == 2
        assert told.count("worker_given_up") == 1
    finally:
        await pool.stop()


@pytest.mark.parametrize("restart", [False, True], ids=["a first start", "a start after a death"])
async def test_stopping_ends_a_worker_that_is_being_started(
    pool_lab: Lab, tmp_path: Path, restart: bool
) -> None:
    """A pool that is stopped while a worker starts leaves no process behind."""
    pool = Pool()
    if restart:
        await brief_worker(pool_lab, pool, tmp_path)
        Faults(pool).kill_worker(pool.workers[0])
        starting = None
    else:
        starting = asyncio.create_task(brief_worker(pool_lab, pool, tmp_path))
    async with asyncio.timeout(PATIENCE_S):
        while not pool.starting or not brief_processes():
            await asyncio.sleep(0.05)
    await pool.stop()
    if starting is not None:
        with pytest.raises(ProcessError, match="was stopped"):
            await starting
    assert pool.workers == []
    assert brief_processes() == []


async def test_a_worker_that_hangs_is_started_again(pool_lab: Lab, tmp_path: Path) -> None:
    """A stopped worker does not answer, is killed, and is replaced."""
    pool = Pool(health_every_s=0.5)
    try:
        await brief_worker(pool_lab, pool, tmp_path)
        (hung,) = pool.workers
        Faults(pool).hang_worker(hung)
        async with asyncio.timeout(90):
            while not pool.workers or pool.workers[0] is hung:
                await asyncio.sleep(0.1)
        assert not hung.process.running
        assert {"worker_hung", "worker_lost"} <= set(pool.events["event"])
    finally:
        await pool.stop()
