"""Names and metadata of a dispatch."""

from __future__ import annotations

import pytest
from livekit.protocol.agent_dispatch import AgentDispatch, AgentDispatchState

from labvoice.errors import MetadataError, RoomNameError
from labvoice.protocol.metadata import JobMetadata, check_name, parse_metadata, refusal, standing


@pytest.mark.parametrize("name", ["a", "room-1", "Zimmer für zwei", "team:lab.42@x", "x" * 128])
def test_ordinary_names_pass(name: str) -> None:
    """Letters of any script, digits and the usual separators are a name."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " room", "room ", "a/b", "a\nb", "a\x00b", "-a", "x" * 129, "<script>", "a?b", "é\u202e"],
)
def test_odd_names_are_refused_with_a_message(name: str) -> None:
    """A name that URLs, logs or shells would not carry unharmed is refused with a hint."""
    with pytest.raises(RoomNameError, match="cannot be used") as caught:
        check_name(name)
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_metadata_round_trips() -> None:
    """What the dispatcher writes, the worker reads."""
    metadata = JobMetadata(letta_agent_id="agent-1")
    assert parse_metadata(metadata.model_dump_json(exclude_none=True)) == metadata
    assert parse_metadata("") == JobMetadata()


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", '{"letta_agent": "x"}', '{"letta_agent_id": 3}']
)
def test_metadata_that_the_agent_does_not_understand_is_refused(text: str) -> None:
    """A typo in a key is an error that names the keys, not something to ignore."""
    with pytest.raises(MetadataError, match="letta_agent_id"):
        parse_metadata(text)


def dispatched(id_: str, name: str, at_s: float) -> AgentDispatch:
    return AgentDispatch(
        id=id_, agent_name=name, state=AgentDispatchState(created_at=int(at_s * 1e9))
    )


def test_the_oldest_dispatch_of_a_name_counts_for_everybody() -> None:
    """The order does not depend on who asks, and other names do not matter."""
    listed = [dispatched("C", "a", 2), dispatched("B", "a", 1), dispatched("X", "b", 0)]
    assert [each.id for each in standing(listed, "a")] == ["B", "C"]
    assert [each.id for each in standing(reversed(listed), "a")] == ["B", "C"]


@pytest.mark.parametrize(
    ("dispatch_id", "agent_name", "words"),
    [
        ("first", "a", ""),
        ("second", "a", "dispatch first came first"),
        ("much-later", "a", ""),
        ("withdrawn", "a", "its dispatch was withdrawn"),
        ("automatic", "", "the room has a dispatch of 'a' by name"),
    ],
)
def test_a_worker_refuses_what_would_be_a_second_agent(
    dispatch_id: str, agent_name: str, words: str
) -> None:
    """The oldest is taken, its rivals are not; one that follows long after replaces it."""
    listed = [
        dispatched("automatic", "", 0),
        dispatched("first", "a", 1),
        dispatched("second", "a", 1.01),
        dispatched("much-later", "a", 60),
    ]
    assert refusal(listed, agent_name, dispatch_id) == words
