"""Child processes: own process group, readiness probe, and a stop that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import httpx
import psutil

from labvoice.errors import (
    CredentialsError,
    PortInUseError,
    ProcessError,
    ServerUnreachableError,
    StageTimeoutError,
    UsageError,
)
from labvoice.proxies import http_client

_GUARD = Path(__file__).with_name("guard.py")
_LOG_TAIL_LINES = 12
_MASK = "***"
_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
"""A JSON web token, such as a participant's."""
_GUARD_TIMEOUT_S = 10.0
_NICE = 10  # gets about a tenth of a contended processor


NOT_YET: Final = (
    OSError,
    TimeoutError,
    httpx.TransportError,
    ServerUnreachableError,
    CredentialsError,  # of another process's server on the same port
)
"""Errors of a probe that say nothing but that a process is not ready."""

_PORTS: Final = range(16384, 32768)
"""Ports that no outgoing connection gets: Linux gives those from 32768 on, macOS from 49152 on."""
_PORTS_OF_A_PROCESS: Final = 64
_next_port = itertools.count(secrets.randbelow(_PORTS_OF_A_PROCESS))


def free_port() -> int:
    """Returns a TCP port on loopback that is free, and stays so until a child listens on it.

    A worker takes seconds until it does. So the port is none of those that connections get, and
    none that this process was given for its last children, or that another one is likely to choose.

    Raises:
        PortInUseError: None is free.
    """
    places = len(_PORTS) // _PORTS_OF_A_PROCESS
    first = _PORTS[os.getpid() % places * _PORTS_OF_A_PROCESS]
    for _ in range(_PORTS_OF_A_PROCESS):
        port = first + next(_next_port) % _PORTS_OF_A_PROCESS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PortInUseError(
        f"no port from {first} to {first + _PORTS_OF_A_PROCESS - 1} is free",
        "stop their listeners (`ss -ltnp`), or restart this process (in a notebook, the kernel)",
    )


def require_free_port(port: int, what: str) -> None:
    """Checks that nothing listens on a loopback port.

    Raises:
        PortInUseError: Another process listens on it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUseError(
                f"port {port} for {what} cannot be used: {error.strerror}",
                f"stop its listener (`ss -ltnp 'sport = :{port}'`) or choose another port",
            ) from None


def tree_of(pid: int) -> list[psutil.Process]:
    """Returns a process and all its descendants; nothing of one that has ended."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def memory_of(pid: int) -> int:
    """Proportional set size of a process and all its descendants, in bytes; 0 of one that ended."""
    total = 0
    for process in tree_of(pid):
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    return total


def new_lines(log: Path, position: int) -> tuple[list[str], int]:
    """Returns the whole lines of a log from a position on, and the position after them."""
    with log.open("rb") as file:
        file.seek(position)
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    return complete.decode(errors="replace").splitlines(), position + len(complete)


class ManagedProcess:
    """One running command of the stack; made by :meth:`start`.

    Attributes:
        pid: Process id of the command; also its process group.
        log_path: File of its standard output and standard error.
        started_s: Monotonic time of the start, in seconds.
    """

    def __init__(
        self,
        name: str,
        guard: subprocess.Popen[bytes],
        pipe: socket.socket,
        pid: int,
        log: Path,
        secrets: Collection[str] = (),
    ) -> None:
        self.name = name
        self.pid = pid
        self.log_path = log
        self.started_s = time.monotonic()
        self._guard = guard
        self._pipe = pipe
        self._ended = asyncio.create_task(_until_ended(guard, pipe), name=f"labvoice-{name}-ended")
        self._secrets = sorted(secrets, key=len, reverse=True)

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_step_s: float = 5.0,
        secrets: Collection[str] = (),
    ) -> ManagedProcess:
        """Starts a command in a process group of its own.

        Args:
            command: Program and arguments; no secrets, since every user sees them.
            log_path: File for standard output and error; its folder is created.
            cwd: Its working directory; None: the parent's.
            stop_step_s: Seconds between the signals of a stop (TERM, TERM, KILL).
            secrets: Texts that :meth:`log_tail` masks.

        Raises:
            ProcessError: The program cannot be started.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            # Not by asyncio, whose transport kills the guard, and that alone, when a task is
            # cancelled or a loop ends: the command would run on with nobody to end it.
            with theirs, log_path.open("ab") as log:
                fd = theirs.fileno()
                guard = subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-I", "-S", _GUARD, str(fd), str(stop_step_s), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=env,
                    cwd=cwd,
                    pass_fds=(fd,),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise ProcessError(f"{name} cannot be started: {error}") from None
        try:
            async with asyncio.timeout(_GUARD_TIMEOUT_S):
                line = await asyncio.get_running_loop().sock_recv(ours, 4096)
        except BaseException as error:
            _hang_up(ours)  # which ends the guard, and the command with it
            ending = asyncio.create_task(_until_ended(guard, ours))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GUARD_TIMEOUT_S + 3 * stop_step_s):
                    await asyncio.shield(ending)  # whoever cancels may do so twice
            if not isinstance(error, TimeoutError):
                raise
            raise StageTimeoutError(
                f"start of {name}", _GUARD_TIMEOUT_S, "its guard process did not answer"
            ) from None
        word, _, rest = line.decode(errors="replace").strip().partition(" ")
        if word != "pid":
            await _until_ended(guard, ours)
            raise ProcessError(f"{name} cannot be started: {rest}", "check that it is installed")
        return cls(name, guard, ours, int(rest), log_path, secrets)

    @property
    def returncode(self) -> int | None:
        """Exit status of the command (128 + signal number when killed); None while it runs."""
        return self._guard.poll()

    @property
    def running(self) -> bool:
        """Whether the command still runs."""
        return self.returncode is None

    def be_nice(self) -> None:
        """Lowers the priority of the process (`nice`); children inherit it."""
        for process in tree_of(self.pid):
            with contextlib.suppress(psutil.Error):
                process.nice(_NICE)

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """Returns the last lines of its log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, os.path.getsize(self.log_path) - 64 * 1024))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        return "\n".join(_TOKEN.sub(_MASK, text).splitlines()[-lines:])

    async def wait(self) -> int:
        """Waits until the command has ended; returns its exit status."""
        return await asyncio.shield(self._ended)

    async def until_ready(
        self,
        probe: Callable[[], Awaitable[bool | None]],
        *,
        timeout_s: float,
        hint: str = "",
        interval_s: float = 0.05,
    ) -> None:
        """Probes the process until it is ready; stops it if it does not become ready.

        Args:
            probe: Returns False as long as it is not ready, or raises :data:`NOT_YET`.
            timeout_s: How long to probe, in seconds.
            hint: For the error.
            interval_s: Probing interval, in seconds.

        Raises:
            ProcessError: The process ended, or was not ready in time; with its last log lines.
        """
        until = time.monotonic() + timeout_s
        try:
            while time.monotonic() < until:
                if not self.running:
                    words = f"ended with status {self.returncode} before it was ready"
                    raise ProcessError(f"{self.name} {words}", hint, self.log_tail())
                with contextlib.suppress(*NOT_YET):
                    async with asyncio.timeout(max(0.1, until - time.monotonic())):
                        if await probe() is not False:
                            return
                await asyncio.sleep(interval_s)
            words = f"was not ready within {timeout_s:g} s"
            raise ProcessError(f"{self.name} {words}", hint, self.log_tail())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops the command and everything in its process group; safe to call twice.

        The end of the pipe makes the guard send TERM, TERM and KILL, a step apart. If the caller is
        cancelled meanwhile, the guard continues by itself.
        """
        _hang_up(self._pipe)
        await self.wait()


def _hang_up(pipe: socket.socket) -> None:
    """Tells a guard that its command is wanted no more; what it says can still be read."""
    with contextlib.suppress(OSError):  # it has ended, or was told before
        pipe.shutdown(socket.SHUT_WR)


async def _until_ended(guard: subprocess.Popen[bytes], pipe: socket.socket) -> int:
    """Waits for a guard's end, which ends the pipe; returns its exit status."""
    loop = asyncio.get_running_loop()
    with pipe:
        while await loop.sock_recv(pipe, 4096):
            pass
    return await asyncio.to_thread(guard.wait)


class Server:
    """A server in a child process; an async context manager that stops it.

    Attributes:
        process: The process; None for an external server.
    """

    process: ManagedProcess | None = None
    _launch: Callable[[], Awaitable[ManagedProcess]] | None = None

    async def restart(self) -> None:
        """Restarts the lab's own server, at the same address.

        Raises:
            UsageError: The server is external.
            ProcessError: It ended or did not become ready.
        """
        if self._launch is None or self.process is None:
            raise UsageError("this lab did not start the server", "restart it on its own host")
        await self.process.stop()
        self.process = await self._launch()

    async def stop(self) -> None:
        """Stops the process, if there is one; safe to call twice."""
        if self.process is not None:
            await self.process.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def http_answers(url: str) -> bool:
    """Whether a local HTTP service answers a GET request with success; a probe."""
    async with http_client(url, timeout=2.0) as client:
        return (await client.get(url)).is_success
