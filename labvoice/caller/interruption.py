"""Barge-in and backchannel: the agent's voice while the caller speaks over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from labvoice.caller.ear import Voice
from labvoice.caller.turns import Turn
from labvoice.errors import UsageError

PAUSE_S: Final = 0.8
"""The agent's silence, in seconds, from which it has stopped: a pause between two sentences is
shorter, unless a message of the user's came in it."""


@dataclass(frozen=True)
class Interruption:
    """What the agent did when the caller spoke over it; instants on the caller's clock.

    Attributes:
        start_s: First voiced sample of the caller that left.
        end_s: Last voiced sample of the caller that left.
        over_agent: Whether the agent was speaking at `start_s`.
        yielded_s: End of the agent's voice; None where it went on, or did not speak.
        resumed_s: Onset of its voice after that, with nothing of the caller's taken for a turn.
        replied_s: Onset of its next voice after it had taken what the caller said for a turn.
        overlap_s: How long both spoke, in seconds.
    """

    start_s: float
    end_s: float
    over_agent: bool
    yielded_s: float | None
    resumed_s: float | None
    replied_s: float | None
    overlap_s: float

    @property
    def yield_latency_s(self) -> float | None:
        """From the caller's onset to the end of the agent's voice; None where it went on."""
        return None if self.yielded_s is None else self.yielded_s - self.start_s

    @property
    def recovery_s(self) -> float | None:
        """From the caller's last sample to the new reply; None where there is none."""
        return None if self.replied_s is None else self.replied_s - self.end_s

    @property
    def marks(self) -> dict[str, float]:
        """The marks of the vocabulary, in seconds; only those that happened."""
        marks = {
            "interruption_start": self.start_s,
            "interruption_end": self.end_s,
            "agent_yielded": self.yielded_s,
            "agent_resumed": self.resumed_s,
            "new_reply_heard": self.replied_s,
        }
        return {name: at_s for name, at_s in marks.items() if at_s is not None}


@dataclass
class _Speech:
    """Voices without a pause: when they begin and end, and the user's messages at the onset."""

    start_s: float
    end_s: float
    messages: int


def interruption(
    turn: Turn, voices: Sequence[Voice], now_s: float, *, words_told: bool = True
) -> Interruption:
    """Finds what the agent's voice did around a turn in which the caller spoke over it.

    Args:
        turn: It must be said to its end.
        voices: All of the agent's, oldest first.
        now_s: The present, on the caller's clock.
        words_told: Whether the agent tells what it recognised. If not, a voice after the caller's
            last sample counts as a new reply, for nothing tells it from the old one.

    Raises:
        UsageError: The turn was not said yet.
    """
    if "user_speech_end" not in turn.marks:
        raise UsageError("the turn was not said yet", "`await call.say(…)` first")
    start_s, end_s = turn.marks["user_speech_start"], turn.marks["user_speech_end"]
    speeches = _speeches(voices, {voice.at_s: voice.messages for voice in turn.voices})
    current = next((s for s in speeches if s.start_s < start_s <= s.end_s), None)
    yielded_s = resumed_s = replied_s = None
    if current is not None:
        over = now_s - current.end_s >= PAUSE_S and all(voice.ended for voice in voices)
        if current is not speeches[-1] or over:
            yielded_s = current.end_s
    for speech in speeches:
        if speech.start_s < start_s or speech is current:
            continue
        answers = speech.messages > 0 if words_told else speech.start_s >= end_s
        if answers and speech.end_s >= end_s:
            replied_s = speech.start_s
            break
        if not answers and yielded_s is not None and resumed_s is None:
            resumed_s = speech.start_s
    overlap_s = sum(
        max(0.0, min(voice.end_s, end_s) - max(voice.start_s, start_s)) for voice in voices
    )
    return Interruption(
        start_s, end_s, current is not None, yielded_s, resumed_s, replied_s, overlap_s
    )


def _speeches(voices: Sequence[Voice], messages: dict[float, int]) -> list[_Speech]:
    speeches: list[_Speech] = []
    for voice in sorted(voices, key=lambda voice: voice.start_s):
        told = messages.get(voice.start_s, 0)
        last = speeches[-1] if speeches else None
        if last is not None and voice.start_s - last.end_s < PAUSE_S and told <= last.messages:
            last.end_s = max(last.end_s, voice.end_s)
        else:
            speeches.append(_Speech(voice.start_s, voice.end_s, told))
    return speeches


def reply_onset(turns: Sequence[Turn], voices: Sequence[Voice]) -> float | None:
    """Returns when the reply that is heard, or was heard last, began; None while one is due.

    What is said over a reply that goes on belongs to it. Before the first turn it is the greeting.

    Args:
        voices: All of the agent's, oldest first.
    """
    speaks = any(not voice.ended for voice in voices)
    for turn in reversed(turns):
        if "reply_heard" in turn.marks:
            return turn.marks["reply_heard"]
        if not (turn.over_agent and speaks):
            return None
    return voices[0].start_s if voices else None


def check_at(at: float) -> float:
    """Returns how long after a reply's onset the caller speaks, in seconds.

    Raises:
        UsageError: It is negative or no number.
    """
    if not math.isfinite(at) or at < 0:
        raise UsageError(
            f"at={at!r} is no time after the onset of a reply", "give seconds, such as `at=0.9`"
        )
    return at
