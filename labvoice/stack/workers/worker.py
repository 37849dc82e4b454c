"""One worker process: start, status, drain, stop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil

from labvoice.errors import ProcessError
from labvoice.protocol.metadata import EVENT_PREFIX
from labvoice.proxies import http_session, spare_loopback
from labvoice.settings import ENV_FILE, Settings
from labvoice.stack.processes import ManagedProcess, free_port, new_lines

AGENT_PROGRAM = "labvoice.agent"
# livekit-agents 1.8.9, ipc/supervised_proc.py and ipc/job_thread_executor.py
_PREPARING = re.compile("initializing (process|job runner)")
_PREPARED = re.compile("(process|job runner) initialized|error initializing process")
_LIVEKIT_LOAD_THRESHOLD = 0.7  # livekit-agents' default in production, worker.py
_KEPT = 1000
"""Maximum number of events, jobs, rejections and endings kept of a worker."""
_STATUS_TIMEOUT_S = 2.0
_START_TIMEOUT_S = 90.0  # models load cold from disk on two busy cores: 10 to 40 s seen


_T = TypeVar("_T")


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        joined: Whether its agent had joined the room.
    """

    reason: str
    joined: bool


@dataclass(frozen=True)
class WorkerStatus:
    """Status of a worker (`GET /worker`).

    Attributes:
        worker_id: Id from the LiveKit server at registration.
        agent_name: Agent name that it registered with.
        load: Load, 0 to 1; at 1 it takes no more jobs.
        rejections: Reasons for rejected job requests, by dispatch id.
        endings: How jobs ended, by dispatch id.
        failure: Why its last job process failed to start, with the last log lines.
        load_threshold: Load from which it takes no more jobs.
    """

    worker_id: str
    agent_name: str
    active_jobs: int
    load: float
    rejections: dict[str, str] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)
    failure: str = ""
    load_threshold: float = _LIVEKIT_LOAD_THRESHOLD


@dataclass(frozen=True)
class JobProcess:
    """The process that runs a job.

    Attributes:
        pid: Its process id; the worker's own if jobs are threads.
        started_s: Start of the job, in wall-clock seconds.
    """

    pid: int
    room: str
    started_s: float

    @property
    def alive(self) -> bool:
        """Whether the process exists, stopped or not."""
        try:
            process = psutil.Process(self.pid)
            # A process that is younger than the job has reused the process id.
            return process.create_time() <= self.started_s and process.status() not in (
                psutil.STATUS_ZOMBIE,
                psutil.STATUS_DEAD,
            )
        except psutil.Error:
            return False


def _keep(table: dict[str, _T], key: str, value: _T) -> None:
    """Stores the first value of a key, and drops the oldest key."""
    table.setdefault(key, value)
    if len(table) > _KEPT:
        del table[next(iter(table))]


def worker_environment(settings: Settings) -> dict[str, str]:
    """Returns the whole environment of a worker process with these settings."""
    environment = dict(os.environ)
    for name, info in Settings.model_fields.items():
        value = getattr(settings, name)
        key = str(info.validation_alias)
        if value is None:
            environment.pop(key, None)
            continue
        get_secret = getattr(value, "get_secret_value", None)
        environment[key] = get_secret() if get_secret else str(value)
    spare_loopback(environment, settings.livekit_url or "")
    environment[ENV_FILE] = ""  # unset settings stay unset, regardless of `.env`
    # One thread per model: recognition, synthesis and the model share few cores.
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONIOENCODING"] = "utf-8"  # its log is read as such
    return environment


class Worker:
    """One worker process; created by :meth:`start`.

    Attributes:
        url: Address of its status service.
        agent_name: Name under which it registers.
        draining: Whether it is draining: it takes no more jobs and ends.
        served: Whether it ever accepted a job.
    """

    def __init__(self, process: ManagedProcess, url: str, settings: Settings) -> None:
        self.process = process
        self.url = url
        self.agent_name = settings.agent_name
        self._preparing = 0
        self.settings = settings
        self.draining = False
        self._log_position = 0
        self._fresh: collections.deque[dict[str, Any]] = collections.deque(maxlen=_KEPT)
        self._registration: dict[str, Any] = {}
        self._failed = ""
        self.served = False
        self._warm = 0
        self._jobs: dict[str, JobProcess] = {}
        self._rejections: dict[str, str] = {}
        self._endings: dict[str, Ending] = {}

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
        registered worker is warm.

        Args:
            settings: Must contain the LiveKit server's address, key and secret, and the model.
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
                # A user's `token.py` in the working directory must not shadow another module.
                *(["-P"] if program.startswith("labvoice.") else []),
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
        await process.until_ready(
            worker._registered,
            timeout_s=_START_TIMEOUT_S,
            hint="the log names the model or server that failed",
        )
        return worker

    async def _registered(self) -> bool:
        self._read()
        if self._failed:
            raise ProcessError(
                f"{self.process.name} cannot load its models: {self._failed}",
                log_tail=self.process.log_tail(),
            )
        return bool(self._registration)

    def take_events(self) -> list[dict[str, Any]]:
        """Returns the worker's events since the last call, oldest first."""
        self._read()
        fresh = list(self._fresh)
        self._fresh.clear()
        return fresh

    def _read(self) -> None:
        lines, self._log_position = new_lines(self.process.log_path, self._log_position)
        for line in lines:
            if _PREPARING.search(line):
                self._preparing += 1
            elif _PREPARED.search(line):
                self._preparing -= 1
            _, found, text = line.partition(EVENT_PREFIX)
            if found:
                self._take(json.loads(text))

    def _take(self, event: dict[str, Any]) -> None:
        self._fresh.append(event)
        match event["event"]:
            case "registered":
                self._registration = event
            case "failed":
                self._failed = event["reason"]
            case "prewarmed":
                self._failed = ""
                self._warm += 1
            case "accepted":
                self.served = True
            case "started":
                self._warm -= 1
                job = JobProcess(event["pid"], event["room"], event["at_s"])
                _keep(self._jobs, event["job_id"], job)
            case "ended":
                joined = self._jobs.pop(event["job_id"], None) is not None
                _keep(self._endings, event["dispatch_id"], Ending(event["reason"], joined))
            case "rejected":
                _keep(self._rejections, event["dispatch_id"], event["reason"])

    async def status(self) -> WorkerStatus | None:
        """Returns the worker's status; None if it does not answer in time."""
        try:
            async with (
                http_session(
                    self.url, timeout=aiohttp.ClientTimeout(total=_STATUS_TIMEOUT_S)
                ) as http,
                http.get(f"{self.url}/worker") as response,
            ):
                info = await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        failure = self._failed
        if failure:
            failure += f"\n\nlast log lines:\n{self.process.log_tail()}"
        return WorkerStatus(
            self.worker_id,
            info.get("agent_name", ""),
            int(info.get("active_jobs", 0)),
            float(info.get("worker_load", 0.0)),
            dict(self._rejections),
            dict(self._endings),
            failure,
            self._registration.get("load_threshold", _LIVEKIT_LOAD_THRESHOLD),
        )

    @property
    def worker_id(self) -> str:
        """Latest id from the LiveKit server; a restarted server assigns another."""
        self._read()
        return str(self._registration.get("worker_id", ""))

    @property
    def warm_processes(self) -> int:
        """Number of idle job processes with loaded models."""
        self._read()
        return self._warm

    def jobs(self) -> dict[str, JobProcess]:
        """Returns the jobs that started and have not reported their end, by job id."""
        self._read()
        return dict(self._jobs)

    @property
    def preparing(self) -> bool:
        """Whether a process is being prepared for the next job."""
        self._read()
        return self._preparing > 0

    async def would_take_a_job(self) -> bool:
        """Whether its load is below livekit-agents' default threshold."""
        status = await self.status()
        return status is not None and status.load < _LIVEKIT_LOAD_THRESHOLD

    async def drain(self, timeout_s: float) -> None:
        """Ends the worker when its calls have ended, or at the timeout.

        Calls that still run then are shut down in order, so that a supervisor can move them.

        Args:
            timeout_s: How long its calls may continue, in seconds; the worker's setting
                `drain_timeout_s` applies if it is shorter.
        """
        self.draining = True
        if self.process.running:
            os.kill(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.process.wait()
        await self.stop()

    async def stop(self) -> None:
        """Stops the worker and its job processes at once, including running calls."""
        if self.process.running:
            # The first SIGTERM of an ordinary stop would only start to drain.
            os.kill(self.process.pid, signal.SIGINT)
        await self.process.stop()
