"""Turns of a call: assigns voices, messages and figures to turns.

`js/src/turns.ts` has the same rules; `tests/turn_rules.json` is the table of event sequences by
which both are tested.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jiwer

from labvoice.protocol.vocabulary import voice_to_voice_s


def word_error_rate(said: str, recognised: str) -> float:
    """Word error rate of a transcript, case and punctuation aside; 1.0 is every word."""
    return float(jiwer.wer(_words(said), _words(recognised)))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower().replace("’", "'")))


@dataclass
class Turn:
    """One turn: utterance, transcript and reply, with their marks.

    Attributes:
        number: From 0.
        said: What the caller said; empty if unknown.
        marks: Turn marks, in seconds on the caller's monotonic clock.
        metrics: LiveKit's own figures of the turn, in seconds.
        transcript: What the agent recognised.
        reply: What the agent answered, as text.
        user_messages: Into how many user turns the agent split the utterance; 1 is right.
        outcome: One of :data:`labvoice.protocol.vocabulary.OUTCOMES`; `no_reply` until a reply
            was heard, `interrupted` where agent or user spoke over the other.
        notice: Remark on its figures, such as an uncertain end of speech.
        message_ids: LiveKit's ids of the messages whose figures are the turn's.
        replied: Whether the text of the reply that is dated is there.
        voices: When the agent's voice began in this turn, in seconds, and how many messages of
            the user there were by then.
        cut: Whether the reply was cut off.
        over_agent: Whether the agent spoke when the turn began.
        finished: Whether the outcome is final.
    """

    number: int
    said: str
    marks: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    transcript: str = ""
    reply: str = ""
    user_messages: int = 0
    outcome: str = "no_reply"
    notice: str = ""
    message_ids: list[str] = field(default_factory=list, repr=False)
    replied: bool = field(default=False, repr=False)
    voices: list[tuple[float, int]] = field(default_factory=list, repr=False)
    cut: bool = field(default=False, repr=False)
    over_agent: bool = field(default=False, repr=False)
    finished: bool = field(default=False, repr=False)

    def finish(self, outcome: str) -> None:
        """Sets the final outcome."""
        self.outcome = outcome
        self.finished = True

    def add_notice(self, sentence: str) -> None:
        """Adds a remark on its figures."""
        self.notice = "; ".join(filter(None, (self.notice, sentence)))

    @property
    def word_error_rate(self) -> float | None:
        """Word error rate of the transcript.

        None if the utterance or the transcript is unknown, or has no reply.
        """
        known = self.said.strip() and self.user_messages
        if not known or "reply_heard" not in self.marks:
            return None
        return word_error_rate(self.said, self.transcript)

    @property
    def voice_to_voice_s(self) -> float | None:
        """From the last voiced sample sent to the first voiced sample of the reply, in seconds.

        None if no reply was heard, or if it began before the caller had finished.
        """
        return voice_to_voice_s(self.marks)


@dataclass(frozen=True)
class Item:
    """A message of the conversation.

    Attributes:
        id: LiveKit's id.
        role: `user` or `assistant`.
        text: What was recognised, or the spoken part of the reply.
        interrupted: Whether it was cut off.
        metrics: LiveKit's figures, in seconds.
    """

    id: str
    role: str
    text: str
    interrupted: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


class Turns:
    """Collects the turns of a call.

    Attributes:
        all: The turns, oldest first.
        greeting: Text of the agent's greeting.
    """

    def __init__(self) -> None:
        self.all: list[Turn] = []
        self.greeting = ""
        self._agent_speaks = False

    @property
    def _last(self) -> Turn | None:
        return self.all[-1] if self.all else None

    def begin(self, said: str, notice: str = "") -> Turn:
        """The user begins to speak; a reply that is being spoken counts as interrupted."""
        if self._last is not None and self._agent_speaks:
            self._last.cut = True
            _judge(self._last)
        turn = Turn(len(self.all), said, notice=notice, over_agent=self._agent_speaks)
        self.all.append(turn)
        return turn

    def spoken(self, turn: Turn, start_s: float, end_s: float) -> None:
        """The user has spoken: first and last voiced sample, in seconds."""
        turn.marks |= {"user_speech_start": start_s, "user_speech_end": end_s}
        _judge(turn)

    def agent_starts(self, at_s: float) -> None:
        """The agent's voice began."""
        self._agent_speaks = True
        if self._last is not None:
            self._last.voices.append((at_s, self._last.user_messages))
            _judge(self._last)

    def agent_ends(self) -> None:
        """The agent's voice ended."""
        self._agent_speaks = False

    def agent_lost(self) -> None:
        """The agent left; later voices are not a reply to this turn."""
        last = self._last
        if last is not None and (self._agent_speaks or "reply_heard" not in last.marks):
            last.finish("agent_lost")
        self._agent_speaks = False

    def item(self, item: Item) -> None:
        """Adds a message of the conversation, with LiveKit's figures."""
        turn = self._last
        if turn is None:
            if item.role == "assistant":
                self.greeting = item.text
        elif item.role == "user":
            turn.user_messages += 1
            turn.transcript = f"{turn.transcript} {item.text}".strip()
            if turn.voice_to_voice_s is None:  # the reply that is dated is the one to come
                turn.metrics, turn.message_ids, turn.replied = {}, [], False
            _take(turn, item)
        elif item.role == "assistant":
            self._reply(turn, item)

    def _reply(self, turn: Turn, item: Item) -> None:
        owner: Turn | None = turn
        if not turn.user_messages:
            # What was said last was not understood yet: this may be the end of what was before.
            before = self.all[-2] if len(self.all) > 1 else None
            if before is not None:
                waits = before.user_messages > 0 and not before.reply and not before.finished
            else:
                waits = not self.greeting
            if item.interrupted or waits:
                owner = before
        if owner is None:
            self.greeting = item.text
            return
        owner.reply = f"{owner.reply} {item.text}".strip()
        owner.replied = True
        _take(owner, item)
        if item.interrupted:
            owner.cut = True
        _judge(owner)

    def figures(self, by_message: Mapping[str, Mapping[str, float]]) -> None:
        """Adds figures missing in the session's events: stages by message id, in seconds."""
        for turn in self.all:
            for message_id in turn.message_ids:
                turn.metrics = {**by_message.get(message_id, {}), **turn.metrics}


def _take(turn: Turn, item: Item) -> None:
    turn.message_ids.append(item.id)
    turn.metrics = {**item.metrics, **turn.metrics}


def _judge(turn: Turn) -> None:
    """Dates a turn's reply and sets its outcome from all events so far.

    The reply is dated by the first voice after the user's last word. A voice before it makes the
    turn interrupted; then the reply to the rest is the next voice after another message of the
    user's, and without one the early voice dates the reply, which has no latency.
    """
    if turn.finished:
        return
    start_s = turn.marks.get("user_speech_start", float("-inf"))
    end_s = turn.marks.get("user_speech_end", float("inf"))
    early = [
        (at_s, messages)
        for at_s, messages in turn.voices
        # What began before a word was understood, while the agent spoke, is its former reply.
        if start_s <= at_s < end_s and (messages or not turn.over_agent)
    ]
    answered = max(1, early[0][1]) if early else -1
    late = [(at_s, n) for at_s, n in turn.voices if at_s >= end_s and n > answered]
    heard = late or early
    if heard:
        turn.marks["reply_heard"] = heard[0][0]
    else:
        turn.marks.pop("reply_heard", None)
    if turn.cut or early:
        turn.outcome = "interrupted"
    else:
        turn.outcome = "ok" if heard else "no_reply"


def turn_notices(turns: Iterable[Turn]) -> list[str]:
    """Returns the turns' notices, a sentence each."""
    return [f"turn {turn.number + 1}: {turn.notice}" for turn in turns if turn.notice]
