"""Load test of the HTTP service: constant dispatch rate, idle clients, a restart.

Behind the service stands :mod:`labvoice.web.stub`, whose dispatches take 100 ms, so that what
is measured is keys, limits, validation, metrics and logs, and not agents.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from labvoice.bench.base import RunOptions, trial
from labvoice.proxies import http_session
from labvoice.runs.run import Run, RunWriter
from labvoice.stack.processes import ManagedProcess, Server, free_port, http_answers
from labvoice.web.server import GRACE_S, raise_file_limit
from labvoice.web.stub import DISPATCH_S

_RETRY_S: Final = 0.1
_GIVE_UP_S: Final = 30.0
_OPENING_AT_ONCE: Final = 50


@dataclass(frozen=True)
class OfferedDispatch:
    """One dispatch that was offered.

    Attributes:
        seconds: From when it was to be sent to its answer.
        dispatch_id: From the answer; empty when there was none in time.
        tries: How often it was sent; more than once only where the connection failed.
    """

    room: str
    seconds: float
    dispatch_id: str
    tries: int
    detail: str = ""


@dataclass(frozen=True)
class ServiceFacts:
    """What else was seen.

    Attributes:
        offered_hz: Dispatches offered per second.
        idle_clients: Keep-alive connections that were held open through the load.
        idle_served_after: How many of them were answered on the same connection afterwards.
        memory_before: Resident bytes of the service before the load.
        memory_after: The same after it.
        cpu_per_dispatch_s: Processor time that the service took for each dispatch of the load.
        restarts: How often the service was restarted under load.
        accepted: Dispatches that were answered with success, the restart's included.
        lost: Accepted dispatches that are not in the backend's ledger, or under another id.
        doubled: Rooms that are in the ledger more than once.
    """

    offered_hz: float
    idle_clients: int
    idle_served_after: int
    memory_before: int
    memory_after: int
    cpu_per_dispatch_s: float
    restarts: int
    accepted: int
    lost: int
    doubled: int

    @property
    def sound(self) -> bool:
        """Whether nothing was lost or doubled and every idle client was served afterwards."""
        return not self.lost and not self.doubled and self.idle_served_after == self.idle_clients

    def __str__(self) -> str:
        return (
            f"offered {self.offered_hz:g}/s; accepted {self.accepted}, lost {self.lost}, "
            f"doubled {self.doubled}, restarts {self.restarts}\n"
            f"idle clients {self.idle_clients}, served afterwards {self.idle_served_after}\n"
            f"memory {self.memory_before / 2**20:.0f} MiB before, "
            f"{self.memory_after / 2**20:.0f} MiB after; "
            f"{self.cpu_per_dispatch_s * 1000:.2f} ms of processor for each dispatch"
        )


class _Service(Server):
    """The stub service in a process of its own, on one port for all its lives."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.key = secrets.token_urlsafe(32)
        self.ledger = folder / "ledger"
        self._folder = folder

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Starts it and waits until it answers."""
        self.process = await ManagedProcess.start(
            "HTTP service",
            [sys.executable, "-P", "-m", "labvoice.web.stub", str(self.port), self.ledger],
            log_path=self._folder / "service.log",
            env={
                **os.environ,
                "LABVOICE_API_KEY": self.key,
                "LABVOICE_RATE_LIMIT": "100000",
            },
            stop_step_s=GRACE_S + 5,
        )
        await self.process.until_ready(lambda: http_answers(f"{self.url}/healthz"), timeout_s=60)

    def usage(self) -> tuple[int, float]:
        """Resident bytes, and processor time so far in seconds."""
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        times = process.cpu_times()
        return process.memory_info().rss, times.user + times.system


async def measure_load(
    *,
    rate_hz: float,
    seconds: float,
    idle: int,
    restart_s: float,
    options: RunOptions,
) -> tuple[Run, ServiceFacts]:
    """Offers dispatches at a constant rate, then restarts the service while more come.

    Args:
        rate_hz: Dispatches per second, whatever becomes of the earlier ones.
        idle: Keep-alive connections that are open and silent meanwhile.
        restart_s: How long the second load lasts, in whose middle the service is restarted;
            0 for none.
        options: Options of the run; the seconds of load are the unit of resampling, for dispatches
            that are under way at once are not independent.

    Returns:
        The run, with stage `http_dispatch` from the intended start to the answer, and facts.

    Raises:
        ProcessError: The service did not start.
        RunFileError: The run file exists already.
    """
    arms = {"load": {"offered_hz": rate_hz}}
    if restart_s:
        arms["restart"] = {"offered_hz": rate_hz / 4}
    config = {
        "command": options.command,
        "backend": "stub",
        "stub_dispatch_s": DISPATCH_S,
        "seconds": seconds,
        "idle_clients": idle,
    }
    out, progress = options.path("http"), options.progress
    raise_file_limit()
    with (
        tempfile.TemporaryDirectory(prefix="labvoice-load-") as folder,
        RunWriter(out, kind="http", loop="open", config=config, arms=arms) as run,
    ):
        service = _Service(Path(folder))
        await service.start()
        try:
            async with _idle_clients(service, idle) as served:
                memory_before, cpu_before = service.usage()
                progress(f"{rate_hz:g} dispatches a second for {seconds:g} s, {idle} idle clients")
                asked = {"load": await _offer(run, 0, service, "load", rate_hz, seconds)}
                memory_after, cpu_after = service.usage()
                still = await served()
            if restart_s:
                progress("the same at a quarter of the rate, with a restart in the middle")
                first = len(asked["load"])
                offering = asyncio.create_task(
                    _offer(run, first, service, "restart", rate_hz / 4, restart_s)
                )
                await asyncio.sleep(restart_s / 2)
                await service.stop()
                await service.start()
                asked["restart"] = await offering
        finally:
            await service.stop()
        ledger = [line.split("=") for line in service.ledger.read_text("utf-8").split()]
        known = dict(ledger)
        accepted = [each for some in asked.values() for each in some if each.dispatch_id]
        facts = ServiceFacts(
            offered_hz=rate_hz,
            idle_clients=idle,
            idle_served_after=still,
            memory_before=memory_before,
            memory_after=memory_after,
            cpu_per_dispatch_s=(cpu_after - cpu_before) / len(asked["load"]),
            restarts=int(bool(restart_s)),
            accepted=len(accepted),
            lost=sum(known.get(each.room) != each.dispatch_id for each in accepted),
            doubled=len(ledger) - len(known),
        )
        run.note(0, **asdict(facts))
    return Run.load(out), facts


async def _offer(
    run: RunWriter, first: int, service: _Service, name: str, rate_hz: float, seconds: float
) -> list[OfferedDispatch]:
    """Sends one dispatch for each moment that is due, and waits for all answers."""
    number = int(rate_hz * seconds)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    timeout = aiohttp.ClientTimeout(total=_GIVE_UP_S)
    headers = {"Authorization": f"Bearer {service.key}"}
    async with http_session(
        service.url, base_url=service.url, connector=connector, timeout=timeout, headers=headers
    ) as http:
        start_s = time.monotonic() + 0.5
        tasks = []
        for index in range(number):
            intended_s = start_s + index / rate_hz
            await asyncio.sleep(max(0.0, intended_s - time.monotonic()))
            second = int(index / rate_hz)
            one = _one(run, first + index, http, name, f"{name}-{index}", second, intended_s)
            tasks.append(asyncio.create_task(one))
        return list(await asyncio.gather(*tasks))


async def _one(
    run: RunWriter,
    number: int,
    http: aiohttp.ClientSession,
    arm: str,
    room: str,
    second: int,
    intended_s: float,
) -> OfferedDispatch:
    """Sends one dispatch request and records its result."""
    asked = OfferedDispatch(room, 0.0, "", 0, "was not answered")
    async with trial(run, number, room, arm, round_number=0, unit=f"{arm} {second}") as this:
        asked = await _ask(http, room, intended_s)
        run.stage(number, "http_dispatch", asked.seconds, source="client")
        if asked.tries > 1:
            this.note(tries=asked.tries)
        this.outcome("ok" if asked.dispatch_id else "error", detail=asked.detail)
    return asked


async def _ask(http: aiohttp.ClientSession, room: str, intended_s: float) -> OfferedDispatch:
    """Sends a request and retries until it is answered; a retry never makes a second agent."""
    tries, dispatch_id, detail = 0, "", ""
    while not dispatch_id and time.monotonic() - intended_s < _GIVE_UP_S:
        tries += 1
        try:
            async with http.post("/api/dispatch-agent", json={"room": room}) as answer:
                body: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            detail = str(error) or type(error).__name__
            await asyncio.sleep(_RETRY_S)
            continue
        dispatch_id = body.get("dispatch_id", "")
        if not dispatch_id:
            detail = str(body)[:200]
            break
    return OfferedDispatch(room, time.monotonic() - intended_s, dispatch_id, tries, detail)


@asynccontextmanager
async def _idle_clients(service: _Service, number: int) -> AsyncIterator[Callable[[], Any]]:
    """Holds connections open; yields what asks once more on each and counts the answers."""
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    slots = asyncio.Semaphore(_OPENING_AT_ONCE)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            async with slots, asyncio.timeout(30):
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(b'{"status":"ok"}'))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return False
        return head.startswith(b"HTTP/1.1 200")

    clients = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(number)]

    async def served() -> int:
        return sum(await asyncio.gather(*(ask(*client) for client in clients)))

    await served()
    try:
        yield served
    finally:
        for _, writer in clients:
            writer.close()
