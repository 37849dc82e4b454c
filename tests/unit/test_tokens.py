"""Tokens, strategies, and the metadata that a dispatch carries."""

from __future__ import annotations

import pytest
from livekit import api
from pydantic import SecretStr

from labvoice.dispatch.strategies import STRATEGIES, Strategy, strategy_of
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import MetadataError, UsageError
from labvoice.protocol.metadata import JobMetadata, Metadata, metadata_text
from labvoice.web.backend import issue_token
from labvoice.web.models import TokenRequest

_SECRET = SecretStr("s" * 32)
_VERIFIER = api.TokenVerifier("key", _SECRET.get_secret_value())


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_only_the_strategy_token_puts_the_agent_into_the_token(strategy: Strategy) -> None:
    """The other strategies dispatch by themselves: an agent in the token would be a second one."""
    text = '{"user_id": 1}'
    token = caller_token(
        "key", _SECRET, "r", "me", strategy=strategy.name, agent_name="a", metadata=text
    )
    config = _VERIFIER.verify(token).room_config
    named = [(each.agent_name, each.metadata) for each in config.agents] if config else []
    assert named == ([("a", text)] if strategy.name == "token" else [])


def test_a_strategy_says_under_which_name_the_agent_is_dispatched() -> None:
    """A worker that serves every room has no name; an unknown strategy is refused in words."""
    assert [s.name for s in STRATEGIES.values() if not s.dispatched_as("a")] == ["automatic"]
    with pytest.raises(UsageError, match="no strategy 'soon'"):
        strategy_of("soon")


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (None, ""),
        ("no JSON: ü", "no JSON: ü"),
        ('{"user_id":  "u1"}', '{"user_id":  "u1"}'),
        ({"user_id": "u1"}, '{"user_id": "u1"}'),
        (JobMetadata(mode="direct"), '{"mode":"direct"}'),
    ],
)
def test_metadata_of_a_users_own_is_sent_as_it_is(metadata: Metadata, text: str) -> None:
    """A text is not looked into, and a dictionary becomes JSON."""
    assert metadata_text(metadata) == text


def test_metadata_that_cannot_be_sent_is_refused_with_a_message() -> None:
    """What JSON cannot hold ends in an error with a hint."""
    with pytest.raises(MetadataError, match="cannot be sent"):
        metadata_text({"when": object()})


def test_the_token_endpoint_takes_livekits_standard_request() -> None:
    """A front end's SDK gets the address and the token under the names that it knows."""
    body = TokenRequest.model_validate(
        {
            "room_name": "std-room",
            "participant_identity": "web-user",
            "participant_name": "Web User",
            "participant_metadata": "m",
            "participant_attributes": {"a": "b"},
            "room_config": {"agents": [{"agent_name": "own", "metadata": "x=1"}]},
        }
    )
    assert body.dispatches
    answer = issue_token(body, "key", _SECRET, "ws://127.0.0.1:9", "a").model_dump()
    assert answer["participant_token"] == answer["token"]
    assert answer["server_url"] == answer["url"] == "ws://127.0.0.1:9"
    assert (answer["room"], answer["identity"]) == ("std-room", "web-user")
    claims = _VERIFIER.verify(answer["token"])
    assert claims.video is not None
    assert claims.video.room == "std-room"
    assert (claims.identity, claims.name, claims.metadata) == ("web-user", "Web User", "m")
    assert claims.attributes == {"a": "b"}
    assert claims.room_config is not None
    assert [(a.agent_name, a.metadata) for a in claims.room_config.agents] == [("own", "x=1")]
