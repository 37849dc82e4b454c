"""What the server's log tells of workers and jobs, from lines that LiveKit 1.13.5 wrote."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from labvoice.stack.livekit.log import LiveKitLog, parse

AT = "2026-11-22T15:54:15.193Z"
AT_S = datetime(2026, 11, 22, 15, 54, 15, 193000, UTC).timestamp()


def line(message: str, *, logger: str = "livekit.agents", at: str = AT, **fields: Any) -> str:
    place = "service/agentservice.go:303"
    return f"{at}\tINFO\t{logger}\t{place}\t{message}\t{json.dumps(fields)}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "livekit-server.log"


def write(path: Path, *lines: str, end: str = "\n") -> None:
    with path.open("a", encoding="utf-8") as log:
        log.write("\n".join(lines) + end)


def test_a_line_of_interest_is_read_with_its_instant() -> None:
    """Time, words and fields come out; the words alone print."""
    event = parse(line("worker registered", agentName="a", workerID="AW_1"))
    assert event is not None
    assert event.at_s == pytest.approx(AT_S)
    assert event.fields == {"agentName": "a", "workerID": "AW_1"}
    assert str(event) == "worker registered"


@pytest.mark.parametrize(
    "text",
    ["", "starting LiveKit server", line("API RoomService.ListRooms"), line("job ended")[:-1]],
)
def test_other_lines_are_passed_over(text: str) -> None:
    """Lines on other things, and lines that are cut off, say nothing."""
    assert parse(text) is None


def test_workers_come_and_go(path: Path) -> None:
    """A closing worker is registered no more; half a line waits for its other half."""
    log = LiveKitLog(path)
    assert log.workers() == {}
    write(path, line("worker registered", agentName="a", workerID="AW_1"))
    write(path, line("worker registered", agentName="b", workerID="AW_2"), end="")
    assert log.workers() == {"AW_1": "a"}
    write(path, "")
    assert log.workers() == {"AW_1": "a", "AW_2": "b"}
    write(path, line("closing worker", agentName="a", workerID="AW_1"))
    assert log.workers() == {"AW_2": "b"}


def test_a_lost_request_is_found_by_room_name_and_time(path: Path) -> None:
    """Another room's loss, another agent's, and an older one are not this dispatch's."""
    message = "not dispatching agent job since no worker is available"
    write(path, line(message, agentName="a", jobType="JT_ROOM", room="r"))
    write(path, line(message, agentName="a", jobType="JT_PARTICIPANT", room="caller-only"))
    log = LiveKitLog(path)
    assert log.lost("caller-only", "a", AT_S - 1) is None
    assert log.lost("r", "a", AT_S - 1) is not None
    assert log.lost("r", "a", AT_S + 1) is None
    assert log.lost("other", "a", AT_S - 1) is None
    assert log.lost("r", "other", AT_S - 1) is None


def test_a_job_is_followed_to_its_end(path: Path) -> None:
    """An assigned job names its worker, and later how it ended."""
    log = LiveKitLog(path)
    write(
        path,
        line(
            "assigned job to worker",
            jobID="AJ_1",
            agentName="a",
            jobType="JT_ROOM",
            room="r",
            workerID="AW_1",
        ),
    )
    job = log.job("r", "a", AT_S - 1)
    assert job is not None
    assert (job.job_id, job.worker_id, job.ended) == ("AJ_1", "AW_1", "")
    write(path, line("job ended", jobID="AJ_1", status="JS_FAILED", error="boom"))
    job = log.job("r", "a", AT_S - 1)
    assert job is not None
    assert job.ended == "JS_FAILED boom"


def test_failed_requests_are_told_in_the_servers_words(path: Path) -> None:
    """A request that nobody answered shows its reason."""
    write(
        path,
        line(
            "failed to send job request",
            error="no servers available (received 1 responses)",
            agentName="a",
        ),
    )
    (event,) = LiveKitLog(path).failed_requests("a", AT_S - 1)
    assert str(event).endswith("no servers available (received 1 responses)")


def test_a_server_that_was_killed_keeps_no_workers(path: Path) -> None:
    """What was registered before a restart that nobody announced is not registered after it."""
    log = LiveKitLog(path)
    write(path, line("worker registered", agentName="before", workerID="AW_1"))
    assert log.workers() == {"AW_1": "before"}
    write(
        path,
        line("starting LiveKit server", logger="livekit", portHttp=7880),
        line("worker registered", agentName="after", workerID="AW_2"),
    )
    assert log.workers() == {"AW_2": "after"}
