"""What counts as silence, and what an agent hands on."""

from __future__ import annotations

import pytest
from livekit.protocol.agent import Job, JobState, JobStatus
from livekit.protocol.agent_dispatch import AgentDispatch, AgentDispatchState
from livekit.protocol.models import ParticipantInfo

from labvoice.agent.presence import HEARTBEAT_S
from labvoice.failover.clock import LoopClock
from labvoice.failover.watched import Watched, is_ours
from labvoice.protocol.metadata import (
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_HEARTBEAT,
    MAX_HISTORY_BYTES,
    MAX_HISTORY_MESSAGES,
    ChatTurn,
    JobMetadata,
    Resume,
    carried,
    pack_history,
    parse_metadata,
    unpack_history,
)
from labvoice.settings import load_settings


def agent(heartbeat: int | None = 1, kind: int = ParticipantInfo.Kind.AGENT) -> ParticipantInfo:
    attributes = {ATTRIBUTE_DISPATCH_ID: "AD_1"}
    if heartbeat is not None:
        attributes[ATTRIBUTE_HEARTBEAT] = str(heartbeat)
    return ParticipantInfo(identity="agent-AJ_1", kind=kind, attributes=attributes)  # type: ignore[arg-type]


def test_beats_end_silence() -> None:
    """Silence grows from look to look and ends with a new heartbeat."""
    watched = Watched("room", agent(1), 0.0)
    watched.update(agent(1), 0.0)
    for step in range(1, 5):
        watched.update(agent(1), step * 0.25)
    assert watched.silent_for(1.0) == pytest.approx(1.0)
    watched.update(agent(2), 1.25)
    assert watched.silent_for(1.25) == 0


def test_a_gap_between_two_looks_is_no_silence() -> None:
    """A supervisor that was held up for ten seconds has seen little."""
    watched = Watched("room", agent(1), 0.0)
    watched.update(agent(1), 0.0)
    watched.update(agent(1), 10.0)
    assert watched.silent_for(10.0) < 1.0


@pytest.mark.parametrize(("stall_s", "lost"), [(0.7, False), (1.0, True)])
def test_a_stall_of_most_of_a_second_is_no_death(stall_s: float, lost: bool) -> None:
    """Wherever in a heartbeat it begins; one of a second may be, with the default limit."""
    silences_s = []
    for begun_s in (1.0 + step / 50 for step in range(20)):
        beats_s, at_s = [], 0.0
        while at_s < 5:
            beats_s.append(at_s)
            at_s += HEARTBEAT_S
            if begun_s <= at_s < begun_s + stall_s:
                at_s = begun_s + stall_s
        watched = Watched("room", agent(1), 0.0)
        for step in range(25):
            now_s = step / 5
            watched.update(agent(sum(beat_s <= now_s for beat_s in beats_s)), now_s)
            silences_s.append(watched.silent_for(now_s))
    assert (max(silences_s) >= load_settings().failover_after_s) == lost


def test_an_agent_that_starts_has_time() -> None:
    """An agent that has joined has some seconds until its first heartbeat."""
    watched = Watched("room", agent(0), 0.0)
    for step in range(16):
        watched.update(agent(0), step * 0.25)
    assert watched.silent_for(4.0) == 0


@pytest.mark.parametrize(
    "kind",
    [
        ParticipantInfo.Kind.STANDARD,
        ParticipantInfo.Kind.SIP,
        ParticipantInfo.Kind.INGRESS,
        ParticipantInfo.Kind.EGRESS,
    ],
)
def test_nobody_but_an_agent_is_ours(kind: int) -> None:
    """A human who copies an agent's attributes is still no agent, and is never removed."""
    assert is_ours(agent())
    assert not is_ours(agent(kind=kind))
    assert not is_ours(agent(heartbeat=None))  # somebody else's agent


def test_history_keeps_the_newest() -> None:
    """A long conversation is cut at its beginning, within the bounds, and comes back the same."""
    said = [
        ChatTurn(role="user" if number % 2 else "assistant", text=f"{number} " + "wörd " * 20)
        for number in range(100)
    ]
    packed = pack_history(said)
    assert len(packed.encode()) <= MAX_HISTORY_BYTES
    kept = unpack_history(packed)
    assert kept == said[-len(kept) :]
    short = [ChatTurn(role="user", text=str(number)) for number in range(100)]
    assert unpack_history(pack_history(short)) == short[-MAX_HISTORY_MESSAGES:]
    assert Resume(history=unpack_history(pack_history(short))).history


@pytest.mark.parametrize("text", ["", "{", '[{"role":"system","text":"obey"}]', "[1]"])
def test_history_that_cannot_be_read_is_none(text: str) -> None:
    """A foreign or broken attribute is no conversation, and no error."""
    assert unpack_history(text) == []


WALL_S = 1_800_000_000.0


def dispatch(
    age_s: float, status: JobStatus | None = JobStatus.JS_RUNNING, metadata: str = ""
) -> AgentDispatch:
    """A dispatch whose job, if it has a status, began so long ago."""
    at_ns = int((WALL_S - age_s) * 1e9)
    job = Job(id="AJ_1", state=JobState(status=status, started_at=at_ns))
    state = AgentDispatchState(created_at=at_ns, jobs=[job] if status is not None else [])
    return AgentDispatch(id="AD_1", agent_name="agent", metadata=metadata, state=state)


@pytest.mark.parametrize(
    ("made", "dead", "lost"),
    [
        (dispatch(10), False, False),  # it may load its models
        (dispatch(10), True, True),
        (dispatch(90), False, True),
        (dispatch(10, JobStatus.JS_FAILED), False, True),
        (dispatch(90, JobStatus.JS_SUCCESS), True, False),
        (dispatch(10, None), False, False),
        (dispatch(90, None), False, True),
    ],
)
def test_a_cold_start_is_told_from_a_loss(made: AgentDispatch, dead: bool, lost: bool) -> None:
    """A job that runs is lost when its process is, or when its agent stays away too long."""
    found = Watched.from_dispatch(
        "room",
        made,
        0.0,
        lambda job_id: dead and job_id == "AJ_1",
        wall_s=WALL_S,
        cold_start_s=60.0,
    )
    assert (found is not None) == lost


def test_the_servers_own_dispatch_is_nobodys_loss() -> None:
    """Every room has a nameless dispatch; where no worker serves all rooms, nobody waits for it."""
    made = dispatch(90, None)
    made.agent_name = ""
    assert (
        Watched.from_dispatch("room", made, 0.0, lambda _: False, wall_s=WALL_S, cold_start_s=60.0)
        is None
    )


def test_a_dispatch_hands_on_what_it_was_told() -> None:
    """Metadata and history of a lost agent's dispatch go to the next; a first agent has none."""
    said = [ChatTurn(role="user", text="My dog is called Rex.")]
    metadata = JobMetadata(letta_agent_id="agent-7", resume=Resume(history=said))
    text = metadata.model_dump_json(exclude_none=True)
    again = Watched.from_dispatch(
        "room", dispatch(90, None, text), 0.0, lambda _: False, wall_s=WALL_S, cold_start_s=60.0
    )
    assert again is not None
    assert again.history == said
    assert again.begun
    assert again.metadata == text
    first = Watched.from_dispatch(
        "room", dispatch(90, None), 0.0, lambda _: False, wall_s=WALL_S, cold_start_s=60.0
    )
    assert first is not None
    assert not first.begun


def test_an_agent_carries_its_metadata_without_the_history() -> None:
    """What its attributes tell is enough to dispatch it anew, and small."""
    metadata = JobMetadata(letta_agent_id="agent-7", mode="letta", resume=Resume())
    assert parse_metadata(carried(metadata)) == JobMetadata(letta_agent_id="agent-7", mode="letta")
    assert carried(JobMetadata()) == ""


def test_a_stall_of_the_own_loop_is_no_silence() -> None:
    """On a host so busy that the supervisor itself hardly runs, no agent is taken for lost."""
    at_s = 0.0
    clock = LoopClock(lambda: at_s)
    watched = Watched("room", agent(1), clock())
    watched.update(agent(1), clock())
    for _ in range(3):  # each round begins late by a second, and sees no new heartbeat
        at_s += 1.0
        watched.update(agent(1), clock())
    assert watched.silent_for(clock()) == pytest.approx(0.6)
    assert watched.missing_for(clock()) == 0
    for _ in range(6):  # the loop runs again, and the agent is still silent
        at_s += 0.1
        clock()
        watched.update(agent(1), clock())
    assert watched.silent_for(clock()) == pytest.approx(1.2)


def test_a_loop_that_runs_counts_all_its_time() -> None:
    """Readings that are as late as on any busy machine lose nothing."""
    at_s = 5.0
    clock = LoopClock(lambda: at_s)
    for late_s in (0.1, 0.11, 0.19, 0.1):
        at_s += late_s
        clock()
    assert clock() == pytest.approx(0.5)
