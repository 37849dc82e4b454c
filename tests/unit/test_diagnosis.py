"""One cause for each kind of evidence."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from livekit.protocol.agent import JobState, JobStatus

from labvoice.dispatch.diagnosis import diagnose
from labvoice.errors import DispatchError
from labvoice.stack.workers import WorkerStatus


def cause(workers: Sequence[WorkerStatus] | None, job: JobState | None = None) -> DispatchError:
    return diagnose(
        agent_name="letta-voice-agent",
        room="r",
        dispatch_ids=["AD_1"],
        job=job,
        timeout_s=5,
        workers=workers,
    )


IDLE = WorkerStatus("AW_1", "letta-voice-agent", 0, 0.0)
FULL = WorkerStatus("AW_1", "letta-voice-agent", 4, 1.0)
OTHER = WorkerStatus("AW_2", "letta-voice-agnet", 0, 0.0)
REFUSING = WorkerStatus("AW_1", "letta-voice-agent", 0, 0.0, {"AD_1": "no such Letta agent"})


@pytest.mark.parametrize(
    ("workers", "job", "outcome", "words"),
    [
        (None, None, "no_worker", "no worker took"),
        ([], None, "no_worker", "no worker is registered"),
        ([OTHER], None, "name_mismatch", "letta-voice-agnet"),
        ([FULL], None, "worker_full", "4 jobs, load 1.00"),
        ([REFUSING], None, "rejected", "no such Letta agent"),
        ([IDLE], None, "no_worker", "registered and not full"),
        ([IDLE], JobState(status=JobStatus.JS_RUNNING), "join_timeout", "took the job"),
        ([IDLE], JobState(status=JobStatus.JS_FAILED, error="boom"), "agent_lost", "boom"),
    ],
)
def test_evidence_names_the_cause(
    workers: Sequence[WorkerStatus] | None, job: JobState | None, outcome: str, words: str
) -> None:
    """Each kind of evidence leads to its outcome, in words that show what was seen."""
    error = cause(workers, job)
    assert error.outcome == outcome
    assert words in error.observed
    assert error.hint


def test_a_near_name_is_suggested() -> None:
    """A name that is nearly right is offered."""
    assert "did you mean 'letta-voice-agnet'?" in cause([OTHER]).hint


def test_one_worker_with_room_makes_the_pool_not_full() -> None:
    """The pool is full only when every worker of the name is."""
    assert cause([FULL, IDLE]).outcome == "no_worker"
