"""Turns of a call: assigns voices, messages and figures to turns.

`js/src/turns.ts` has the same rules; `tests/turn_rules.json` is the table of event sequences by
which both are tested.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import jiwer

from labvoice.protocol.vocabulary import implausible, voice_to_voice_s

FILLER_GAP_S: Final = 1.0
"""Silence in a reply, in seconds, after which its answer begins: longer than any between two
sentences."""
FILLER_LONGEST_S: Final = 3.0
"""A first part of a reply that lasts longer, in seconds, is no filler."""
_NEAR_S: Final = 0.5
"""A voice that begins so near to where its message does, in seconds, is that message."""


def word_error_rate(said: str, recognised: str) -> float:
    """Word error rate of a transcript, case and punctuation aside; 1.0 is every word."""
    return float(jiwer.wer(_words(said), _words(recognised)))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower().replace("’", "'")))


class AgentVoice(NamedTuple):
    """The beginning of a segment of the agent's voice in a turn.

    Attributes:
        at_s: When it began, in seconds.
        messages: How many messages of the user there were by then.
        before_s: When the agent's voice before it ended; None if unknown.
        anew: Whether the agent had finished what it said before.
    """

    at_s: float
    messages: int
    before_s: float | None = None
    anew: bool = False


@dataclass
class Turn:
    """One turn: utterance, transcript and reply, with their marks.

    Attributes:
        said: What the caller said; empty if unknown.
        marks: Turn marks, in seconds on the caller's monotonic clock.
        metrics: LiveKit's own figures of the turn, in seconds.
        transcript: What the agent recognised.
        reply: What the agent answered, as text.
        user_messages: Into how many user turns the agent split the utterance; 1 is right.
        outcome: One of :data:`labvoice.protocol.vocabulary.OUTCOMES`; `no_reply` until a reply
            was heard, `interrupted` where agent or user spoke over the other.
        notice: Remark on its figures, such as an uncertain end of speech.
        jitter_buffer_s: Mean time that the agent's sound spent in the caller's jitter buffer, from
            the end of speech to the end of the reply; None where unknown.
        upset: Which stall of this machine its figures are of; empty where they are sound.
        uncertain_s: How far the reply's beginning may be off, for noise or music in the agent's
            voice, in seconds; 0 where it is reliable.
        message_ids: LiveKit's ids of the messages whose figures are the turn's.
        replied: Whether the text of the reply to what was understood last is there.
        voices: When the agent's voice began in this turn.
        messages: When the messages of the reply were spoken, first to last word, in seconds on the
            agent's clock, where its session events tell.
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
    jitter_buffer_s: float | None = None
    upset: str = ""
    uncertain_s: float = 0.0
    message_ids: list[str] = field(default_factory=list, repr=False)
    replied: bool = field(default=False, repr=False)
    voices: list[AgentVoice] = field(default_factory=list, repr=False)
    messages: list[tuple[float, float]] = field(default_factory=list, repr=False)
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

    @property
    def answer_s(self) -> float | None:
        """From the last voiced sample sent to the first of the answer, in seconds.

        None where the reply did not begin with a filler.
        """
        if self.voice_to_voice_s is None or "answer_heard" not in self.marks:
            return None
        return self.marks["answer_heard"] - self.marks["user_speech_end"]

    @property
    def implausible(self) -> list[str]:
        """Names the figures in `metrics` that cannot be: negative, or longer than the turn."""
        return implausible(self.metrics, self.marks)


@dataclass(frozen=True)
class Item:
    """A message of the conversation.

    Attributes:
        id: LiveKit's id.
        role: `user` or `assistant`.
        text: What was recognised, or the spoken part of the reply.
        interrupted: Whether it was cut off.
        metrics: LiveKit's figures, in seconds.
        spoken: When it was spoken, first to last word, in seconds on the agent's clock; None where
            unknown.
    """

    id: str
    role: str
    text: str
    interrupted: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    spoken: tuple[float, float] | None = None


class Turns:
    """Collects the turns of a call.

    Attributes:
        all: The turns, oldest first.
    """

    def __init__(self) -> None:
        self.all: list[Turn] = []
        self.greeting = ""
        self._agent_speaks = self._speech_over = False
        self._agent_ended_s: float | None = None

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
            messages = self._last.user_messages
            voice = AgentVoice(at_s, messages, self._agent_ended_s, self._speech_over)
            self._last.voices.append(voice)
            _judge(self._last)
        self._speech_over = False

    def agent_ends(self, at_s: float | None = None) -> None:
        """The agent's voice ended, where known at that instant, in seconds."""
        self._agent_speaks = False
        self._agent_ended_s = at_s

    def speech_over(self) -> None:
        """The agent has finished what it said: the next voice is another message."""
        self._speech_over = True

    def agent_lost(self) -> None:
        """The agent left; later voices are not a reply to this turn."""
        last = self._last
        if last is not None and (self._agent_speaks or "reply_heard" not in last.marks):
            last.finish("agent_lost")
        self._agent_speaks = False

    def item(self, item: Item) -> None:
        """Adds a message of the conversation, with LiveKit's figures."""
        turn = self._last
        if item.role == "assistant":
            self.speech_over()
        if turn is None:
            if item.role == "assistant":
                self.greeting = item.text
        elif item.role == "user":
            turn.user_messages += 1
            turn.transcript = f"{turn.transcript} {item.text}".strip()
            turn.replied = False
            if turn.voice_to_voice_s is None:  # the reply that is dated is the one to come
                turn.metrics, turn.message_ids, turn.messages = {}, [], []
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
            # A filler may be heard before what it answers is told.
            heard = "reply_heard" in turn.marks and not turn.over_agent
            if item.interrupted or (waits and not heard):
                owner = before
        if owner is None:
            self.greeting = item.text
            return
        owner.reply = f"{owner.reply} {item.text}".strip()
        owner.replied = owner.user_messages > 0
        _take(owner, item)
        if item.interrupted:
            owner.cut = True
        elif item.spoken is not None:
            owner.messages.append(item.spoken)
        _judge(owner)

    def figures(self, by_message: Mapping[str, Mapping[str, float]]) -> None:
        """Adds figures missing in the session's events: stages by message id, in seconds."""
        for turn in self.all:
            for message_id in turn.message_ids:
                turn.metrics = {**by_message.get(message_id, {}), **turn.metrics}


def _take(turn: Turn, item: Item) -> None:
    turn.message_ids.append(item.id)
    if "e2e_latency" in item.metrics and "e2e_latency" not in turn.metrics:
        turn.metrics = {**turn.metrics, **item.metrics}  # those of a filler are not the reply's
    else:
        turn.metrics = {**item.metrics, **turn.metrics}


def _judge(turn: Turn) -> None:
    """Dates a turn's reply and sets its outcome from all events so far.

    The reply is dated by the first voice after the user's last word. A voice before it makes the
    turn interrupted; then the reply to the rest is the next voice after another message of the
    user's, and without one the early voice dates the reply, which has no latency. A reply to the
    whole that breaks off soon, and goes on with another message or after a gap, began with a
    filler: what follows is the answer. Two messages whose times the agent tells are told apart by
    these, however short the pause between them is.
    """
    if turn.finished:
        return
    start_s = turn.marks.get("user_speech_start", float("-inf"))
    end_s = turn.marks.get("user_speech_end", float("inf"))
    early = [
        voice
        for voice in turn.voices
        # What began before a word was understood, while the agent spoke, is its former reply.
        if start_s <= voice.at_s < end_s and (voice.messages or not turn.over_agent)
    ]
    answered = max(1, early[0].messages) if early else -1
    late = [voice for voice in turn.voices if voice.at_s >= end_s and voice.messages > answered]
    heard = late or early
    reply_s = heard[0].at_s if heard else None
    for name, at_s in (("reply_heard", reply_s), ("answer_heard", _answer(late, turn.messages))):
        if at_s is not None:
            turn.marks[name] = at_s
        else:
            turn.marks.pop(name, None)
    if turn.cut or early:
        turn.outcome = "interrupted"
    else:
        turn.outcome = "ok" if heard else "no_reply"


def _answer(voices: Sequence[AgentVoice], messages: Sequence[tuple[float, float]]) -> float | None:
    """Returns when what follows a filler began, in seconds; None if the reply has none."""
    if voices and len(messages) > 1:
        (begun_s, ended_s), (follows_s, _) = sorted(messages)[:2]
        if ended_s - begun_s > FILLER_LONGEST_S:
            return None
        # By the ear, where it has heard the pause.
        at_s = voices[0].at_s + follows_s - begun_s
        later = [voice.at_s for voice in voices[1:] if abs(voice.at_s - at_s) <= _NEAR_S]
        return min(later, key=lambda each: abs(each - at_s), default=at_s)
    for voice in voices[1:]:
        before_s = voice.before_s
        if before_s is not None and before_s - voices[0].at_s > FILLER_LONGEST_S:
            return None
        if voice.anew or (before_s is not None and voice.at_s - before_s >= FILLER_GAP_S):
            return voice.at_s
    return None
