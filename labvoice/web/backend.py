"""What the HTTP service asks of what stands behind it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol

from livekit import api
from livekit.protocol.webhook import WebhookEvent
from pydantic import SecretStr

from labvoice.dispatch import Dispatch
from labvoice.dispatch.tokens import TOKEN_LIFETIME, caller_token
from labvoice.protocol.metadata import Metadata
from labvoice.stack.workers.worker import WorkerStatus
from labvoice.web.errors import HttpError
from labvoice.web.models import (
    AgentsAnswer,
    Check,
    CleanAnswer,
    DispatchRequest,
    RoomFacts,
    TokenAnswer,
    TokenRequest,
)


@dataclass
class Counts:
    """What other parts of a lab have counted since their start.

    Attributes:
        failovers: Agents that were lost and replaced.
        memory_backlog: Turns that wait to be written to Letta; None when nobody counts them, NaN
            when they cannot be counted.
    """

    failovers: int = 0
    memory_backlog: float | None = None


class Backend(Protocol):
    """What the HTTP service asks; a lab's is :class:`labvoice.web.lab_backend.LabBackend`."""

    @property
    def agent_name(self) -> str:
        """Name that is dispatched when none is asked for."""

    @property
    def media_url(self) -> str:
        """Address of the LiveKit server, for the page's policy."""

    @property
    def idle_timeout_s(self) -> float:
        """After so long alone in a room, agents leave."""

    async def dispatch(self, body: DispatchRequest, traceparent: str | None) -> Dispatch:
        """Puts exactly one agent into a room; the trace goes on in its job."""

    async def token(self, body: TokenRequest, traceparent: str | None) -> TokenAnswer:
        """Returns a token for one room and one identity; names are made up where None."""

    async def agents(self) -> AgentsAnswer:
        """Lists the Letta agents."""

    async def rooms(self) -> list[RoomFacts]:
        """Lists the rooms, who is in them, and what is dispatched to them."""

    async def workers(self) -> list[WorkerStatus]:
        """Asks the workers."""

    async def clean(self, room: str) -> CleanAnswer:
        """Removes agents and dispatches from a room, and the room when no human is in it."""

    async def delete_dispatch(self, dispatch_id: str) -> str:
        """Deletes a dispatch; returns its room."""

    async def checks(self) -> list[Check]:
        """Checks every dependency."""

    async def diagnose(self) -> list[Check]:
        """Checks every dependency, and whether an agent really joins."""

    async def counts(self) -> Counts:
        """Returns what other parts have counted."""

    def verify_webhook(self, body: str, token: str) -> WebhookEvent:
        """Returns the event when LiveKit's signature is good."""


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
        body: The request; a room and an identity are made up where it has none.
        api_key: LiveKit's key that it is signed for.
        api_secret: Its secret.
        url: Address of the LiveKit server.
        agent_name: Agent that a strategy may put into the token.
        metadata: What that agent gets to know.
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
        HttpError: 401 when it was not, or the body is not what was signed.
    """
    receiver = api.WebhookReceiver(api.TokenVerifier(key, secret.get_secret_value()))
    try:
        return receiver.receive(body, token)
    except Exception:  # whatever the library meets in what a stranger sent
        raise HttpError(
            401,
            "bad_signature",
            "the webhook is not signed with this lab's LiveKit key",
            "name the same `api_key` in the LiveKit server's `webhook` configuration",
        ) from None
