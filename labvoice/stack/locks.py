"""A lock between processes: one builder at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from filelock import AsyncFileLock, Timeout

from labvoice.errors import BuildError


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
