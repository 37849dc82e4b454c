"""Event log of a lab, shared by worker pool and failover."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, Final

import pandas as pd

logger = logging.getLogger("labvoice.events")

_KEPT: Final = 10_000
_COLUMNS: Final = ("at", "event", "worker", "room", "detail")


class EventLog:
    """The last 10 000 events; each is also a record of the logger `labvoice.events`."""

    def __init__(self) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=_KEPT)

    def add(
        self,
        event: str,
        *,
        worker: str = "",
        room: str = "",
        detail: str = "",
        at_s: float | None = None,
        job_id: str = "",
        dispatch_id: str = "",
    ) -> None:
        """Adds an event.

        Args:
            event: What happened, in one word such as `started`.
            at_s: Wall-clock seconds; None: now.
            job_id: Id of the event's job; for the log record only.
            dispatch_id: Id of its dispatch; for the log record only.
        """
        at = time.time() if at_s is None else at_s
        self._rows.append(
            {"at": at, "event": event, "worker": worker, "room": room, "detail": detail}
        )
        told = {**self._rows[-1], "job_id": job_id, "dispatch_id": dispatch_id}
        facts = {name: told[name] for name in told if told[name] and name not in ("at", "event")}
        logger.info(event, extra={"facts": facts})

    def frame(self) -> pd.DataFrame:
        """Returns a row for each event: `at` (UTC), `event`, `worker`, `room`, `detail`."""
        frame = pd.DataFrame(list(self._rows), columns=list(_COLUMNS))
        frame["at"] = pd.to_datetime(frame["at"], unit="s", utc=True)
        return frame.sort_values("at", kind="stable", ignore_index=True)
