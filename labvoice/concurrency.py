"""Waiting: for a condition, for the end of tasks or of a connection, for a short command."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

_T = TypeVar("_T")


@overload
async def poll(probe: Callable[[], Awaitable[_T]], timeout_s: float, every_s: float) -> _T: ...
@overload
async def poll(probe: Callable[[], bool], timeout_s: float, every_s: float) -> bool: ...
async def poll(probe: Callable[[], Any], timeout_s: float, every_s: float) -> Any:
    """Asks until the answer is true or the time is up; returns the last answer.

    Args:
        probe: Is asked at least once; may be asynchronous.
        timeout_s: How long, in seconds.
        every_s: Pause between two questions, in seconds.
    """
    until_s = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer or time.monotonic() > until_s:
            return answer
        await asyncio.sleep(every_s)


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks, and waits until they have ended, however they do."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def together(*work: Coroutine[Any, Any, _T]) -> list[_T]:
    """Runs all at once and returns their results; if one fails, cancels the others and raises."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel(*tasks)


async def both_ways(there: Coroutine[Any, Any, None], back: Coroutine[Any, Any, None]) -> None:
    """Runs what copies each direction of a connection until one of them ends; cancels the other.

    Args:
        there: Copies one direction; its errors end the connection and are not raised.
        back: Copies the other one.
    """
    ways = [asyncio.create_task(there), asyncio.create_task(back)]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(*ways)


def run(
    command: Sequence[str | Path],
    timeout_s: float,
    *,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a short command to its end; blocks.

    One that cannot be started, or does not end in time, has failed: why stands in `stderr`.

    Args:
        command: Program and arguments.
        timeout_s: How long it may take, in seconds.
        env: Its whole environment; None: this process's.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            env=env,
            check=False,
        )
    except OSError as error:
        why = str(error)
    except subprocess.TimeoutExpired:
        why = f"it did not end within {timeout_s:g} s"
    return subprocess.CompletedProcess(command, 127, "", why)
