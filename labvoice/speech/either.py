"""A detector of the end of a turn that takes a second opinion where LiveKit's own hears no end.

v1-mini misses each third end, after which the caller waits the longer delay; Smart Turn hears most
of these. It is asked only then, and believed only where it is sure: the rest are often pauses.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Final

from livekit import rtc
from livekit.agents import LanguageCode
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions
from livekit.agents.voice.turn import TurnDetectionEvent

SURE: Final = 0.9
"""Probability from which Smart Turn is believed. Of 53 built-in turns v1-mini alone cuts in on 10,
with delays of 0.4 and 1.0 s, and misses 19 ends; with Smart Turn from 0.9 on 10 and 6, from 0.7 on
13 and 3 (`labvoice bench endpointing --offline`)."""


class EitherDetector:
    """Hears an end where the first detector does, or the second is sure of it.

    Args:
        first: LiveKit's detector.
        second: Asked where the first hears no end.
        threshold: Probability from which the first hears an end.
    """

    def __init__(self, first: Any, second: Any, threshold: float) -> None:
        self._first, self._second, self._threshold = first, second, threshold

    @property
    def model(self) -> str:
        """Name for LiveKit's metrics."""
        return f"{self._first.model}, {self._second.model}"

    @property
    def provider(self) -> str:
        """Name for LiveKit's metrics."""
        return str(self._first.provider)

    def stream(
        self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> EitherStream:
        """Returns a stream over both."""
        first = self._first.stream(conn_options=conn_options)
        return EitherStream(self, first, self._second.stream(), self._threshold)


class EitherStream:
    """The audio of one call to both detectors; it has the first one's threshold and languages."""

    def __init__(self, detector: EitherDetector, first: Any, second: Any, threshold: float) -> None:
        self._detector = detector
        self._first, self._second, self._threshold = first, second, threshold
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
        """Never: both run on this machine."""
        return False

    @property
    def prediction_timeout(self) -> float:
        """How long the session waits for a prediction, in seconds."""
        return float(self._first.prediction_timeout)

    async def unlikely_threshold(self, language: LanguageCode | None) -> float | None:
        """Probability below which a turn goes on."""
        return self._threshold if await self.supports_language(language) else None

    async def backchannel_threshold(self, language: LanguageCode | None) -> float | None:
        """None: neither predicts backchannels."""
        return None

    async def supports_language(self, language: LanguageCode | None) -> bool:
        """Whether the first detector knows the language."""
        return bool(await self._first.supports_language(language))

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        """Gives both the next audio."""
        self._first.push_audio(frame)
        self._second.push_audio(frame)

    def predict(self) -> asyncio.Future[TurnDetectionEvent]:
        """Asks whether the turn has ended; a prediction under way is superseded."""
        if self._asked is not None:
            self._asked.cancel()
        self._asked = asyncio.ensure_future(self._ask())
        return self._asked

    async def _ask(self) -> TurnDetectionEvent:
        event: TurnDetectionEvent = await self._first.predict()
        if event.end_of_turn_probability >= self._threshold:
            return event
        other = (await self._second.predict()).end_of_turn_probability
        if other < SURE:
            return event
        return dataclasses.replace(event, end_of_turn_probability=max(other, self._threshold))

    def cancel_inference(self, *, timed_out: bool = False) -> None:
        """Gives up a prediction under way."""
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None
        self._first.cancel_inference(timed_out=timed_out)
        self._second.cancel_inference(timed_out=timed_out)

    def flush(self, reason: str | None = None) -> None:
        """Ends the turn for both."""
        self.cancel_inference()
        self._first.flush(reason)
        self._second.flush(reason)

    def end_input(self) -> None:
        """Takes no more audio."""
        self._first.end_input()
        self._second.end_input()

    async def aclose(self) -> None:
        """Closes both."""
        self.cancel_inference()
        await self._first.aclose()
        await self._second.aclose()
