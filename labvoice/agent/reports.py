"""Event lines in a worker's log, read by the stack that started it."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

from labvoice.protocol.metadata import EVENT_PREFIX

if TYPE_CHECKING:
    from livekit.agents import JobContext

logger = logging.getLogger("labvoice.agent")


def report_event(event: str, **facts: Any) -> None:
    """Writes one event line that the stack reads: registered, accepted, started, ended."""
    logger.info("%s%s", EVENT_PREFIX, json.dumps({"event": event, "at_s": time.time(), **facts}))


def report_end(context: JobContext, reason: str) -> None:
    """Writes that a job has ended, and why."""
    job = {"job_id": context.job.id, "dispatch_id": context.job.dispatch_id}
    report_event("ended", room=context.job.room.name, reason=reason, **job)
