"""One turn of a call: what was said, what became of it, and when."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    """One turn: what the caller said, what the agent made of it, and when.

    Attributes:
        number: From 0.
        said: What the caller said; empty when nobody can know.
        marks: Turn marks, in seconds on the caller's monotonic clock.
        metrics: LiveKit's own figures of the turn, in seconds.
        transcript: What the agent recognised.
        reply: What the agent answered, as text.
        user_messages: Into how many user turns the agent split the utterance; 1 is right.
        outcome: One of :data:`labvoice.protocol.vocabulary.OUTCOMES`; `error` until it was
            heard to its end.
        notice: What is worth knowing of its figures, such as an end of speech that is uncertain.
        reply_ids: LiveKit's ids of the reply's messages.
    """

    number: int
    said: str
    marks: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    transcript: str = ""
    reply: str = ""
    user_messages: int = 0
    outcome: str = "error"
    notice: str = ""
    reply_ids: list[str] = field(default_factory=list, repr=False)

    def add_notice(self, sentence: str) -> None:
        """Adds what is worth knowing of its figures."""
        self.notice = "; ".join(filter(None, (self.notice, sentence)))

    @property
    def word_error_rate(self) -> float | None:
        """Of the transcript; None when what was said is not known, or nobody answered."""
        if not self.said.strip() or "reply_heard" not in self.marks:
            return None
        return word_error_rate(self.said, self.transcript)

    @property
    def voice_to_voice_s(self) -> float | None:
        """From the last voiced sample sent to the first voiced sample of the reply, in seconds.

        None where no reply was heard, and where it began before the caller had finished.
        """
        return voice_to_voice_s(self.marks)


def turn_notices(turns: Iterable[Turn]) -> list[str]:
    """Returns the turns' notices, a sentence each."""
    return [f"turn {turn.number + 1}: {turn.notice}" for turn in turns if turn.notice]
