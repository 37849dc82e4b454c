"""Worker processes: started, asked for their state, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from labvoice.errors import ProcessError, StageTimeoutError
from labvoice.settings import Settings
from labvoice.stack.processes import ManagedProcess, free_port

_EVENT_PREFIX = "labvoice-event "  # labvoice.agent.app.EVENT_PREFIX; importing it costs 3 s
AGENT_PROGRAM = "labvoice.agent"
# livekit-agents 1.8.9, ipc/supervised_proc.py and ipc/job_thread_executor.py
_PREPARING = re.compile("initializing (process|job runner)")
_PREPARED = re.compile("(process|job runner) initialized|error initializing process")
_LIVEKIT_LOAD_THRESHOLD = 0.7  # livekit-agents' default in production, worker.py
_REST_S = 15.0
_START_TIMEOUT_S = 90.0  # models load cold from disk on two busy cores: 10 to 40 s seen


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker says of itself (`GET /worker`).

    Attributes:
        worker_id: Given by the LiveKit server at registration.
        agent_name: Name under which it is registered.
        active_jobs: Jobs that run now.
        load: 0 to 1; at 1 it takes no more.
        rejections: Reasons of refused requests, by dispatch id.
        endings: Why the last agent of a room left, by room.
        failure: Why its last job process could not start, with the log's last lines.
        load_threshold: At this load it takes no more jobs.
    """

    worker_id: str
    agent_name: str
    active_jobs: int
    load: float
    rejections: dict[str, str] = field(default_factory=dict)
    endings: dict[str, str] = field(default_factory=dict)
    failure: str = ""
    load_threshold: float = 0.99  # labvoice.agent.app.LOAD_THRESHOLD


def worker_environment(settings: Settings) -> dict[str, str]:
    """Returns the whole environment of a worker process that runs with these settings."""
    environment = dict(os.environ)
    for name, info in Settings.model_fields.items():
        value = getattr(settings, name)
        key = str(info.validation_alias)
        if value is None:
            environment.pop(key, None)
            continue
        get_secret = getattr(value, "get_secret_value", None)
        environment[key] = get_secret() if get_secret else str(value)
    # One thread per model: recognition, synthesis and the model share few cores.
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


class Worker:
    """One worker process; made by :meth:`start`.

    Attributes:
        process: The process.
        url: Address of its status service.
        agent_name: Name under which it registers.
    """

    def __init__(self, process: ManagedProcess, url: str, settings: Settings) -> None:
        self.process = process
        self.url = url
        self.agent_name = settings.agent_name
        self._preparing = 0
        self._events: list[dict[str, Any]] = []
        self._log_position = 0

    @classmethod
    async def start(
        cls,
        settings: Settings,
        *,
        state_dir: Path,
        name: str = "worker",
        program: str = AGENT_PROGRAM,
    ) -> Worker:
        """Starts a worker and waits until the LiveKit server has registered it.

        livekit-agents registers only after its idle processes have loaded their models, so a
        registered worker is a warm one.

        Args:
            settings: Must name the LiveKit server, its key and secret, and the model.
            state_dir: Folder for its log.
            name: What to call it in errors.
            program: Module to run; takes `--port` and `--agent-name`, and reports events.

        Raises:
            ProcessError: It ended or was not registered in time; with its last log lines.
        """
        port = free_port()
        log_path = state_dir / f"{name}.log"
        before = log_path.stat().st_size if log_path.exists() else 0
        process = await ManagedProcess.start(
            name,
            [
                sys.executable,
                "-m",
                program,
                f"--port={port}",
                # By argument: an empty name, for every room, would not survive the environment.
                f"--agent-name={settings.agent_name}",
            ],
            log_path=log_path,
            env=worker_environment(settings),
        )
        worker = cls(process, f"http://127.0.0.1:{port}", settings)
        worker._log_position = before
        try:
            await process.until_ready(
                worker._registered,
                timeout_s=_START_TIMEOUT_S,
                hint="the log names the model or the server that failed",
            )
        except BaseException:
            await process.stop()
            raise
        return worker

    async def _registered(self) -> bool:
        for event in self.events():
            if event["event"] == "failed":
                raise ProcessError(
                    f"{self.process.name} cannot load its models: {event['reason']}",
                    log_tail=self.process.log_tail(),
                )
        return any(event["event"] == "registered" for event in self.events())

    def events(self) -> list[dict[str, Any]]:
        """Returns what the worker has told so far, oldest first: registered, rejected, …."""
        with self.process.log_path.open("rb") as log:
            log.seek(self._log_position)
            data = log.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._log_position += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            if _PREPARING.search(line):
                self._preparing += 1
            elif _PREPARED.search(line):
                self._preparing -= 1
            _, found, text = line.partition(_EVENT_PREFIX)
            if found:
                self._events.append(json.loads(text))
        return self._events

    async def status(self, timeout_s: float = 2.0) -> WorkerStatus | None:
        """Asks the worker for its state; None when it does not answer in time."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as http,
                http.get(f"{self.url}/worker") as response,
            ):
                info = await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        events = self.events()
        return WorkerStatus(
            next((e["worker_id"] for e in reversed(events) if e["event"] == "registered"), ""),
            info.get("agent_name", ""),
            int(info.get("active_jobs", 0)),
            float(info.get("worker_load", 0.0)),
            {e["dispatch_id"]: e["reason"] for e in events if e["event"] == "rejected"},
            {e["room"]: e["reason"] for e in events if e["event"] == "ended"},
            self._failure(),
        )

    def _failure(self) -> str:
        tries = [e for e in self.events() if e["event"] in ("prewarmed", "failed")]
        if not tries or tries[-1]["event"] == "prewarmed":
            return ""
        return f"{tries[-1]['reason']}\n\nlast log lines:\n{self.process.log_tail()}"

    async def settled(self) -> bool:
        """Whether no job runs and no process is being prepared for the next one."""
        status = await self.status()
        if status is None or status.active_jobs:
            return False
        self.events()
        return self._preparing <= 0

    async def would_take_a_job(self) -> bool:
        """Whether its load is below the threshold that livekit-agents has by default."""
        status = await self.status()
        return status is not None and status.load < _LIVEKIT_LOAD_THRESHOLD

    async def stop(self) -> None:
        """Stops the worker and its job processes."""
        await self.process.stop()


class Pool:
    """The workers that this lab has started.

    Attributes:
        workers: In the order of their start.
    """

    def __init__(self) -> None:
        self.workers: list[Worker] = []

    async def add(
        self,
        settings: Settings,
        *,
        state_dir: Path,
        count: int = 1,
        program: str = AGENT_PROGRAM,
    ) -> None:
        """Starts so many workers; all of them or, on an error, none.

        Args:
            settings: As for :meth:`Worker.start`.
            state_dir: As for :meth:`Worker.start`.
            count: How many.
            program: As for :meth:`Worker.start`.

        Raises:
            ProcessError: As :meth:`Worker.start`.
        """
        first = len(self.workers)
        started = await asyncio.gather(
            *(
                Worker.start(
                    settings,
                    state_dir=state_dir,
                    name=f"worker-{first + number + 1}",
                    program=program,
                )
                for number in range(count)
            ),
            return_exceptions=True,
        )
        good = [item for item in started if isinstance(item, Worker)]
        for item in started:
            if isinstance(item, BaseException):
                await asyncio.gather(*(worker.stop() for worker in good))
                raise item
        self.workers += good

    async def statuses(self) -> list[WorkerStatus]:
        """Asks every worker; those that do not answer are left out."""
        answers = await asyncio.gather(*(worker.status() for worker in self.workers))
        return [answer for answer in answers if answer is not None]

    async def settle(self, timeout_s: float = 60.0) -> None:
        """Waits until every worker is idle and has its warm processes back.

        Raises:
            StageTimeoutError: They were not in time.
        """
        until = time.monotonic() + timeout_s
        while not all(await asyncio.gather(*(worker.settled() for worker in self.workers))):
            if time.monotonic() > until:
                raise StageTimeoutError(
                    "the workers' rest between two calls",
                    timeout_s,
                    "a job still runs, or its replacement is still loading models",
                    "the worker's log shows which job did not end",
                )
            await asyncio.sleep(0.1)
        # A worker whose load is the machine's, as the stock one's, may have to wait for others.
        # On a machine that never rests the trial goes on and shows what that does.
        until = min(until, time.monotonic() + _REST_S)
        while not all(await asyncio.gather(*(w.would_take_a_job() for w in self.workers))):
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stops them all."""
        workers, self.workers = self.workers, []
        await asyncio.gather(*(worker.stop() for worker in workers))
