"""What stands behind the HTTP service, and what its kinds have in common."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from livekit import api
from livekit.protocol.webhook import WebhookEvent
from pydantic import SecretStr

from labvoice.dispatch.tokens import TOKEN_LIFETIME, caller_token
from labvoice.protocol.metadata import Metadata
from labvoice.web.errors import HttpError
from labvoice.web.models import TokenAnswer, TokenRequest

if TYPE_CHECKING:
    from labvoice.web.lab_backend import LabBackend
    from labvoice.web.stub import StubBackend


@dataclass
class Counts:
    """Counters of other parts of a lab, since their start.

    Attributes:
        failovers: Agents that were lost and replaced.
        memory_backlog: Turns not yet written to Letta; None without Letta, NaN when they cannot be
            counted.
    """

    failovers: int = 0
    memory_backlog: float | None = None


Backend: TypeAlias = "LabBackend | StubBackend"
"""A lab, or the stub with which the service alone is measured; mypy checks that both do the
same."""


def issue_token(
    body: TokenRequest,
    api_key: str,
    api_secret: SecretStr,
    url: str,
    agent_name: str,
    metadata: Metadata = None,
) -> TokenAnswer:
    """Returns the token that a request asks for.

    Args:
        body: The request; a missing room or identity is generated.
        api_key: LiveKit's key that it is signed for.
        agent_name: Agent that a strategy may put into the token.
        metadata: Metadata of that agent's job.
    """
    room = body.room or f"web-{secrets.token_hex(4)}"
    identity = body.identity or f"user-{secrets.token_hex(4)}"
    token = caller_token(
        api_key,
        api_secret,
        room,
        identity,
        strategy=body.strategy,
        agent_name=agent_name,
        metadata=metadata,
        agents=[
            api.RoomAgentDispatch(agent_name=each.agent_name, metadata=each.metadata)
            for each in body.agents
        ],
        name=body.participant_name or "",
        participant_metadata=body.participant_metadata or "",
        attributes=body.participant_attributes,
    )
    return TokenAnswer(
        token=token,
        url=url,
        room=room,
        identity=identity,
        expires_in_s=int(TOKEN_LIFETIME.total_seconds()),
    )


def verified_event(body: str, token: str, key: str, secret: SecretStr) -> WebhookEvent:
    """Returns the event of a webhook that was signed with a LiveKit key.

    Raises:
        HttpError: 401 if it was not, or the body differs from the signed one.
    """
    receiver = api.WebhookReceiver(api.TokenVerifier(key, secret.get_secret_value()))
    try:
        return receiver.receive(body, token)
    except Exception:  # the library raises many types for malformed input
        raise HttpError(
            401,
            "bad_signature",
            "the webhook is not signed with this lab's LiveKit key",
            "name the same `api_key` in the LiveKit server's `webhook` configuration",
        ) from None
