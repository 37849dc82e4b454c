"""Builds parts of the stack: one builder at a time, by steps that tell how long they take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from filelock import AsyncFileLock, Timeout

from labvoice.errors import BuildError
from labvoice.stack.processes import ManagedProcess

_TELL_EVERY_S = 3.0


async def build_step(
    what: str,
    command: Sequence[str | Path],
    log_path: Path,
    hint: str,
    *,
    timeout_s: float,
    tell: Callable[[float], None],
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a command to its end.

    Args:
        what: What it does, for messages.
        log_path: File of its output.
        hint: Of the error when it fails.
        timeout_s: How long it may take, in seconds.
        tell: Called with the elapsed seconds, every few seconds.

    Raises:
        BuildError: It failed or took too long; with its last log lines.
    """
    process = await ManagedProcess.start(what, command, log_path=log_path, env=env, stop_step_s=1.0)
    try:
        while process.running:
            elapsed_s = time.monotonic() - process.started_s
            if elapsed_s > timeout_s:
                raise BuildError(
                    f"{what} took longer than {timeout_s / 60:.0f} minutes; "
                    f"last log lines:\n{process.log_tail()}",
                    f"try again on a less busy machine; the whole log is `{log_path}`",
                )
            tell(elapsed_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(_TELL_EVERY_S):
                    await process.wait()
    finally:
        await process.stop()
    if process.returncode != 0:
        raise BuildError(
            f"{what} ended with status {process.returncode}; last log lines:\n{process.log_tail()}",
            hint,
        )


@asynccontextmanager
async def only_builder(
    path: Path, what: str, timeout_s: float, progress: Callable[[str], None]
) -> AsyncIterator[None]:
    """Holds a lock file during a build; it is released when its holder ends in any way.

    Args:
        path: The lock file; its folder is created.
        what: What is built, for messages.
        timeout_s: How long to wait for another process, in seconds.
        progress: Called once if another process builds it.

    Raises:
        BuildError: Another process still builds it at the timeout.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = AsyncFileLock(path)
    try:
        try:
            await lock.acquire(blocking=False)
        except Timeout:
            progress(f"{what}: another process builds it; waiting")
            await lock.acquire(timeout=timeout_s, poll_interval=0.2)
    except Timeout:
        raise BuildError(
            f"another process has held {path} for {timeout_s / 60:.0f} minutes",
            f"see who holds it with `fuser -v {path}`",
        ) from None
    try:
        yield
    finally:
        await lock.release()
