"""Load through the real stack: callers in processes of their own call agents that echo."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from distributed import Client, LocalCluster
from livekit import api

from labvoice.agent.echo import ECHO_DELAY_S
from labvoice.bench.base import start_workers
from labvoice.bench.calibrate import tone
from labvoice.bench.load import ECHO
from labvoice.caller.microphone import SAMPLE_RATE_HZ
from labvoice.concurrency import cancel
from labvoice.lab import Lab
from labvoice.runs import host
from labvoice.runs.run import Run
from labvoice.speech.conditions import Conditions
from labvoice.targets.target import Target
from tests.stack.talking import LISTENS
from tests.stack.test_cli import labvoice, server_of

MARK = "STARTED_BY_TEST"


def dask_processes() -> list[psutil.Process]:
    """This process's children that Dask has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "multiprocessing.spawn" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def test_callers_are_spread_over_dask_workers(lab: Lab, tmp_path: Path) -> None:
    """Three callers on two Dask workers are one run, with place and clock of each; none stays."""
    run = await lab.bench.load(
        3, rate=10, seconds=6, echo=True, warmup=0, out=tmp_path / "load.jsonl"
    )
    (level,) = run.levels
    assert (level.callers, level.turns, level.joins, level.failed_joins) == (3, 3, 3, 0), run
    assert level.lost == 0, run
    assert run.complete
    assert run.header.loop == "open"
    notes = run.notes.dropna(subset="dask_worker")
    assert len(notes) == 3
    workers = min(3, host.cores())
    assert notes["dask_worker"].nunique() == run.header.config["dask_workers"] == workers
    assert set(notes["dask_host"]) == {"127.0.0.1"}
    # Processes of one machine have one monotonic clock.
    assert (notes["dask_offset_s"].abs() <= notes["dask_uncertainty_s"] + 1e-6).all()
    assert set(level.cpu) == {"worker", "server", "model", "callers"}
    assert list(run.clicks.diff().dropna().round(3)) == [2.0, 2.0]  # the intended starts
    heard = run.frame[run.frame["stage"] == "voice_to_voice"]
    assert heard["duration_s"].notna().all()
    assert dask_processes() == []
    assert sorted(run.recordings["trial"]) == [0, 1, 2]
    for path, start_s in zip(run.recordings["path"], run.recordings["start_s"], strict=True):
        assert path.parent == tmp_path / "load"
        sound, rate = soundfile.read(path)
        assert 0 < start_s < 60  # from the intended start, not on a clock of the machine
        assert len(sound) / rate > 6
        assert (np.abs(sound).max(axis=0) > 0.1).all()  # the caller's tone, and its echo


@pytest.fixture(scope="module")
async def echoing(lab: Lab) -> AsyncIterator[Lab]:
    """The lab with a worker of the agent that echoes, for several tests."""
    await start_workers(lab, [ECHO], print)
    yield lab
    await lab.pool.scale(0, agent_name="echo-agent")
    await lab.pool.drained()


async def test_callers_under_load_have_a_link_and_a_sound(
    echoing: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each Dask worker starts relays, which delay both ways, and the caller's noise is sent."""
    monkeypatch.setenv(MARK, str(tmp_path))
    run = await echoing.bench.load(
        2,
        rate=10,
        seconds=6,
        echo=True,
        warmup=0,
        links=["2 callers:delay=400ms"],
        conditions={"": Conditions("street", 30)},
        out=tmp_path / "load.jsonl",
    )
    (level,) = run.levels
    assert (level.turns, level.joins, level.failed_joins, level.lost) == (2, 2, 0, 0), run
    arm = run.header.arms["2 callers"]
    assert (arm["link"], arm["voice"]) == ("delay=400ms", "noise street at 30 dB")
    heard = run.frame[run.frame["stage"] == "voice_to_voice"]
    # Of the tone's last sample to the echo's first: a second less the tone, and the link twice.
    assert (heard["duration_s"] > ECHO_DELAY_S - len(tone()) / SAMPLE_RATE_HZ + 2 * 0.4).all()
    for path in run.recordings["path"]:
        sound, _ = soundfile.read(path)
        assert (np.abs(sound[:, 0]) > 0.001).mean() > 0.5  # without the noise: the tone alone
    assert relays_of(str(tmp_path)) == []
    assert dask_processes() == []


def relays_of(mark: str) -> list[int]:
    """Relays of anybody's that were started under a mark in the environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "labvoice.link" in process.cmdline() and process.environ().get(MARK) == mark:
                found.append(process.pid)
    return found


async def test_a_whole_ramp_goes_on_beyond_the_knee_and_beyond_callers_that_die(
    echoing: Lab, tmp_path: Path
) -> None:
    """A limit that no level keeps ends no ramp that is to be measured whole, nor does a void level.

    A Dask worker is killed in the second of three levels: its caller failed, the rest go on.
    """
    told: list[str] = []
    first_is_over = asyncio.Event()

    def note(words: str) -> None:
        told.append(words)
        if words.startswith("load "):
            first_is_over.set()

    async def rooms() -> set[str]:
        """Those that a caller is in."""
        listed = await echoing.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
        return {room.name for room in listed.rooms if room.num_participants}

    async def kill_one() -> None:
        await first_is_over.wait()
        before = await rooms()
        while not await rooms() - before:
            await asyncio.sleep(0.1)
        dask_processes()[0].kill()

    killing = asyncio.create_task(kill_one())
    try:
        run = await echoing.bench.load(
            [1, 2, 3],
            rate=10,
            seconds=6,
            limit_s=0.01,
            whole=True,
            echo=True,
            warmup=0,
            out=tmp_path / "died.jsonl",
            progress=note,
        )
    finally:
        await cancel(killing)
    first, second, third = run.levels
    assert (first.ended, first.lost, first.within(0.01)) == (0, 0, False), run
    assert (second.ended, second.failed_joins, second.void) == (1, 1, True), run
    assert (third.ended, third.joins, third.failed_joins) == (0, 3, 0), run
    assert second.void_words == "the calls of 1 ended with their processes"
    assert sum(words.startswith("load ") for words in told) == 3
    assert not any("nan s" in words for words in told)
    assert dask_processes() == []


def dask_of_ones_own() -> tuple[LocalCluster, Client]:
    """A cluster that was there before, and a synchronous client of it, as a notebook has them."""
    cluster = LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        memory_limit=None,
    )
    return cluster, Client(cluster)


@LISTENS
async def test_callers_on_a_cluster_of_ones_own_call_the_agent_that_is_named(
    lab: Lab, tmp_path: Path
) -> None:
    """By a synchronous client, and by command with the scheduler's address; the cluster stays."""
    name = lab.settings.agent_name
    cluster, client = await asyncio.to_thread(dask_of_ones_own)
    try:
        (address,) = client.nthreads()
        runs = [
            await lab.bench.load(
                1,
                rate=10,
                seconds=6,
                agent=Target("named", name),
                client=client,
                warmup=0,
                out=tmp_path / "client.jsonl",
            )
        ]
        code, output = await labvoice(
            *("bench", "load", "--callers", "1", "--rate", "10", "--for", "6", "--warmup", "0"),
            *("--scheduler", cluster.scheduler_address, "--agent", f"name:{name}"),
            *("--limit", "60", "--out", "command.jsonl"),
            cwd=tmp_path,
            env=server_of(lab),
        )
        assert code == 0, output
        assert "model server" not in output
        runs.append(Run.load(tmp_path / "command.jsonl"))
        for run in runs:
            (level,) = run.levels
            assert (level.turns, level.joins, level.failed_joins, level.lost) == (1, 1, 0, 0), run
            assert set(run.notes["dask_worker"].dropna()) == {address}
            assert name in str(run.header.config["agent"])
        assert list(client.nthreads()) == [address]
    finally:
        await asyncio.to_thread(client.close)
        await asyncio.to_thread(cluster.close)
