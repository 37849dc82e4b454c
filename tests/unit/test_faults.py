"""Faults on purpose: what they do to processes, and what they refuse."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import psutil
import pytest

from labvoice.caller.call import Call
from labvoice.errors import UsageError
from labvoice.faults import Faults
from labvoice.settings import load_settings
from labvoice.stack.processes import ManagedProcess
from labvoice.stack.workers.pool import Pool
from labvoice.stack.workers.worker import Worker

PARENT = "import subprocess; subprocess.run(['sleep', '600'])"


async def test_a_worker_hangs_goes_on_and_is_killed_with_its_jobs(tmp_path: Path) -> None:
    """Stopped, continued and killed: the worker's process and those that it has started."""
    process = await ManagedProcess.start(
        "worker", [sys.executable, "-c", PARENT], log_path=tmp_path / "worker.log"
    )
    root = psutil.Process(process.pid)
    try:
        async with asyncio.timeout(60):
            while not root.children():
                await asyncio.sleep(0.01)
        worker = Worker(process, "http://127.0.0.1:9", load_settings())
        hung = Faults(Pool()).hang_worker(worker, jobs_too=True)
        assert len(hung.processes) == 2
        async with asyncio.timeout(60):
            while {each.status() for each in hung.processes} != {psutil.STATUS_STOPPED}:
                await asyncio.sleep(0.01)
        hung.resume()
        async with asyncio.timeout(60):
            while psutil.STATUS_STOPPED in {each.status() for each in hung.processes}:
                await asyncio.sleep(0.01)
        killed = Faults(Pool()).kill_worker(worker, jobs_too=True)
        assert killed.at_s >= hung.at_s
        await killed.until_gone(60)
        killed.kill()  # once more is no error
    finally:
        await process.stop()


async def test_what_is_not_the_labs_own_is_not_broken() -> None:
    """A server, a model or a worker of somebody else is refused in words."""
    faults = Faults(Pool())
    call = cast("Call", type("Elsewhere", (), {"room_name": "r", "worker": {"job_id": "AJ_1"}})())
    for break_it in (faults.kill_livekit, faults.hang_livekit, lambda: faults.kill_job(call)):
        with pytest.raises(UsageError, match="not"):
            break_it()
    for stop in (faults.stop_livekit, faults.restart_livekit, faults.stop_model):
        with pytest.raises(UsageError, match="this lab did not start the"):
            await stop()
