"""A circuit breaker: a server that fails is asked ever more seldom, and one request at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from labvoice.errors import CredentialsError, LabvoiceError, ServerUnreachableError

Circuit = Literal["closed", "open", "half-open"]


class CircuitOpenError(LabvoiceError):
    """No attempt is made now."""


class CircuitBreaker:
    """Keeps a failing server from being asked too often.

    Each failure puts the next attempt off, twice as long as the one before, with jitter. While
    failures last, one attempt at a time is made.

    Args:
        first_s: Longest pause after the first failure, in seconds.
        longest_s: Longest pause of all, in seconds.
        threshold: Failures in a row at which the circuit counts as open.
    """

    def __init__(
        self, *, first_s: float = 0.5, longest_s: float = 30.0, threshold: int = 3
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._threshold = threshold
        self._failures = 0
        self._retry_at_s = 0.0
        self._one_at_a_time = asyncio.Lock()

    @property
    def state(self) -> Circuit:
        """Whether attempts are allowed, paused, or tried one at a time."""
        if self._failures < self._threshold:
            return "closed"
        return "open" if self.is_open else "half-open"

    @property
    def is_open(self) -> bool:
        """Whether the next attempt is still to be waited for."""
        return time.monotonic() < self._retry_at_s

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Lets an attempt through, and learns from a `LabvoiceError` out of it.

        Raises:
            CircuitOpenError: The circuit is open; also when the attempt that this one waited
                for failed.
        """
        if self._failures:
            async with self._one_at_a_time:
                if self.is_open:
                    raise CircuitOpenError("the server has just failed")
                async with self._watched():
                    yield
        else:
            async with self._watched():
                yield

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        try:
            yield
        except (ServerUnreachableError, CredentialsError):
            self._failures += 1
            pause_s = min(self._longest_s, self._first_s * 2 ** min(self._failures - 1, 16))
            self._retry_at_s = time.monotonic() + pause_s * random.uniform(0.5, 1.0)  # noqa: S311
            raise
        else:
            self._failures = 0
