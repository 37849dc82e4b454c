"""What a dispatch carries, checked alike by the dispatcher that sends and the worker that takes."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labvoice.errors import MetadataError, RoomNameError
from labvoice.settings import Mode

ATTRIBUTE_DISPATCH_ID = "labvoice.dispatch_id"
"""Participant attribute by which an agent tells which dispatch brought it."""
ATTRIBUTE_WORKER_ID = "labvoice.worker_id"
"""Participant attribute by which an agent tells which worker runs it."""
ATTRIBUTE_MEMORY = "labvoice.memory"
"""Participant attribute by which an agent tells how its memory stands."""

_NAME = re.compile(r"\w(?:[\w .:@+-]{0,126}[\w.:@+-])?")


def check_name(name: str, what: str = "room name") -> str:
    """Returns the name when it is one that URLs, logs and shells carry unharmed.

    Args:
        name: 1 to 128 letters, digits or any of `_ . : @ + -` and inner spaces, beginning
            with a letter, a digit or `_`.
        what: What to call it in the error.

    Raises:
        RoomNameError: It is not.
    """
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 60 else name[:60] + "…"
        raise RoomNameError(
            f"{shown!r} cannot be used as a {what}",
            "use 1 to 128 letters, digits, spaces or . _ : @ + - and begin with a letter or digit",
        )
    return name


class JobMetadata(BaseModel):
    """The metadata of a dispatch; unknown keys are refused, so that a typo is not ignored."""

    model_config = ConfigDict(extra="forbid")

    letta_agent_id: str | None = Field(None, min_length=1, max_length=128)
    """Id or name of the Letta agent whose memory the call uses."""
    mode: Mode | None = None
    """How this call uses Letta; the worker's setting when not given."""
    traceparent: str | None = Field(None, pattern=r"^[0-9a-f-]{55}$")
    """W3C trace that the job's spans belong to."""


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
