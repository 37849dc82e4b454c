"""Dispatch metadata: validated by the dispatcher that sends it and the worker that receives it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from livekit.protocol.agent_dispatch import AgentDispatch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from labvoice.choices import Mode
from labvoice.errors import MetadataError, RoomNameError

EVENT_PREFIX = "labvoice-event "
"""Prefix of a worker's log lines that report events to the stack; one JSON object follows."""

ATTRIBUTE_DISPATCH_ID = "labvoice.dispatch_id"
"""Participant attribute: id of the dispatch that started the agent."""
ATTRIBUTE_WORKER_ID = "labvoice.worker_id"
"""Participant attribute: id of the worker that runs the agent."""
ATTRIBUTE_MEMORY = "labvoice.memory"
"""Participant attribute: state of the agent's memory."""
ATTRIBUTE_HEARTBEAT = "labvoice.heartbeat"
"""Participant attribute: heartbeat counter; increases while process and event loop run."""
ATTRIBUTE_HISTORY = "labvoice.history"
"""Participant attribute: the conversation so far, as :func:`pack_history` writes it."""
ATTRIBUTE_LEAVING = "labvoice.leaving"
"""Participant attribute: why an agent leaves on purpose."""
ATTRIBUTE_METADATA = "labvoice.metadata"
"""Participant attribute: the metadata of an agent's dispatch, as :func:`carried` writes it. A
restarted server has lost its dispatches."""

MAX_HISTORY_BYTES = 3000
"""Maximum size of the packed history, in bytes. The server sends an agent's attributes to every
participant with each heartbeat, so the history must stay small compared with the audio."""
MAX_HISTORY_MESSAGES = 40
MAX_TEXT_LENGTH = 1000
"""Maximum length of one message in the history, in characters."""

IN_FLIGHT_S: Final = 10.0
"""Age in seconds after which a dispatch without an agent is stale, not pending: the server asks
workers for at most 5 + 3 s (LiveKit `pkg/agent/client.go`, CheckEnabledTimeout; psrpc's default
request timeout)."""

_NAME = re.compile(r"\w(?:[\w .:@+-]{0,126}[\w.:@+-])?")


def check_name(name: str, what: str = "room name") -> str:
    """Returns the name if it is safe in URLs, logs and shells.

    Args:
        name: 1 to 128 letters, digits or any of `_ . : @ + -` and inner spaces, beginning
            with a letter, a digit or `_`.
        what: What to call it in the error.

    Raises:
        RoomNameError: The name is invalid.
    """
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 60 else name[:60] + "…"
        raise RoomNameError(
            f"{shown!r} cannot be used as a {what}",
            "use 1 to 128 letters, digits, spaces or . _ : @ + - and begin with a letter or digit",
        )
    return name


class ChatTurn(BaseModel):
    """One finished message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["user", "assistant"]
    text: str = Field(max_length=MAX_TEXT_LENGTH)


class Resume(BaseModel):
    """State that a replacement agent needs to continue a lost agent's conversation."""

    model_config = ConfigDict(extra="forbid")

    history: list[ChatTurn] = Field(default_factory=list, max_length=MAX_HISTORY_MESSAGES)
    """The conversation so far, oldest first; may be cut at its beginning."""
    avoid_workers: list[str] = Field(default_factory=list, max_length=64)
    """Ids of workers that must not take this job."""


class JobMetadata(BaseModel):
    """The metadata of a dispatch; unknown keys are refused, so that a typo is not ignored."""

    model_config = ConfigDict(extra="forbid")

    letta_agent_id: str | None = Field(None, min_length=1, max_length=128)
    """Id or name of the Letta agent whose memory the call uses; None: no memory."""
    mode: Mode | None = None
    """How this call uses Letta; None: the worker's setting."""
    traceparent: str | None = Field(None, pattern=r"^[0-9a-f-]{55}$")
    """W3C trace context of the job's spans."""
    resume: Resume | None = None
    """Set when the agent replaces a lost one."""


Metadata = JobMetadata | Mapping[str, Any] | str | None
"""Dispatch metadata: labvoice's own, or the user's text or JSON object for another agent, which
labvoice sends unchanged."""


def metadata_text(metadata: Metadata) -> str:
    """Returns a dispatch's metadata as sent; text is sent unchanged.

    Raises:
        MetadataError: It is neither text nor JSON-serialisable.
    """
    if isinstance(metadata, JobMetadata):
        return metadata.model_dump_json(exclude_none=True)
    if metadata is None or isinstance(metadata, str):
        return metadata or ""
    try:
        return json.dumps(dict(metadata))
    except (TypeError, ValueError) as error:
        raise MetadataError(
            f"the dispatch metadata cannot be sent: {error}",
            "pass text or a JSON-serialisable dictionary",
        ) from None


def parse_metadata(text: str) -> JobMetadata:
    """Reads the metadata of a dispatch; empty text means the defaults.

    Raises:
        MetadataError: It is not a JSON object with the known keys.
    """
    if not text:
        return JobMetadata()
    try:
        return JobMetadata.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise MetadataError(
            f"the dispatch metadata cannot be used: {where}: {first['msg']}",
            f"send a JSON object with these keys only: {', '.join(JobMetadata.model_fields)}",
        ) from None


def carried(metadata: JobMetadata) -> str:
    """Returns the metadata that an agent publishes for its possible replacement."""
    text = metadata.model_copy(update={"resume": None}).model_dump_json(exclude_none=True)
    return "" if text == "{}" else text


def standing(dispatches: Iterable[AgentDispatch], agent_name: str) -> list[AgentDispatch]:
    """Returns a room's dispatches of one agent name, oldest first; the oldest is the valid one.

    Every process sees the same order because the server sets the times.
    """
    of_name = [each for each in dispatches if each.agent_name == agent_name]
    return sorted(of_name, key=lambda each: (each.state.created_at, each.id))


def refusal(dispatches: Iterable[AgentDispatch], agent_name: str, dispatch_id: str) -> str:
    """Returns why a worker must refuse a job that would be a second agent; empty to accept.

    Args:
        agent_name: The worker's; empty for one that serves every room.
    """
    every = list(dispatches)
    named = next((each.agent_name for each in every if each.agent_name), "")
    if not agent_name and named:
        return f"the room has a dispatch of {named!r} by name"
    ours = standing(every, agent_name)
    mine = next((each for each in ours if each.id == dispatch_id), None)
    if mine is None:
        return "its dispatch was withdrawn"
    age_s = (mine.state.created_at - ours[0].state.created_at) / 1e9
    if mine is not ours[0] and age_s < IN_FLIGHT_S:
        return f"dispatch {ours[0].id} came first"
    return ""


_HISTORY: TypeAdapter[list[ChatTurn]] = TypeAdapter(list[ChatTurn])


def pack_history(messages: Iterable[ChatTurn]) -> str:
    """Packs a conversation as JSON of at most :data:`MAX_HISTORY_BYTES`; keeps the newest.

    Args:
        messages: Oldest first.
    """
    kept: list[ChatTurn] = []
    for message in reversed(list(messages)):
        longer = [message, *kept]
        if len(kept) == MAX_HISTORY_MESSAGES or len(_HISTORY.dump_json(longer)) > MAX_HISTORY_BYTES:
            break
        kept = longer
    return _HISTORY.dump_json(kept).decode()


def unpack_history(text: str) -> list[ChatTurn]:
    """Reads what :func:`pack_history` wrote; unreadable text gives an empty history."""
    try:
        return _HISTORY.validate_json(text or "[]")[-MAX_HISTORY_MESSAGES:]
    except ValidationError:
        return []  # written by another version: the call continues without it
