"""Under which name an agent was dispatched, by what the server lists."""

from __future__ import annotations

import pytest
from livekit.protocol.agent import Job, JobState
from livekit.protocol.agent_dispatch import AgentDispatch, AgentDispatchState
from livekit.protocol.models import ParticipantInfo

from labvoice.dispatch.rooms import agent_names, is_agent, is_human


def agent(identity: str, told: dict[str, str] | None = None) -> ParticipantInfo:
    """An agent's participant, with its attributes."""
    kind = ParticipantInfo.Kind.AGENT
    return ParticipantInfo(identity=identity, kind=kind, attributes=told or {})


def dispatch(name: str, *jobs: Job) -> AgentDispatch:
    """A dispatch with its jobs."""
    return AgentDispatch(id=f"AD_{name}", agent_name=name, state=AgentDispatchState(jobs=jobs))


SERVERS_OWN = dispatch("")


@pytest.mark.parametrize(
    ("there", "dispatches", "names"),
    [
        ([agent("agent-J1", {"lk.agent.name": "a"})], [], {"agent-J1": "a"}),
        ([agent("agent-J1")], [SERVERS_OWN, dispatch("a", Job(id="J1"))], {"agent-J1": "a"}),
        (
            [agent("clerk")],
            [dispatch("a", Job(id="J1", state=JobState(participant_identity="clerk")))],
            {"clerk": "a"},
        ),
        # Its job is not listed yet, and the server's own dispatch may have brought it as well.
        ([agent("agent-J1")], [SERVERS_OWN, dispatch("a")], {"agent-J1": None}),
        ([agent("agent-J1")], [dispatch("a")], {"agent-J1": "a"}),
        ([agent("agent-J1")], [SERVERS_OWN, dispatch("a", Job(id="J2"))], {"agent-J1": ""}),
        ([agent("agent-J1")], [], {"agent-J1": ""}),
        ([agent("avatar", {"lk.publish_on_behalf": "agent-J1"})], [SERVERS_OWN], {}),
    ],
)
def test_an_agent_has_the_name_of_its_dispatch(
    there: list[ParticipantInfo], dispatches: list[AgentDispatch], names: dict[str, str | None]
) -> None:
    """Its attribute tells, else its job; where neither does, the one dispatch that waits."""
    assert agent_names(there, dispatches) == names


def test_an_avatar_is_neither_an_agent_nor_a_human() -> None:
    """A participant that publishes for an agent goes with it, and is nobody's caller."""
    for kind in (ParticipantInfo.Kind.AGENT, ParticipantInfo.Kind.STANDARD):
        avatar = ParticipantInfo(kind=kind, attributes={"lk.publish_on_behalf": "agent-J1"})
        assert not is_agent(avatar)
        assert not is_human(avatar)
