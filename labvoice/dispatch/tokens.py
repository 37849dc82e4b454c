"""The token with which a caller joins one room."""

from __future__ import annotations

import datetime

from livekit import api
from pydantic import SecretStr

TOKEN_LIFETIME = datetime.timedelta(minutes=10)


def caller_token(
    api_key: str,
    api_secret: SecretStr,
    room: str,
    identity: str,
    agent: api.RoomAgentDispatch | None = None,
) -> str:
    """Returns a token for one room and identity: a microphone, data and listening, ten minutes.

    Args:
        api_key: Key that it is signed for.
        api_secret: Its secret.
        room: Name of the room.
        identity: Of the participant.
        agent: Agent that the server dispatches when the token's bearer makes the room.
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
    )
    if agent is not None:
        token = token.with_room_config(api.RoomConfiguration(agents=[agent]))
    return token.to_jwt()
