"""Access tokens for callers, and for agents that join by themselves."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from livekit import api
from pydantic import SecretStr

from labvoice.dispatch.strategies import StrategyName, strategy_of
from labvoice.protocol.metadata import Metadata, metadata_text

TOKEN_LIFETIME = datetime.timedelta(minutes=10)
_AGENT_LIFETIME = datetime.timedelta(hours=1)
"""A bot may load its models before it joins."""


def caller_token(
    api_key: str,
    api_secret: SecretStr,
    room: str,
    identity: str,
    *,
    strategy: StrategyName | None = None,
    agent_name: str = "",
    metadata: Metadata = None,
    agents: Sequence[api.RoomAgentDispatch] = (),
    name: str = "",
    participant_metadata: str = "",
    attributes: Mapping[str, str] | None = None,
    room_metadata: str = "",
) -> str:
    """Returns a token for one room and identity: microphone, data, subscribing; valid 10 minutes.

    Args:
        strategy: If it puts the agent into the token, the server dispatches the agent when the
            token's bearer creates the room.
        agent_name: Name of that agent.
        agents: Further agents to dispatch the same way.
        name: Display name of the participant.
        participant_metadata: The participant's own metadata.
        room_metadata: Metadata of the room, where the token's bearer makes it.
    """
    grants = api.VideoGrants(
        room_join=True,
        room=room,
        can_publish=True,
        can_publish_sources=["microphone"],
        can_subscribe=True,
        can_publish_data=True,
    )
    token = (
        api.AccessToken(api_key, api_secret.get_secret_value())
        .with_identity(identity)
        .with_grants(grants)
        .with_ttl(TOKEN_LIFETIME)
        .with_name(name)
        .with_metadata(participant_metadata)
    )
    if attributes:
        token = token.with_attributes(dict(attributes))
    named = list(agents)
    if strategy is not None and strategy_of(strategy).in_token:
        text = metadata_text(metadata)
        named.append(api.RoomAgentDispatch(agent_name=agent_name, metadata=text))
    if named or room_metadata:
        config = api.RoomConfiguration(agents=named, metadata=room_metadata)
        token = token.with_room_config(config)
    return token.to_jwt()


def agent_token(
    api_key: str,
    api_secret: SecretStr,
    room: str,
    identity: str,
    *,
    metadata: str = "",
    attributes: Mapping[str, str] | None = None,
) -> str:
    """Returns a token for an agent that joins one room without a dispatch; valid an hour.

    Args:
        metadata: The participant's metadata.
    """
    grants = api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True)
    token = (
        api.AccessToken(api_key, api_secret.get_secret_value())
        .with_kind("agent")
        .with_identity(identity)
        .with_grants(grants)
        .with_ttl(_AGENT_LIFETIME)
        .with_metadata(metadata)
    )
    if attributes:
        token = token.with_attributes(dict(attributes))
    return token.to_jwt()
