"""A circuit breaker: requests to a failing server back off, one at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from labvoice.errors import CredentialsError, LabvoiceError, ServerUnreachableError


class CircuitOpenError(LabvoiceError):
    """The circuit is open: no attempt is made now."""


class CircuitBreaker:
    """Limits requests to a failing server.

    Each failure doubles the pause before the next attempt, with jitter. While failures last,
    attempts are made one at a time.

    Args:
        first_s: Longest pause after the first failure, in seconds.
        longest_s: Upper bound of the pause, in seconds.
    """

    def __init__(self, *, first_s: float = 0.5, longest_s: float = 30.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0
        self._retry_at_s = 0.0
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the next attempt must wait."""
        return time.monotonic() < self._retry_at_s

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Context manager of one attempt; a `LabvoiceError` from it counts as a failure.

        Raises:
            CircuitOpenError: The circuit is open, or the attempt that this one waited for failed.
        """
        async with self._one_at_a_time if self._failures else nullcontext():
            if self.is_open:
                raise CircuitOpenError("the server has just failed")
            try:
                yield
            except (ServerUnreachableError, CredentialsError):
                self._failures += 1
                pause_s = min(self._longest_s, self._first_s * 2 ** min(self._failures - 1, 16))
                jitter = random.uniform(0.5, 1.0)  # noqa: S311
                self._retry_at_s = time.monotonic() + pause_s * jitter
                raise
            self._failures = 0
