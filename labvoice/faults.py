"""Fault injection: kills, hangs and stops parts of a running lab."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from labvoice.caller.call import Call
from labvoice.errors import StageTimeoutError, UsageError
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.models.server import ModelServer
from labvoice.stack.processes import ManagedProcess, tree_of
from labvoice.stack.workers.pool import Pool
from labvoice.stack.workers.worker import Worker
from labvoice.targets.agent import TargetAgent


@dataclass(frozen=True)
class Fault:
    """Processes that were killed or stopped.

    Attributes:
        processes: The processes that existed.
        at_s: When the signal was sent, in seconds on this process's monotonic clock.
    """

    processes: tuple[psutil.Process, ...]
    at_s: float

    def resume(self) -> None:
        """Resumes stopped processes (SIGCONT)."""
        _send(self.processes, signal.SIGCONT)

    def kill(self) -> None:
        """Kills them (SIGKILL), stopped or not."""
        _send(self.processes, signal.SIGKILL)

    async def until_gone(self, timeout_s: float = 30.0) -> None:
        """Waits until they have ended.

        Raises:
            StageTimeoutError: One still runs.
        """
        waiting = asyncio.to_thread(psutil.wait_procs, list(self.processes), timeout_s)
        _, alive = await waiting
        if alive:
            pids = ", ".join(str(process.pid) for process in alive)
            raise StageTimeoutError("the processes' end", timeout_s, f"still there: {pids}")


def _send(processes: tuple[psutil.Process, ...], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _fault(pid: int, number: signal.Signals, *, children: bool = False) -> Fault:
    processes = tuple(tree_of(pid) if children else tree_of(pid)[:1])
    at_s = time.monotonic()
    _send(processes, number)
    return Fault(processes, at_s)


@dataclass(frozen=True)
class Faults:
    """Fault injection for the parts of one lab: `lab.faults.kill_job(call)`.

    Only processes that the lab has started can be affected: what others run, and one server of
    several that is not named, raise a :class:`labvoice.errors.UsageError`.

    Attributes:
        pool: The lab's workers.
        livekit: Its LiveKit server.
        model: Its model server; None if the model is external.
        targets: Agents that are not labvoice's, whose workers the lab has started.
    """

    pool: Pool
    livekit: LiveKitServer | None = None
    model: ModelServer | None = None
    targets: Sequence[TargetAgent] = ()

    def kill_job(self, call: Call) -> Fault:
        """Kills the process that runs a call's agent (SIGKILL), as an out-of-memory kill does."""
        return _fault(self._job_pid(call), signal.SIGKILL)

    def hang_job(self, call: Call) -> Fault:
        """Stops the process that runs a call's agent (SIGSTOP): it exists but does not respond."""
        return _fault(self._job_pid(call), signal.SIGSTOP)

    def kill_worker(
        self, which: Call | Worker, *, jobs_too: bool = False, restart: bool = True
    ) -> Fault:
        """Kills a worker; its job processes end shortly after.

        Args:
            which: The worker, or a call whose agent it runs.
            jobs_too: Kill the job processes at the same time.
            restart: Whether the pool starts a new one.
        """
        worker = self._worker(which)
        if not restart:
            self.pool.unwatch(worker)
        return _fault(worker.process.pid, signal.SIGKILL, children=jobs_too)

    def hang_worker(self, which: Call | Worker, *, jobs_too: bool = False) -> Fault:
        """Stops a worker; the arguments are those of :meth:`kill_worker`."""
        return _fault(self._worker(which).process.pid, signal.SIGSTOP, children=jobs_too)

    def kill_livekit(self, node: LiveKitServer | None = None) -> Fault:
        """Kills the LiveKit server; :meth:`restart_livekit` starts it again.

        Args:
            node: Of a cluster, the server that is killed.
        """
        return _fault(self._livekit(node)[1].pid, signal.SIGKILL)

    def hang_livekit(self) -> Fault:
        """Stops the LiveKit server (SIGSTOP): its port is open but nothing answers."""
        return _fault(self._livekit()[1].pid, signal.SIGSTOP)

    async def stop_livekit(self) -> None:
        """Stops the LiveKit server in order, as at the lab's end."""
        await self._livekit()[0].stop()

    async def restart_livekit(self, node: LiveKitServer | None = None) -> None:
        """Restarts the LiveKit server at the same address with the same key.

        Args:
            node: Of a cluster, the server that is restarted.
        """
        await self._livekit(node)[0].restart()

    async def stop_model(self) -> None:
        """Ends the model server."""
        if self.model is None:
            raise UsageError("this lab did not start the model server", '`Lab(llm="paced")`')
        await self.model.stop()

    def _job_pid(self, call: Call) -> int:
        if "job_id" not in call.worker:
            return self._target_job_pid(call)
        job = self.pool.process_of(call.worker["job_id"])
        if job is None:
            raise _not_ours(call)
        return job.pid

    def _target_job_pid(self, call: Call) -> int:
        """Finds the process below a foreign worker that is connected to its server, as it is."""
        for agent in self.targets:
            if agent.worker is None or agent.name != call.agent_name:
                continue
            port = urlsplit(agent.server.url).port
            connected = []
            for process in tree_of(agent.worker.process.pid):
                with contextlib.suppress(psutil.Error):
                    peers = [each.raddr for each in process.net_connections("tcp")]
                    if any(peer and peer.port == port for peer in peers):
                        connected.append(process)
            if len(connected) == 2:
                return int(connected[1].pid)
            raise UsageError(
                f"{len(connected)} processes of {agent.target} are connected to the server: which "
                "of them runs the call's job is not known",
                "one call at a time, of an agent whose jobs have processes of their own",
            )
        raise _not_ours(call)

    def _worker(self, which: Call | Worker) -> Worker:
        if isinstance(which, Worker):
            return which
        for worker in self.pool.workers:
            if worker.worker_id == which.worker["worker_id"]:
                return worker
        raise _not_ours(which)

    def _livekit(self, node: LiveKitServer | None = None) -> tuple[LiveKitServer, ManagedProcess]:
        server = node or self.livekit
        if server is not None and server.nodes:
            raise UsageError(
                f"this lab has {len(server.nodes)} LiveKit servers",
                "name one: `await lab.cluster.node_of(room)`",
            )
        if server is None or server.process is None:
            raise UsageError("this lab did not start the LiveKit server", "unset LIVEKIT_URL")
        return server, server.process


def _not_ours(call: Call) -> UsageError:
    return UsageError(
        f"the agent in room {call.room_name!r} runs on a worker that this lab did not start",
        "inject the fault on the host of that worker",
    )
