"""The interface between the HTTP service and a lab."""

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
    """Counters of other parts of a lab, since their start.

    Attributes:
        failovers: Agents that were lost and replaced.
        memory_backlog: Turns not yet written to Letta; None without Letta, NaN when they cannot be
            counted.
    """

    failovers: int = 0
    memory_backlog: float | None = None


class Backend(Protocol):
    """Interface to a lab; implemented by :class:`labvoice.web.lab_backend.LabBackend`."""

    @property
    def agent_name(self) -> str:
        """Agent name that is dispatched by default."""

    @property
    def media_url(self) -> str:
        """Address of the LiveKit server, for the page's policy."""

    @property
    def idle_timeout_s(self) -> float:
        """Time after which an agent alone in a room leaves, in seconds."""

    async def dispatch(self, body: DispatchRequest, traceparent: str | None) -> Dispatch:
        """Puts exactly one agent into a room; its job continues the trace."""

    async def token(self, body: TokenRequest, traceparent: str | None) -> TokenAnswer:
        """Returns a token for one room and one identity; missing names are generated."""

    async def agents(self) -> AgentsAnswer:
        """Lists the Letta agents."""

    async def rooms(self) -> list[RoomFacts]:
        """Lists the rooms with their participants and dispatches."""

    async def workers(self) -> list[WorkerStatus]:
        """Returns the status of the workers."""

    async def clean(self, room: str) -> CleanAnswer:
        """Removes agents and dispatches from a room, and the room when no human is in it."""

    async def delete_dispatch(self, dispatch_id: str) -> str:
        """Deletes a dispatch; returns its room."""

    async def checks(self) -> list[Check]:
        """Checks every dependency."""

    async def diagnose(self) -> list[Check]:
        """Checks every dependency, and whether an agent really joins."""

    async def counts(self) -> Counts:
        """Returns the counters of other parts."""

    def verify_webhook(self, body: str, token: str) -> WebhookEvent:
        """Returns the event if LiveKit's signature is valid."""


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
