"""A detector of the end of a turn whose answer waits for more silence where it is less sure.

v1-mini misses each third end, after which the caller waits the longer delay; Smart Turn hears most
of these, and says by its probability how sure it is. Either alone or together they end a turn after
the shortest silence where all is clear, and after a longer one where it is not.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Final, NamedTuple

from livekit import rtc
from livekit.agents import LanguageCode
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions
from livekit.agents.voice.turn import TurnDetectionEvent


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
ALONE: Final = Grades(0.95, 0.45)
"""Of v1-mini with Smart Turn, and of Smart Turn alone. With delays of 0.3 and 0.8 s each cuts in on
12 of 53 built-in turns, at a mean delay of 0.40 s; LiveKit's defaults on 13, at 1.09 s. They were
chosen on these turns (`labvoice bench endpointing --offline`)."""


class GradedDetector:
    """Hears an end where the first detector does, or the last one is sure of it.

    Args:
        members: LiveKit's detector and Smart Turn, or Smart Turn alone.
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
