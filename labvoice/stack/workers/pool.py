"""The workers of a lab: started, scaled, drained, and restarted when one dies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pandas as pd

from labvoice.concurrency import cancel, poll
from labvoice.errors import LabvoiceError, ProcessError, StageTimeoutError, UsageError
from labvoice.settings import Settings
from labvoice.stack.processes import memory_of
from labvoice.stack.workers.events import EventLog
from labvoice.stack.workers.worker import AGENT_PROGRAM, JobProcess, Worker, WorkerStatus

COLUMNS: Final = ("worker", "agent_name", "pid", "state", "active_jobs", "load", "memory")
IDLE_TIMEOUT_S: Final = 90.0
"""How long workers may take to be idle again, in seconds: livekit-agents gives a job 75 s to end
(1.8.9, ipc/job_proc_lazy_main.py: 15 s for its entrypoint and 60 s for its session)."""
_REST_S: Final = 15.0
_POLL_S: Final = 0.1
_HUNG_AFTER: Final = 3
"""Consecutive unanswered health checks, 2 s each, after which a worker counts as hung."""
_JOBS_KEPT: Final = 1000
_SHORT_LIFE_S: Final = 30.0


class Pool:
    """The workers that this lab has started.

    A worker that ends unexpectedly, or hangs, is restarted.

    Args:
        health_every_s: Time between two health checks of a worker, in seconds.
        give_up_after: Consecutive early exits without a job after which a worker is not restarted.

    Attributes:
        workers: In the order of their start.
        log: Events, also of the rooms (see the supervisor).
    """

    def __init__(self, *, health_every_s: float = 5.0, give_up_after: int = 3) -> None:
        self.workers: list[Worker] = []
        self._health_every_s, self._give_up_after = health_every_s, give_up_after
        self.log = EventLog()
        self._numbers = itertools.count(1)
        self._state_dir: Path | None = None
        self._kinds: dict[str, tuple[Settings, str]] = {}
        self._watchers: dict[Worker, asyncio.Task[None]] = {}
        self._starts: set[asyncio.Task[Worker]] = set()
        self._draining: dict[Worker, asyncio.Task[None]] = {}
        self._jobs: dict[str, JobProcess] = {}
        self._restarting = 0
        self._short_lives: collections.Counter[str] = collections.Counter()

    # -- size ---------------------------------------------------------------------------

    async def add(
        self,
        settings: Settings,
        *,
        state_dir: Path,
        count: int = 1,
        program: str = AGENT_PROGRAM,
    ) -> None:
        """Starts so many workers as :meth:`Worker.start` does; all of them or, on an error, none.

        Raises:
            ProcessError: As :meth:`Worker.start`.
        """
        self._state_dir = state_dir
        self._kinds[settings.agent_name] = settings, program
        starts = [
            asyncio.create_task(
                Worker.start(
                    settings,
                    state_dir=state_dir,
                    name=f"worker-{next(self._numbers)}",
                    program=program,
                )
            )
            for _ in range(count)
        ]
        self._starts.update(starts)
        try:
            started = await asyncio.gather(*starts)
        except BaseException:
            stopped = any(start.cancelled() for start in starts)
            for start in starts:
                start.cancel()
            ended = await asyncio.gather(*starts, return_exceptions=True)
            await asyncio.gather(*(item.stop() for item in ended if isinstance(item, Worker)))
            asked = asyncio.current_task()
            if stopped and asked is not None and not asked.cancelling():
                raise ProcessError("the pool was stopped while a worker started") from None
            raise
        finally:
            self._starts.difference_update(starts)
        self.workers += started
        for worker in started:
            self._watchers[worker] = asyncio.create_task(self._watch(worker))

    async def scale(self, count: int, *, agent_name: str | None = None) -> None:
        """Starts or drains workers to reach a count; running calls are not affected.

        Workers that are drained take no more jobs and end with their last call; this returns
        without waiting for them (:meth:`drained` does).

        Args:
            agent_name: Their agent name; optional if the pool has one name only.

        Raises:
            UsageError: The name is unknown or ambiguous, or the count is negative.
            ProcessError: A worker could not be started.
        """
        if count < 0:
            raise UsageError("a pool cannot have fewer than 0 workers", "`scale(0)` or more")
        if agent_name is None:
            if len(self._kinds) != 1:
                raise UsageError(
                    f"the pool has workers of {len(self._kinds)} agent names",
                    "name one: `scale(n, agent_name=…)`",
                )
            agent_name = next(iter(self._kinds))
        if agent_name not in self._kinds or self._state_dir is None:
            raise UsageError(
                f"the pool never had a worker of {agent_name!r}",
                "`await lab.add_workers(1, agent_name=…)` starts the first one",
            )
        same = [w for w in self.workers if w.agent_name == agent_name and not w.draining]
        if count > len(same):
            settings, program = self._kinds[agent_name]
            missing = count - len(same)
            await self.add(settings, state_dir=self._state_dir, count=missing, program=program)
        by_jobs = sorted(same, key=lambda worker: len(self.live_jobs(worker)))
        for worker in by_jobs[: max(0, len(same) - count)]:
            self.remove(worker)

    def remove(self, worker: Worker) -> asyncio.Task[None]:
        """Starts to drain a worker, once; the returned task ends when the worker has ended."""
        if worker in self._draining:
            return self._draining[worker]
        self.unwatch(worker)
        self.log.add("draining", worker=worker.process.name)

        async def drain() -> None:
            await worker.drain(worker.settings.drain_timeout_s)
            self._take_events(worker)
            self.workers.remove(worker)
            self.log.add("stopped", worker=worker.process.name)

        worker.draining = True
        task = asyncio.create_task(drain())
        self._draining[worker] = task
        task.add_done_callback(lambda _: self._draining.pop(worker))
        return task

    async def drained(self) -> None:
        """Waits until every draining worker has ended."""
        await asyncio.gather(*self._draining.values())

    async def ended(self) -> None:
        """Waits until there is no worker left and none is being restarted."""
        await poll(lambda: not self.workers and not self._restarting, math.inf, _POLL_S)

    async def drain(self) -> None:
        """Drains all workers; returns when the last call has ended or at the timeout."""
        for worker in [worker for worker in self.workers if not worker.draining]:
            self.remove(worker)
        await self.drained()

    async def stop(self) -> None:
        """Stops all workers at once, including those with calls or still starting."""
        await cancel(*self._watchers.values(), *self._draining.values(), *self._starts)
        self._watchers.clear()
        workers, self.workers = self.workers, []
        await asyncio.gather(*(worker.stop() for worker in workers))

    # -- health -------------------------------------------------------------------------

    def unwatch(self, worker: Worker) -> None:
        """Stops watching a worker: it is not restarted when it ends."""
        if (watcher := self._watchers.pop(worker, None)) is not None:
            watcher.cancel()

    async def _watch(self, worker: Worker) -> None:
        """Waits for the worker's end, kills it if it hangs, and replaces it."""
        name = worker.process.name
        up_s = time.monotonic()  # from its registration: on a busy machine a start takes long
        silent = 0
        while worker.process.running:
            try:
                async with asyncio.timeout(self._health_every_s):
                    await worker.process.wait()
            except TimeoutError:
                silent = 0 if await self._answers(worker) else silent + 1
                if silent == _HUNG_AFTER:
                    self.log.add("worker_hung", worker=name, detail="it does not answer any more")
                    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                        os.killpg(worker.process.pid, signal.SIGKILL)
        self.workers.remove(worker)
        with contextlib.suppress(OSError, ValueError):  # its log is not readable any more
            self._take_events(worker)
        status = worker.process.returncode
        self.log.add("worker_lost", worker=name, detail=f"it ended with status {status}")
        age_s = time.monotonic() - up_s
        short = age_s < _SHORT_LIFE_S and not worker.served
        self._short_lives[worker.agent_name] = (
            self._short_lives[worker.agent_name] + 1 if short else 0
        )
        self._restarting += 1
        try:
            if self._short_lives[worker.agent_name] < self._give_up_after and self._state_dir:
                _, program = self._kinds[worker.agent_name]
                await self.add(worker.settings, state_dir=self._state_dir, program=program)
            else:
                self.log.add("worker_given_up", worker=name, detail=worker.process.log_tail(1))
        except (LabvoiceError, OSError) as error:
            words = error.observed if isinstance(error, LabvoiceError) else str(error)
            self.log.add("worker_given_up", worker=name, detail=words)
        finally:
            self._restarting -= 1
            self._watchers.pop(worker, None)
            await worker.process.stop()  # closes the pipe to its guard

    async def _answers(self, worker: Worker) -> bool:
        """Checks whether a worker answers; an error of the check itself counts as alive."""
        try:
            return await worker.status() is not None
        except Exception as error:  # any error: the worker must stay watched
            detail = f"{type(error).__name__}: {error}"
            self.log.add("watch_failed", worker=worker.process.name, detail=detail)
            return True

    def process_of(self, job_id: str) -> JobProcess | None:
        """Returns the process that runs a job of one of these workers; None for other jobs."""
        for worker in self.workers:
            self._take_events(worker)
        return self._jobs.get(job_id)

    def worse_workers(self, agent_name: str, lost_worker_id: str) -> list[str]:
        """Returns the ids of workers that must not take a job while a better one is available.

        A better one is warm, has a free slot, and did not lose the agent.

        Args:
            agent_name: Only workers of this name are considered.
            lost_worker_id: The worker that lost its agent.
        """
        same = [w for w in self.workers if w.agent_name == agent_name]
        usable = {
            worker.worker_id
            for worker in same
            if worker.process.running
            and not worker.draining
            and worker.worker_id != lost_worker_id
            and worker.warm_processes > 0
            and len(self.live_jobs(worker)) < worker.settings.max_jobs
        }
        return [w.worker_id for w in same if w.worker_id not in usable] if usable else []

    @property
    def starting(self) -> int:
        """Number of starting workers."""
        return len(self._starts)

    @property
    def names(self) -> set[str]:
        """Agent names of present and former workers."""
        return set(self._kinds)

    @staticmethod
    def live_jobs(worker: Worker) -> list[str]:
        """Returns the ids of the jobs whose processes exist."""
        return [job_id for job_id, process in worker.jobs().items() if process.alive]

    def _take_events(self, worker: Worker) -> None:
        """Copies a worker's new events into the log."""
        for event in worker.take_events():
            if event["event"] == "started":
                if len(self._jobs) >= _JOBS_KEPT:  # a killed job never reports its end
                    del self._jobs[next(iter(self._jobs))]
                self._jobs[event["job_id"]] = JobProcess(event["pid"], event["room"], event["at_s"])
            elif event["event"] == "ended":
                self._jobs.pop(event["job_id"], None)
            self.log.add(
                event["event"],
                worker=worker.process.name,
                room=event.get("room", ""),
                detail=str(event.get("reason", event.get("worker_id", ""))),
                at_s=event["at_s"],
                job_id=event.get("job_id", ""),
            )

    async def statuses(self) -> list[WorkerStatus]:
        """Returns the status of every worker that answers."""
        answers = await asyncio.gather(*(worker.status() for worker in self.workers))
        return [answer for answer in answers if answer is not None]

    async def wait_idle(
        self,
        timeout_s: float = IDLE_TIMEOUT_S,
        going_on: Callable[[], Awaitable[collections.Counter[str | None]]] | None = None,
    ) -> None:
        """Waits until every worker is idle and has its warm processes back.

        Args:
            timeout_s: How long, in seconds.
            going_on: Returns the number of jobs that may go on, by agent name.

        Raises:
            StageTimeoutError: They were not in time.
        """
        until = time.monotonic() + timeout_s
        observed = ""

        async def idle() -> bool:
            nonlocal observed
            busy: collections.Counter[str | None] = collections.Counter()
            workers = list(self.workers)
            statuses = await asyncio.gather(*(worker.status() for worker in workers))
            if self._restarting:
                observed = "a lost worker is being replaced"
                return False
            for worker, status in zip(workers, statuses, strict=True):
                if status is None or worker.preparing:
                    observed = f"{worker.process.name} " + (
                        "does not answer"
                        if status is None
                        else "is loading the models of the process for its next job"
                    )
                    return False
                busy[worker.agent_name] += status.active_jobs
            if busy.total() and going_on is not None:
                busy -= await going_on()
            observed = "; ".join(
                _jobs_left(worker, status.active_jobs)
                for worker, status in zip(workers, statuses, strict=True)
                if status is not None and status.active_jobs
            )
            return not busy.total()

        async def rested() -> bool:
            return all(await asyncio.gather(*(w.would_take_a_job() for w in self.workers)))

        if not await poll(idle, timeout_s, _POLL_S):
            raise StageTimeoutError(
                "the workers' idle state between two calls",
                timeout_s,
                observed,
                "the worker's log shows why",
            )
        # A worker whose load is the machine's CPU load, like the stock one's, may have to wait for
        # others. On a machine that never idles the trial continues and measures the effect.
        await poll(rested, min(_REST_S, until - time.monotonic()), _POLL_S)

    # -- display --------------------------------------------------------------------------

    @property
    def events(self) -> pd.DataFrame:
        """Events, oldest first: `at` (UTC), `event`, `worker`, `room`, `detail`."""
        for worker in self.workers:
            self._take_events(worker)
        return self.log.frame()

    def frame(self) -> pd.DataFrame:
        """Returns a row for each worker.

        Columns: `worker`, `agent_name`, `pid`, `state` (`up`, `draining` or `ended`),
        `active_jobs`, `load` (0 to 1) and `memory` (MiB, job processes included).
        """
        rows = []
        for worker in self.workers:
            process = worker.process
            state = "draining" if worker.draining else "up"
            jobs = len(self.live_jobs(worker))
            rows.append(
                (
                    process.name,
                    worker.agent_name,
                    process.pid,
                    state if process.running else "ended",
                    jobs,
                    min(1.0, jobs / worker.settings.max_jobs),
                    round(memory_of(process.pid) / 2**20),
                )
            )
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def __repr__(self) -> str:
        return self.frame().to_string(index=False) if self.workers else "no workers"

    def _repr_html_(self) -> str:
        return str(self.frame().to_html(index=False, border=0))


def _jobs_left(worker: Worker, jobs: int) -> str:
    """Says how many jobs a worker runs, and where and since when."""
    rooms = ", ".join(
        f"room {job.room}, {time.time() - job.started_s:.0f} s old"
        for job in worker.jobs().values()
        if job.alive
    )
    return f"{worker.process.name} runs {jobs} job{'' if jobs == 1 else 's'} ({rooms or 'ending'})"
