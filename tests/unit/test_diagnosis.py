"""One cause for each kind of evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from livekit.protocol.agent import JobState, JobStatus

from labvoice.dispatch.diagnosis import ServerEvidence, diagnose
from labvoice.errors import DispatchError
from labvoice.stack.livekit.log import LoggedJob
from labvoice.stack.workers.worker import Ending, WorkerStatus


def cause(
    workers: Sequence[WorkerStatus] | None,
    job: JobState | None = None,
    server: ServerEvidence | None = None,
) -> DispatchError:
    return diagnose(
        agent_name="letta-voice-agent",
        room="r",
        dispatch_ids=["AD_1"],
        job=job,
        timeout_s=5,
        workers=workers,
        server=server,
    )


IDLE = WorkerStatus("AW_1", "letta-voice-agent", 0, 0.0)
FULL = WorkerStatus("AW_1", "letta-voice-agent", 4, 1.0, load_threshold=0.99)
OTHER = WorkerStatus("AW_2", "letta-voice-agnet", 0, 0.0)
REFUSING = WorkerStatus("AW_1", "letta-voice-agent", 0, 0.0, {"AD_1": "no such Letta agent"})


@pytest.mark.parametrize(
    ("workers", "job", "outcome", "words"),
    [
        (None, None, "no_worker", "no worker took"),
        ([], None, "no_worker", "this lab has no worker, and no other one took"),
        ([OTHER], None, "name_mismatch", "letta-voice-agnet"),
        ([FULL], None, "worker_full", "4 jobs, load 1.00 of 0.99"),
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


NAME = "letta-voice-agent"
LEFT = WorkerStatus(
    "AW_1", NAME, 0, 0.0, endings={"AD_1": Ending("ValueError: no such voice", joined=True)}
)
BROKEN = WorkerStatus("AW_1", NAME, 0, 0.0, failure="weights are gone\n\nlast log lines:\nERROR")


@pytest.mark.parametrize(
    ("workers", "server", "outcome", "words"),
    [
        ([], ServerEvidence(["elsewhere"]), "name_mismatch", "'elsewhere'"),
        ([], ServerEvidence(), "no_worker", "no worker is registered"),
        (None, ServerEvidence([NAME], lost="no servers available"), "worker_full", "no servers"),
        ([IDLE], ServerEvidence([NAME], LoggedJob("AJ_1", "AW_1")), "join_timeout", "took the job"),
        (
            [IDLE],
            ServerEvidence([NAME], LoggedJob("AJ_1", "AW_1", "JS_FAILED boom")),
            "agent_lost",
            "JS_FAILED boom",
        ),
        ([LEFT], None, "agent_lost", "joined room 'r' and left: ValueError: no such voice"),
        ([BROKEN], None, "join_timeout", "weights are gone"),
    ],
)
def test_more_evidence_names_the_cause_more_closely(
    workers: Sequence[WorkerStatus] | None,
    server: ServerEvidence | None,
    outcome: str,
    words: str,
) -> None:
    """The server's log, a job that left and a process that did not start have their words."""
    error = cause(workers, server=server)
    assert error.outcome == outcome
    assert words in error.observed


def test_a_refusal_counts_more_than_the_job_that_it_ended() -> None:
    """A refused job shows as one that ended well; the refusal is the cause."""
    assert cause([REFUSING], JobState(status=JobStatus.JS_SUCCESS)).outcome == "rejected"


def test_the_end_of_another_call_is_no_cause() -> None:
    """What an earlier agent of the room died of says nothing of this dispatch: the pool is full."""
    full = replace(FULL, endings={"AD_0": Ending("nobody was in the room for 60 s", joined=True)})
    assert cause([full]).outcome == "worker_full"


def test_a_job_that_ended_before_it_joined_is_told_from_one_that_left() -> None:
    """An entrypoint that raises at once never joined."""
    failed = replace(IDLE, endings={"AD_1": Ending("ValueError: no such voice", joined=False)})
    error = cause([failed])
    assert error.outcome == "agent_lost"
    assert "ended before the agent stayed in the room: ValueError" in error.observed


@pytest.mark.parametrize("workers", [[], [OTHER], [FULL]])
def test_of_a_strangers_server_only_our_workers_are_spoken_of(
    workers: Sequence[WorkerStatus],
) -> None:
    """Without the server's log nothing is said of workers that run elsewhere; with it, of all."""
    ours = ("this lab", "this lab's workers", "worker of this lab")
    assert any(words in cause(workers).observed for words in ours)
    names = [worker.agent_name for worker in workers]
    assert "this lab" not in cause(workers, server=ServerEvidence(names)).observed
