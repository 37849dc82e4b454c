"""LiveKit's session reports: what was said in a call, when, and by which models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from labvoice.caller.turns import Item
from labvoice.errors import RunFileError
from labvoice.protocol.vocabulary import AGENT_TURN_STAGES

REPORT_HINT: Final = "a report is `ctx.make_session_report().to_dict()`, written as JSON"
_USAGE: Final = {"llm_usage": "llm_model", "stt_usage": "stt", "tts_usage": "tts"}
_OPTIONS: Final = ("min_endpointing_delay", "max_endpointing_delay")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Message(_Part):
    """A message of the conversation."""

    type: Literal["message"]
    id: str = ""
    role: str
    content: list[Any] = Field(default_factory=list)
    interrupted: bool = False
    metrics: dict[str, Any] = Field(default_factory=dict)
    created_at: FiniteFloat | None = None

    def figure(self, name: str) -> float | None:
        """A number among its metrics; None where it has none of that name."""
        value = self.metrics.get(name)
        return float(value) if isinstance(value, int | float) and np.isfinite(value) else None

    @property
    def item(self) -> Item:
        """The message as a call's turns take it."""
        known = {name: self.figure(name) for name in AGENT_TURN_STAGES}
        return Item(
            self.id,
            self.role,
            " ".join(part for part in self.content if isinstance(part, str)),
            self.interrupted,
            {name: value for name, value in known.items() if value is not None},
        )


class _History(_Part):
    items: list[dict[str, Any]]


class SessionReport(_Part):
    """What is read of LiveKit's `SessionReport.to_dict()` (livekit-agents 1.8)."""

    room: str
    agent_name: str = ""
    sdk_version: str = ""
    chat_history: _History | None = None
    events: list[dict[str, Any]] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    usage: list[dict[str, Any]] | None = None
    audio_recording_path: str | None = None
    audio_recording_started_at: FiniteFloat | None = None

    @property
    def messages(self) -> list[tuple[float, Message]]:
        """The messages of both sides, with when the session had them, in seconds since 1970."""
        added = [
            (event.get("created_at"), event.get("item") or {})
            for event in self.events
            if event.get("type") == "conversation_item_added"
        ]
        items = self.chat_history.items if self.chat_history is not None else []
        found: list[tuple[float, Message]] = []
        for at_s, item in added or [(None, item) for item in items]:
            if item.get("type") != "message" or item.get("role") not in ("user", "assistant"):
                continue
            message = Message.model_validate(item)
            if at_s is None:
                # The history dates the agent's by when it began to speak.
                at_s = message.figure("stopped_speaking_at") if message.role != "user" else None
                at_s = at_s or message.created_at or (found[-1][0] if found else 0.0)
            found.append((at_s, message))
        return found


def read_report(path: Path) -> SessionReport:
    """Reads a session report.

    Raises:
        RunFileError: It is none.
    """
    try:
        return SessionReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunFileError(
            f"{path} is not a session report: {where + ': ' if where else ''}{first['msg']}",
            REPORT_HINT,
        ) from None


def columns_of(reports: Sequence[SessionReport]) -> dict[str, Any]:
    """The configuration's columns, named as those of the lab's calls."""
    found: dict[str, set[Any]] = {}
    for report in reports:
        for usage in report.usage or []:
            if (column := _USAGE.get(str(usage.get("type")))) and usage.get("model"):
                found.setdefault(column, set()).add(usage["model"])
        for name in _OPTIONS:
            if isinstance(report.options.get(name), int | float):
                found.setdefault(f"{name}_s", set()).add(float(report.options[name]))
        if report.sdk_version:
            found.setdefault("livekit_agents", set()).add(report.sdk_version)
    return {
        name: next(iter(values)) if len(values) == 1 else ", ".join(sorted(map(str, values)))
        for name, values in found.items()
    }
