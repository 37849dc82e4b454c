"""Guarded child processes: what is started is stopped, whatever happens to whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from labvoice.errors import PortInUseError, ProcessError
from labvoice.stack import guard as guard_module
from labvoice.stack.processes import ManagedProcess, free_port, memory_of, require_free_port

# A command with a child, both deaf to TERM; it tells both process ids.
_STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])  # inherits that it ignores TERM
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""

# A parent that starts the stubborn command as labvoice does, tells the guard's command and waits.
_PARENT = """
import asyncio, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in the background
from labvoice.stack.processes import ManagedProcess
async def main():
    log = Path(sys.argv[1])
    command = [sys.executable, "-c", sys.argv[2]]
    process = await ManagedProcess.start("victim", command, log_path=log, stop_step_s=0.2)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.05)


def _pids(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split()] if log.exists() else []


def _all_gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.smoke
async def test_stop_leaves_nothing(tmp_path: Path) -> None:
    """A stopped command is gone, and stopping it twice is harmless."""
    process = await ManagedProcess.start("sleeper", ["sleep", "600"], log_path=tmp_path / "log")
    assert process.running
    assert memory_of(process.pid) > 0
    await process.stop()
    await process.stop()
    assert process.returncode == 128 + signal.SIGTERM
    assert not psutil.pid_exists(process.pid)


async def test_group_that_ignores_term_is_killed(tmp_path: Path) -> None:
    """A command and its child that both ignore TERM are gone after a stop."""
    log = tmp_path / "log"
    process = await ManagedProcess.start(
        "stubborn", [sys.executable, "-c", _STUBBORN], log_path=log, stop_step_s=0.2
    )
    await _until(lambda: len(_pids(log)) == 2)
    pids = _pids(log)
    await process.stop()
    assert process.returncode == 128 + signal.SIGKILL
    await _until(lambda: _all_gone(pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_end_of_the_parent_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """However the parent ends, the command and its child end too, even if they ignore TERM."""
    log = tmp_path / "log"
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PARENT,
        str(log),
        _STUBBORN,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await _until(lambda: len(_pids(log)) == 2)
    parent.send_signal(number)
    await parent.wait()
    await _until(lambda: _all_gone(_pids(log)))


@pytest.mark.parametrize("told", [False, True], ids=["before the pid", "with the pid unread"])
@pytest.mark.parametrize("number", [None, 1500], ids=["", "of 1500 open files"])
def test_a_parent_that_goes_while_the_command_starts_leaves_nothing(
    tmp_path: Path, told: bool, number: int | None
) -> None:
    """A pipe that is closed before the pid was read ends the command, whatever its number."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if number is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(2048, limits[0]), limits[1]))
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    if number is not None:
        os.dup2(fd, number)
        os.close(fd)
        fd = number
    mark = f"import time; time.sleep(60)  # {tmp_path}"
    command = [sys.executable, "-I", "-S", guard_module.__file__, str(fd), "1"]
    if not told:
        ours.close()
    try:
        with subprocess.Popen(
            [*command, sys.executable, "-c", mark], pass_fds=(fd,), stderr=subprocess.PIPE
        ) as guard:
            if told:
                assert ours.recv(100, socket.MSG_PEEK).startswith(b"pid ")
                ours.close()
            _, complaint = guard.communicate(timeout=30)
    finally:
        os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert complaint == b""
    assert not _running(mark)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running")  # left so on purpose
async def test_the_end_of_the_loop_leaves_nothing(tmp_path: Path) -> None:
    """Tasks that are cancelled with their loop, as on Ctrl-C, end the commands they started."""
    mark = f"{_STUBBORN}  # {tmp_path}"
    log = tmp_path / "log"

    async def main() -> None:
        for _ in range(3):
            command = [sys.executable, "-c", mark]
            await ManagedProcess.start("victim", command, log_path=log, stop_step_s=0.2)
        await asyncio.create_task(
            ManagedProcess.start("victim", command, log_path=log, stop_step_s=0.2)
        )
        await _until(lambda: len(_pids(log)) == 8)

    await asyncio.to_thread(asyncio.run, main())
    await _until(lambda: _all_gone(_pids(log)))
    await _until(lambda: not _running(mark))


@pytest.mark.parametrize("after_s", [0, 0.005, 0.02, 0.04, 0.08])
async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    """Whether the guard is being made, or makes the command, or has made it."""
    mark = f"import time; time.sleep(60)  # {tmp_path}"
    start = asyncio.create_task(
        ManagedProcess.start("brief", [sys.executable, "-c", mark], log_path=tmp_path / "log")
    )
    done, _ = await asyncio.wait([start], timeout=after_s)
    if done:
        await start.result().stop()
    else:
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
    assert not _running(mark)


async def test_failure_shows_the_last_log_lines(tmp_path: Path) -> None:
    """A command that ends before it is ready is reported with its status and last words."""
    script = (
        "import sys; print('first'); print('the disk is on fire', file=sys.stderr); sys.exit(3)"
    )
    process = await ManagedProcess.start(
        "fire", [sys.executable, "-c", script], log_path=tmp_path / "log"
    )

    async def never() -> bool:
        return False

    with pytest.raises(ProcessError, match="fire ended with status 3") as caught:
        await process.until_ready(never, timeout_s=20)
    assert "the disk is on fire" in caught.value.log_tail
    assert "the disk is on fire" in str(caught.value)


async def test_never_ready_ends_in_time_with_the_log(tmp_path: Path) -> None:
    """A command that never becomes ready is stopped, and the error shows its log."""
    script = "import time; print('still thinking', flush=True); time.sleep(600)"
    log = tmp_path / "log"
    process = await ManagedProcess.start("thinker", [sys.executable, "-c", script], log_path=log)
    await _until(lambda: log.read_text() != "")

    async def refused() -> bool:
        raise ConnectionRefusedError

    with pytest.raises(ProcessError, match=r"thinker was not ready within 0\.2 s") as caught:
        await process.until_ready(refused, timeout_s=0.2)
    assert not process.running
    assert caught.value.log_tail == "still thinking"


async def test_missing_program_is_named(tmp_path: Path) -> None:
    """A program that is not there ends in one sentence with its name, and nothing runs."""
    before = len(psutil.Process(os.getpid()).children())
    with pytest.raises(ProcessError, match="No such file or directory: no-such-program"):
        await ManagedProcess.start("ghost", ["no-such-program"], log_path=tmp_path / "log")
    assert len(psutil.Process(os.getpid()).children()) == before


def test_a_free_port_is_nobody_elses() -> None:
    """It is not one that connections get, not one in use, and not one given shortly before."""
    given = [free_port() for _ in range(32)]
    assert len(set(given)) == 32
    assert max(given) < 32768
    with contextlib.ExitStack() as held:
        for port in given:
            held.enter_context(socket.socket()).bind(("127.0.0.1", port))
        assert not {free_port() for _ in range(64)} & set(given)


async def test_taken_port_is_refused() -> None:
    """A port that somebody listens on is refused with a hint; a free one is not."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} for the test") as caught:
            require_free_port(port, "the test")
        assert "choose another port" in caught.value.hint
    require_free_port(free_port(), "the test")


def _running(argument: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if argument in (process.info["cmdline"] or [])
    ]
