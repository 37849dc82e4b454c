"""A browser's measurements of its own call: validated, and written as a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from labvoice.bench.base import write_recording
from labvoice.bench.facts import columns
from labvoice.caller.recorder import Recording
from labvoice.caller.turns import word_error_rate
from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CALLER_CONNECTION_MARKS,
    MEMORY_STAGES,
    OUTCOMES,
    TURN_MARKS,
    WORKER_CONNECTION_MARKS,
    Mark,
    implausible,
    voice_to_voice_s,
)
from labvoice.runs.run import RunWriter
from labvoice.settings import Settings

Text = Annotated[str, Field(max_length=20_000)]
Word = Annotated[str, Field(max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class BrowserTurn(_Part):
    """One turn as the browser measured it; times in seconds.

    The browser detects voice on 10 ms frames, as :mod:`labvoice.caller.ear` does.
    """

    number: int = Field(ge=0)
    typed: bool = False
    said: Text = ""
    marks: dict[Word, FiniteFloat] = Field(default_factory=dict, max_length=10)
    metrics: dict[Word, FiniteFloat] = Field(default_factory=dict, max_length=20)
    transcript: Text = ""
    reply: Text = ""
    user_messages: int = 0
    outcome: Word = "no_reply"

    @property
    def voice_to_voice_s(self) -> float | None:
        """From the last voiced sample spoken to the first of the reply, in seconds."""
        return voice_to_voice_s(self.marks)

    @property
    def implausible(self) -> list[str]:
        """Names the figures in `metrics` that cannot be: negative, or longer than the turn."""
        return implausible(self.metrics, self.marks)


class CallRecord(_Part):
    """A browser's measurements of one call; `js/src/types.ts` has the same fields.

    Marks are on the browser's monotonic clock (`performance.now() / 1000`).
    """

    call_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    room: Word = ""
    strategy: Word = ""
    letta_agent_id: Word = ""
    marks: list[Mark] = Field(default_factory=list, max_length=40)
    turns: list[BrowserTurn] = Field(default_factory=list, max_length=1000)
    notes: dict[Word, bool | FiniteFloat | Text] = Field(default_factory=dict, max_length=40)
    outcome: Word = "error"
    detail: Text = ""
    ended: bool = False


def write_run(
    record: CallRecord, path: Path, settings: Settings, recording: Recording | None = None
) -> None:
    """Writes a browser's call as a run of one trial, with the columns of simulated calls.

    Marks, figures and outcomes outside the vocabulary are left out.

    Args:
        record: The browser's measurements.
        settings: Settings of the lab, for the configuration's columns and the recording's format.
        recording: On the same clock as the record's marks; written beside the run file.

    Raises:
        RunFileError: The run file exists already or cannot be written.
    """
    known = CALLER_CONNECTION_MARKS + WORKER_CONNECTION_MARKS
    config = {"caller": "browser", "agent_name": settings.agent_name}
    arms = {"default": {**columns(settings), "strategy": record.strategy or None}}
    started = (datetime.now(UTC), None)  # the marks are on the browser's clock
    with RunWriter(path, kind="call", config=config, arms=arms, started=started) as run:
        run.trial(0, record.room or "none", "default")
        for mark in record.marks:
            if mark.name in known:
                run.mark(0, mark)
        run.note(0, None, letta_agent_id=record.letta_agent_id, **record.notes)
        loaded_s = record.notes.get("memory_load_s")
        if isinstance(loaded_s, float):
            run.stage(0, "memory_load", loaded_s)
        run.outcome(0, _outcome(record.outcome), detail=record.detail)
        for turn in record.turns:
            _write_turn(run, turn)
        if recording is not None and settings.recording != "none":
            at_s = {mark.name: mark.at_s for mark in record.marks}
            zero_s = at_s.get("click", min(at_s.values(), default=recording.start_s))
            write_recording(run, 0, recording, zero_s, settings.recording)


def _write_turn(run: RunWriter, turn: BrowserTurn) -> None:
    for name, at_s in turn.marks.items():
        if name in TURN_MARKS:
            run.mark(0, Mark(name, at_s), turn=turn.number)
    for name, duration_s in turn.metrics.items():
        if name in AGENT_TURN_STAGES + MEMORY_STAGES:
            run.stage(0, name, duration_s, turn=turn.number)
    facts: dict[str, Any] = {"said": turn.said, "transcript": turn.transcript, "reply": turn.reply}
    # Typed turns were not recognised; unanswered ones say nothing about recognition.
    recognised = turn.said.strip() and not turn.typed and "reply_heard" in turn.marks
    facts["wer"] = word_error_rate(turn.said, turn.transcript) if recognised else None
    run.note(0, turn.number, typed=turn.typed, user_messages=turn.user_messages, **facts)
    run.outcome(0, _outcome(turn.outcome), turn=turn.number)


def _outcome(name: str) -> str:
    return name if name in OUTCOMES else "error"
