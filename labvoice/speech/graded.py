"""Detectors of the end of a turn that let the agent wait longer where they are less sure.

v1-mini misses each third end, after which the caller waits the longer delay; Smart Turn hears most
of these, and says by its probability how sure it is. With the words as well, or both detectors
together, a turn ends after the shortest silence where all is clear, and after a longer one where it
is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import re
from typing import Any, Final, NamedTuple

import numpy as np
from livekit import rtc
from livekit.agents import LanguageCode, llm, stt
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions
from livekit.agents.voice.turn import TurnDetectionEvent

from labvoice.speech.detection import VAD_ENTER, VAD_LEAVE, VoiceProbability


class Grades(NamedTuple):
    """When a detector is sure, and what becomes of its answer where it is not.

    Attributes:
        sure: Probability from which Smart Turn is sure.
        unsure_after_s: Silence after which a turn ends at the earliest where an end is heard and
            not for sure, in seconds. With a shorter `min_delay` a turn ends after that only where
            it is sure.
    """

    sure: float
    unsure_after_s: float


EITHER: Final = Grades(0.9, 0.4)
"""Of v1-mini with Smart Turn. With delays of 0.3 and 0.8 s it cuts in on 12 of 53 built-in turns,
at a mean delay of 0.40 s; LiveKit's defaults on 5, at 1.23 s, for in a call its voice detector ends
no turn before 0.58 s. They were chosen on these turns (`labvoice bench endpointing --offline`)."""

LEAST_WORDS: Final = 7
"""Of a question or a sentence that may be a whole turn: readers pause after shorter ones."""
QUESTION_SURE: Final = 0.95
"""Smart Turn's probability from which a question or a request ends after the shortest silence."""
SENTENCE_SURE: Final = 0.98
"""The same of any other sentence: a reader's clause in the middle of a turn has had 0.974."""
SENTENCE_AFTER_S: Final = 0.25
"""Silence after which such a sentence ends at the earliest, in seconds."""
UNSURE_AFTER_S: Final = 0.5
"""Silence after which all else ends at the earliest, in seconds: a reader's pause of 0.42 s lasts
0.45 to 0.5 s in a call."""
CLAUSE_AFTER_S: Final = 0.6
"""Silence after which a turn ends at the earliest that ends with a comma, in seconds: there Smart
Turn is as sure as at an end. With all of these 8 of the 53 built-in turns are cut in on (`labvoice
bench endpointing --offline`). They were chosen on these turns, and on 40 utterances in calls."""
SPOKEN_ASKED_AFTER_S: Final = 0.09
"""Silence up to which Smart Turn hears the turn, in seconds: three windows of the voice detector,
which a length of 0.1 s would make four. Its answer takes 0.05 s of one core (2 cores of an Intel
Xeon), and twice as long in a call."""
_LATER_S: Final = 1.0
"""Silence in which a transcript is waited for before Smart Turn hears on."""

_CLOSED: Final = (
    "a an the my your his her its our their this that these those some any no each every "
    "for from of on at in to with by about into between around over under than as like per "
    "and or but so because if whether although while when where which who whose what how "
    "is are was were am be been being do does did have has had can could will would shall "
    "should may might must i we they he she very just well let's um uh er"
)
"""Words after which a sentence goes on: articles, possessives, prepositions, conjunctions,
auxiliary verbs, subjects, fillers."""
_GOES_ON: Final = frozenset(_CLOSED.split())
_ASKING_WORDS: Final = (
    "please tell what which who whose where why how is are was were do does did can could will "
    "would shall should may"
)
"""Words with which a question or a request begins: an early preflight, whose words become
the final transcript, often has no mark yet."""
_ASKING: Final = frozenset(_ASKING_WORDS.split())
_WORD: Final = re.compile(r"[a-z']+|\d+")
_UNDECODED_S: Final = 1.0
_PREDICTION_S: Final = 1.0
_TRANSCRIPT_S: Final = 0.02
"""From the recogniser's end of speech until LiveKit has its transcript."""


def goes_on(text: str) -> bool:
    """Returns whether a transcript ends with a word after which a sentence goes on."""
    words = _WORD.findall(text.lower())
    return bool(words) and words[-1] in _GOES_ON


def stands_alone(text: str) -> bool:
    """Returns whether these words can be a whole turn: enough, and none that wants another."""
    return len(text.split()) >= LEAST_WORDS and not goes_on(text)


def asks(text: str) -> bool:
    """Returns whether a transcript is a question or a request, by its mark or its first word."""
    words = _WORD.findall(text.lower())
    return text.rstrip().endswith("?") or (bool(words) and words[0] in _ASKING)


def spoken_end(probability: float, text: str, threshold: float) -> tuple[bool, float]:
    """Returns whether a turn has ended by its sound and its words, and after which silence.

    Args:
        probability: Smart Turn's, of an end.
        text: What was recognised.
        threshold: Probability below which a turn goes on.

    Returns:
        Whether it has ended, and the silence before which it does not, in seconds.
    """
    if probability < threshold or goes_on(text):
        return False, 0.0
    mark = text.rstrip()[-1:]
    if mark == ",":
        return True, CLAUSE_AFTER_S
    if stands_alone(text) and asks(text):
        sure, after_s = QUESTION_SURE, 0.0
    elif stands_alone(text) and mark in (".", "!"):
        sure, after_s = SENTENCE_SURE, SENTENCE_AFTER_S
    else:
        return True, UNSURE_AFTER_S
    return True, after_s if probability >= max(sure, threshold) else UNSURE_AFTER_S


class SpokenDetector:
    """Ends a turn by its sound and its words: Smart Turn, asked with the transcript.

    LiveKit asks a detector of audio after 0.2 s of silence, and takes its answer after 0.25 s; it
    asks one of text as soon as there is a transcript. This is one of text to LiveKit, and hears the
    audio as well, by the agent's `stt_node`.

    Args:
        stream: Smart Turn's stream of this call.
        threshold: Probability below which a turn goes on.
        at_once: Whether Smart Turn runs as soon as it can be asked; else, on the same audio, after
            the transcript on which the reply is generated, from which it takes no processor then.
        longest_s: Silence after which a turn ends at the latest, in seconds.
    """

    def __init__(
        self,
        stream: Any,
        threshold: float,
        *,
        at_once: bool = False,
        longest_s: float = math.inf,
    ) -> None:
        self._stream, self._threshold, self._at_once = stream, threshold, at_once
        self._longest_s = longest_s
        self._waits = False
        self._later: list[rtc.AudioFrame] = []
        self._voice: VoiceProbability | None = None
        self._silence_s = math.inf  # until the first voice
        self._asked: asyncio.Future[TurnDetectionEvent] | None = None
        self._stopped_s = 0.0
        self._decoded = asyncio.Event()
        self._decoded.set()
        self._ends: asyncio.TimerHandle | None = None

    @property
    def model(self) -> str:
        """Name for LiveKit's metrics."""
        return str(self._stream.model)

    @property
    def provider(self) -> str:
        """Name for LiveKit's metrics."""
        return str(self._stream.provider)

    async def unlikely_threshold(self, language: LanguageCode | None) -> float | None:
        """Probability below which a turn goes on."""
        return self._threshold if await self.supports_language(language) else None

    async def supports_language(self, language: LanguageCode | None) -> bool:
        """Whether Smart Turn knows the language."""
        return bool(await self._stream.supports_language(language))

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        """Takes the caller's next audio; where the voice ceases, Smart Turn is to be asked."""
        if self._voice is None:
            self._voice = VoiceProbability(frame.sample_rate)
        for voice in self._voice(np.frombuffer(frame.data, np.int16)[:: frame.num_channels]):
            if voice >= (VAD_ENTER if math.isinf(self._silence_s) else VAD_LEAVE):
                self._silence_s = 0.0
                self._forget()
            else:
                self._silence_s += self._voice.window_s
        ceased = self._asked is None and SPOKEN_ASKED_AFTER_S <= self._silence_s < math.inf
        if self._waits and ceased and self._silence_s <= _LATER_S:
            self._later.append(frame)
            return
        self._hear_later()
        self._stream.push_audio(frame)
        if ceased and self._at_once:
            self._ask()
        self._waits = ceased and not self._at_once

    def push_event(self, event: stt.SpeechEvent) -> None:
        """Takes what the recogniser says of its speech, so that no transcript is forestalled."""
        if event.type is stt.SpeechEventType.START_OF_SPEECH:
            self._decoded.clear()
            if self._ends is not None:
                self._ends.cancel()
        elif event.type is stt.SpeechEventType.END_OF_SPEECH:
            self._ends = asyncio.get_running_loop().call_later(_TRANSCRIPT_S, self._decoded.set)
        elif self._waits and event.type is stt.SpeechEventType.PREFLIGHT_TRANSCRIPT:
            self._ask()

    def flush(self) -> None:
        """Ends the turn: what was heard is no part of the next."""
        self._forget()
        self._waits = False
        self._later.clear()
        self._silence_s = math.inf
        self._stream.flush()

    async def predict_end_of_turn(
        self, chat_ctx: llm.ChatContext, *, timeout: float | None = None
    ) -> float:
        """Returns the probability that the turn has ended, once so much silence has passed.

        LiveKit cancels it where the caller goes on speaking, and asks anew with each transcript.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._decoded.wait(), _UNDECODED_S)
        probability = await self._predicted()
        said = [each.text_content or "" for each in chat_ctx.messages() if each.role == "user"]
        ended, after_s = spoken_end(probability, said[-1] if said else "", self._threshold)
        if not ended:
            return min(probability, self._threshold / 2)
        until_s = self._stopped_s + min(after_s, self._longest_s)
        await asyncio.sleep(until_s - asyncio.get_running_loop().time())
        return probability

    async def _predicted(self) -> float:
        """What Smart Turn says of the last silence; its threshold where it does not answer."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _PREDICTION_S
        while (left_s := until_s - loop.time()) > 0:
            asked = self._asked or self._ask()
            await asyncio.wait([asked], timeout=left_s)
            if asked.done() and not asked.cancelled():
                return float(asked.result().end_of_turn_probability)
        return self._threshold

    def _ask(self) -> asyncio.Future[TurnDetectionEvent]:
        silence_s = 0.0 if math.isinf(self._silence_s) else self._silence_s
        self._stopped_s = asyncio.get_running_loop().time() - silence_s
        asked: asyncio.Future[TurnDetectionEvent] = self._stream.predict()
        self._asked = asked
        self._hear_later()
        return asked

    def _hear_later(self) -> None:
        """Gives Smart Turn what came since it was to be asked."""
        self._waits = False
        for frame in self._later:
            self._stream.push_audio(frame)
        self._later.clear()

    def _forget(self) -> None:
        if self._asked is not None:
            self._stream.cancel_inference()
            self._asked = None


class GradedDetector:
    """Hears an end where the first detector does, or the last one is sure of it.

    Args:
        members: LiveKit's detector and Smart Turn.
        threshold: Probability from which the first hears an end.
        grades: When the last is sure, and what an unsure answer waits for.
        asked_after_s: Silence after which they are asked, in seconds.
    """

    def __init__(
        self, members: tuple[Any, ...], threshold: float, grades: Grades, asked_after_s: float
    ) -> None:
        self._members, self.threshold, self.sure = members, threshold, grades.sure
        self.hold_s = grades.unsure_after_s - asked_after_s

    @property
    def model(self) -> str:
        """Name for LiveKit's metrics."""
        return ", ".join(member.model for member in self._members)

    @property
    def provider(self) -> str:
        """Name for LiveKit's metrics."""
        return str(self._members[0].provider)

    def stream(
        self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> GradedStream:
        """Returns a stream over all."""
        return GradedStream(
            self, tuple(member.stream(conn_options=conn_options) for member in self._members)
        )


class GradedStream:
    """The audio of one call to all members; it has the first one's languages."""

    def __init__(self, detector: GradedDetector, members: tuple[Any, ...]) -> None:
        self._detector, self._members = detector, members
        self._asked: asyncio.Task[TurnDetectionEvent] | None = None

    @property
    def model(self) -> str:
        """Name for LiveKit's metrics."""
        return self._detector.model

    @property
    def provider(self) -> str:
        """Name for LiveKit's metrics."""
        return self._detector.provider

    @property
    def is_fallback(self) -> bool:
        """Never: all run on this machine."""
        return False

    @property
    def prediction_timeout(self) -> float:
        """How long the session waits for a prediction, in seconds."""
        return float(self._members[0].prediction_timeout)

    async def unlikely_threshold(self, language: LanguageCode | None) -> float | None:
        """Probability below which a turn goes on."""
        return self._detector.threshold if await self.supports_language(language) else None

    async def backchannel_threshold(self, language: LanguageCode | None) -> float | None:
        """None: no member predicts backchannels."""
        return None

    async def supports_language(self, language: LanguageCode | None) -> bool:
        """Whether the first detector knows the language."""
        return bool(await self._members[0].supports_language(language))

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        """Gives all the next audio."""
        for member in self._members:
            member.push_audio(frame)

    def predict(self) -> asyncio.Future[TurnDetectionEvent]:
        """Asks whether the turn has ended; a prediction under way is superseded."""
        if self._asked is not None:
            self._asked.cancel()
        self._asked = asyncio.ensure_future(self._ask())
        return self._asked

    async def _ask(self) -> TurnDetectionEvent:
        loop = asyncio.get_running_loop()
        earliest_s = loop.time() + self._detector.hold_s
        events = await asyncio.gather(*(member.predict() for member in self._members))
        event: TurnDetectionEvent = events[0]
        first, last = (each.end_of_turn_probability for each in (event, events[-1]))
        threshold, sure = self._detector.threshold, self._detector.sure
        if first < threshold and last < sure:
            return event
        if first < threshold or last < sure:
            await asyncio.sleep(earliest_s - loop.time())
        heard = max(first if first >= threshold else last, threshold)
        return dataclasses.replace(event, end_of_turn_probability=heard)

    def cancel_inference(self, *, timed_out: bool = False) -> None:
        """Gives up a prediction under way."""
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None
        for member in self._members:
            member.cancel_inference(timed_out=timed_out)

    def flush(self, reason: str | None = None) -> None:
        """Ends the turn for all."""
        self.cancel_inference()
        for member in self._members:
            member.flush(reason)

    def end_input(self) -> None:
        """Takes no more audio."""
        for member in self._members:
            member.end_input()

    async def aclose(self) -> None:
        """Closes all."""
        self.cancel_inference()
        for member in self._members:
            await member.aclose()
