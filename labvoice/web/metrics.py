"""The service's metrics for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Awaitable
from math import nan
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from labvoice.errors import LabvoiceError
from labvoice.protocol.vocabulary import OUTCOMES
from labvoice.web.backend import Backend
from labvoice.web.models import Check

_STAGE_BUCKETS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20,
)  # fmt: skip
_HTTP_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
_LOOK_LIFETIME_S: Final = 2.0
_ASK_TIMEOUT_S: Final = 2.0
"""Timeout of a request to a part that answered its check; with the checks' own 3 s shorter than a
scrape's."""

_T = TypeVar("_T")

disable_created_metrics()  # type: ignore[no-untyped-call]  # one unused series for each counter


class Metrics:
    """The service's metrics, in a registry of its own.

    Attributes:
        dispatches: Dispatches by outcome.
        stages: Durations by stage, from dispatches made here and calls reported by pages.
        requests: Requests by method, route and status.
        request_seconds: Their durations by route.
        tokens: Access tokens issued.
        refused: Requests refused, by the code of their error.
        webhooks: Verified webhooks, by event.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"labvoice_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"labvoice_{name}", about, labels, registry=registry)

        self.dispatches = counter("dispatches", "Dispatches by outcome.", "outcome")
        for outcome in OUTCOMES:
            self.dispatches.labels(outcome)  # a missing series has no rate
        self.stages = Histogram(
            "labvoice_stage_duration_seconds",
            "Durations by stage: of dispatches made here, and of calls that pages report.",
            ["stage"],
            buckets=_STAGE_BUCKETS_S,
            registry=registry,
        )
        self.requests = counter("http_requests", "HTTP requests.", "method", "route", "status")
        self.request_seconds = Histogram(
            "labvoice_http_request_duration_seconds",
            "Durations of HTTP requests.",
            ["route"],
            buckets=_HTTP_BUCKETS_S,
            registry=registry,
        )
        self.tokens = counter("tokens_issued", "Access tokens issued.")
        self.refused = counter("refused_requests", "Requests refused, by error code.", "code")
        self.webhooks = counter("webhooks", "Verified LiveKit webhooks, by event.", "event")
        self._failovers = counter("failovers", "Agents lost and replaced.")
        self._backlog = gauge(
            "memory_backlog_turns",
            "Turns that wait to be written to Letta; NaN while they cannot be counted.",
        )
        self._rooms = gauge("rooms", "Rooms of the LiveKit server; NaN while it does not tell.")
        self._callers = gauge(
            "callers", "Participants that are no agents; NaN while LiveKit does not tell."
        )
        self._agents = gauge("agents", "Agents in rooms, by state.", "state")
        self._workers = gauge("workers", "Workers that answer, by agent name.", "agent_name")
        self._jobs = gauge("worker_active_jobs", "Jobs that a worker runs.", "worker_id")
        self._load = gauge("worker_load_ratio", "Load of a worker, 0 to 1.", "worker_id")
        self._ready = gauge("dependency_up", "Whether a dependency works.", "dependency")
        self._counted = 0
        self._looked_s = float("-inf")
        self._looking = asyncio.Lock()
        self._checks: list[Check] = []

    async def checks(self, backend: Backend) -> list[Check]:
        """Returns the state of every dependency, at most two seconds old."""
        async with self._looking:
            if time.monotonic() - self._looked_s > _LOOK_LIFETIME_S:
                await self._look(backend)
                self._looked_s = time.monotonic()
            return self._checks

    async def scrape(self, backend: Backend) -> bytes:
        """Returns the text of a scrape; the backend's figures are at most two seconds old."""
        await self.checks(backend)
        return generate_latest(self.registry)

    async def _look(self, backend: Backend) -> None:
        # Figures that cannot be read are unknown, not zero; see `labvoice_dependency_up`.
        checks, workers = await asyncio.gather(
            backend.checks(), _within(backend.workers(), _ASK_TIMEOUT_S)
        )
        self._checks = checks
        self._ready.clear()
        for check in checks:
            self._ready.labels(check.name).set(check.ok)
        for gauge in (self._workers, self._jobs, self._load, self._agents):
            gauge.clear()
        for name, number in Tally(worker.agent_name for worker in workers or []).items():
            self._workers.labels(name).set(number)
        for worker in workers or []:
            self._jobs.labels(worker.worker_id).set(worker.active_jobs)
            self._load.labels(worker.worker_id).set(worker.load)
        reachable = all(check.ok for check in checks if check.name == "livekit")
        asking = asyncio.create_task(_within(backend.counts(), _ASK_TIMEOUT_S))
        rooms = await _within(backend.rooms(), _ASK_TIMEOUT_S) if reachable else None
        counts = await asking
        people = [person for room in rooms or [] for person in room.participants]
        states = Tally(person.state or "unknown" for person in people if person.kind == "agent")
        if rooms is not None:
            for state in {"initializing", "listening", "thinking", "speaking", *states}:
                self._agents.labels(state).set(states[state])
        self._rooms.set(nan if rooms is None else len(rooms))
        self._callers.set(
            nan if rooms is None else sum(person.kind != "agent" for person in people)
        )
        if counts is not None:
            self._failovers.inc(counts.failovers - self._counted)
            self._counted = counts.failovers
        self._backlog.set(nan if counts is None else counts.memory_backlog or 0)


async def _within(asked: Awaitable[_T], timeout_s: float) -> _T | None:
    """Returns the result; None on a timeout or an error."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asked
    except (TimeoutError, LabvoiceError):
        return None
