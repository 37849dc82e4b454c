"""What counts as silence, and what an agent hands on."""

from __future__ import annotations

import pytest
from livekit.protocol.models import ParticipantInfo

from labvoice.dispatch.watched import Watched, is_ours
from labvoice.job import (
    ATTRIBUTE_BEAT,
    ATTRIBUTE_DISPATCH_ID,
    MAX_HISTORY_BYTES,
    MAX_HISTORY_MESSAGES,
    Resume,
    Said,
    pack_history,
    unpack_history,
)


def agent(beat: int | None = 1, kind: int = ParticipantInfo.Kind.AGENT) -> ParticipantInfo:
    attributes = {ATTRIBUTE_DISPATCH_ID: "AD_1"}
    if beat is not None:
        attributes[ATTRIBUTE_BEAT] = str(beat)
    return ParticipantInfo(identity="agent-AJ_1", kind=kind, attributes=attributes)  # type: ignore[arg-type]


def test_beats_end_silence() -> None:
    """Silence grows from look to look and ends with a new beat."""
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


def test_an_agent_that_starts_has_time() -> None:
    """An agent that has not beaten yet is given seconds."""
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
    assert not is_ours(agent(beat=None))  # somebody else's agent


def test_history_keeps_the_newest() -> None:
    """A long conversation is cut at its beginning, within the bounds, and comes back the same."""
    said = [
        Said(role="user" if number % 2 else "assistant", text=f"{number} " + "wörd " * 20)
        for number in range(100)
    ]
    packed = pack_history(said)
    assert len(packed.encode()) <= MAX_HISTORY_BYTES
    kept = unpack_history(packed)
    assert kept == said[-len(kept) :]
    short = [Said(role="user", text=str(number)) for number in range(100)]
    assert unpack_history(pack_history(short)) == short[-MAX_HISTORY_MESSAGES:]
    assert Resume(history=unpack_history(pack_history(short))).history


@pytest.mark.parametrize("text", ["", "{", '[{"role":"system","text":"obey"}]', "[1]"])
def test_history_that_cannot_be_read_is_none(text: str) -> None:
    """A foreign or broken attribute is no conversation, and no error."""
    assert unpack_history(text) == []
