"""What the caller hears: voice found on the samples, dated by their arrival."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from livekit import rtc

SAMPLE_RATE_HZ = 24000
_FRAME_MS = 10
_VOICED_RMS = 0.004
"""A 10 ms frame above this RMS (full scale 1.0, i.e. -48 dBFS) is voiced. What the agent's
track carries between two utterances is digital silence, coded: below -70 dBFS."""
_ONSET_FRAMES = 3
"""So many voiced frames in a row are voice, and the first of them dates it: a click is not."""
_HANGOVER_S = 0.4
"""Silence that ends a stretch of voice, in seconds; pauses between sentences are shorter."""

# A track that ends by itself, as a lost agent's does, is dropped by the SDK twice (livekit 1.1.21),
# which it would tell the user as a warning.
logging.getLogger("livekit").addFilter(
    lambda record: "drop unknown FFI handle" not in record.getMessage()
)


@dataclass
class Voice:
    """A stretch of voice.

    Attributes:
        start_s: Arrival of the frame with its first voiced sample, in monotonic seconds.
        end_s: Arrival of the frame with its last voiced sample so far.
        ended: Whether enough silence followed.
    """

    start_s: float
    end_s: float
    ended: bool = False


class Listener:
    """Listens to one remote audio track, 10 ms at a time.

    Args:
        on_change: Called when voice begins or ends.

    Attributes:
        voices: All stretches of voice, oldest first.
        started_s: Arrival of the first frame, in monotonic seconds; 0 before.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self.voices: list[Voice] = []
        self.started_s = 0.0
        self._frames: list[npt.NDArray[np.int16]] = []
        self._run_start_s = 0.0
        self._run = 0
        self._task: asyncio.Task[None] | None = None

    def listen(self, track: rtc.Track) -> None:
        """Begins to listen to a subscribed track, in place of the one before."""
        stream = rtc.AudioStream.from_track(
            track=track, sample_rate=SAMPLE_RATE_HZ, num_channels=1, frame_size_ms=_FRAME_MS
        )
        if self._task is not None:
            self._task.cancel()  # the track of an agent that was replaced
        self._task = asyncio.create_task(self._receive(stream), name="labvoice-listener")

    async def _receive(self, stream: rtc.AudioStream) -> None:
        try:
            async for event in stream:
                samples = np.frombuffer(event.frame.data, np.int16)
                if self.feed(samples.copy(), time.monotonic()):
                    self._on_change()
        finally:
            await stream.aclose()

    def feed(self, samples: npt.NDArray[np.int16], at_s: float) -> bool:
        """Takes one frame; returns whether voice began or ended with it.

        Args:
            samples: Mono, at :data:`SAMPLE_RATE_HZ`, 10 ms of them.
            at_s: Its arrival, in monotonic seconds.
        """
        if not self._frames:
            self.started_s = at_s
        self._frames.append(samples)
        rms = float(np.sqrt(np.mean(np.square(samples.astype(np.float32) / 32768))))
        current = self.voices[-1] if self.voices and not self.voices[-1].ended else None
        if rms > _VOICED_RMS:
            if current is not None:
                current.end_s = at_s
                return False
            if self._run == 0:
                self._run_start_s = at_s
            self._run += 1
            if self._run >= _ONSET_FRAMES:
                self._run = 0
                self.voices.append(Voice(self._run_start_s, at_s))
                return True
            return False
        self._run = 0
        if current is not None and at_s - current.end_s >= _HANGOVER_S:
            current.ended = True
            return True
        return False

    def onset_since(self, since_s: float) -> float | None:
        """Returns when voice was first heard at or after an instant; None if it was not."""
        return next((v.start_s for v in self.voices if v.start_s >= since_s), None)

    @property
    def silent(self) -> bool:
        """Whether no voice is being heard now."""
        return not self.voices or self.voices[-1].ended

    def audio(self, start_s: float = 0.0, end_s: float = float("inf")) -> npt.NDArray[np.int16]:
        """Returns what was received between two instants: mono, at :data:`SAMPLE_RATE_HZ`."""
        step = _FRAME_MS / 1000
        first = max(0, int((start_s - self.started_s) / step))
        last = len(self._frames)
        if end_s != float("inf"):
            last = min(last, int((end_s - self.started_s) / step) + 1)
        frames = self._frames[first:last]
        return np.concatenate(frames) if frames else np.zeros(0, np.int16)

    async def aclose(self) -> None:
        """Stops listening; what was heard stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
