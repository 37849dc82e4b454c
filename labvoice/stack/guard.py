"""Runs one command and ends its whole process group when the parent's pipe closes.

Standard library only: started as `python -I -S guard.py FD STEP_S COMMAND…`. The parent
holds the other end of the pipe FD. It closes when the parent requests the stop, and also when the
parent crashes, is killed, or is a restarted kernel, so that no process is left behind. The
command's process id is written to the pipe as one line.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_group_gone(child: subprocess.Popen[bytes], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        child.poll()
        if not _group_alive(child.pid):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)


def end_group(child: subprocess.Popen[bytes], step_s: float) -> None:
    """TERM, wait, TERM, wait, KILL: one TERM does not stop a LiveKit server with participants."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        if _wait_group_gone(child, step_s):
            return


def _tell(pipe: int, line: str) -> bool:
    """Writes a line to the parent; returns whether the parent still reads."""
    try:
        os.write(pipe, f"{line}\n".encode())
    except OSError:
        return False
    return True


def _wait_end(child: subprocess.Popen[bytes], pipe: int, wake: int) -> None:
    """Waits until the command has ended, or the parent's end of the pipe has."""
    with selectors.DefaultSelector() as selector:  # `select.select` takes no number over 1023
        selector.register(pipe, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while child.poll() is None:
            for key, _ in selector.select():
                try:
                    if not os.read(key.fd, 4096):
                        return
                except OSError:  # it went without having read the line with the pid
                    return


def main() -> int:
    """Starts the command, waits for its end or the pipe's, ends the group; returns the status."""
    pipe, step_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    restored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)

    def reset() -> None:
        for number in restored:
            signal.signal(number, signal.SIG_DFL)

    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=reset
        )
    except OSError as error:
        _tell(pipe, f"error {error.strerror}: {command[0]}")
        return 127
    try:
        # A parent that was cancelled or died meanwhile no longer wants the command.
        if _tell(pipe, f"pid {child.pid}"):
            _wait_end(child, pipe, wake_read)
    finally:
        end_group(child, step_s)
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
