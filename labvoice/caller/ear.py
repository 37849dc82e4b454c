"""Detects voice in the received audio, dated by the arrival of its samples.

The rule is that of :mod:`labvoice.speech.detection`, by which the end of the caller's own speech
is found: LiveKit's voice detector says that there is speech, and the levels of 10 ms frames say
where it begins and ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from livekit import rtc

from labvoice.agent._livekit import wake_for_own_frames
from labvoice.concurrency import cancel
from labvoice.speech.detection import (
    CLEAR_RATIO,
    LOOK_BACK_S,
    NOISE_RATIO,
    PEAK_RATIO,
    VAD_ENTER,
    VAD_LEAVE,
    HighPass,
    VoiceProbability,
    frame_levels,
    resample,
    voiced_runs,
)

SAMPLE_RATE_HZ = 24000
_FRAME_MS = 10
_FRAME_S = _FRAME_MS / 1000
_FRAME_SAMPLES = SAMPLE_RATE_HZ * _FRAME_MS // 1000
_TAKEN_MS = 50
"""What the SDK hands over at once: each time costs as much as the detection in it."""
_FAINT_RMS = 0.001
"""A 10 ms frame below this RMS (full scale 1.0, i.e. -60 dBFS) is not voiced. What the agent's
track carries between two utterances is digital silence, coded: below -70 dBFS."""
_DIGITAL_SILENCE_RMS = 0.0003
_LEAST_HEARD_S = 5.0
_SILENT_SHARE = 0.05
"""A track whose frames are below -70 dBFS for less than this share of the time, of 5 s or more, is
never silent."""
_SOUND_RMS = 0.004
_SOUND_S = 0.15
"""What the detector does not take for speech, a tone or a laugh, is heard as voice as well when it
is that loud (-48 dBFS), stands out of the silence before it, and lasts so long, in seconds."""
_SOUND_RATIO = 10.0
_HANGOVER_S = 0.4
"""Silence that ends a segment of voice, in seconds; pauses between sentences are shorter."""
_SPEECH_LASTS_S = 0.3
"""How long after the detector's last speech a loud frame is still speech, in seconds."""
_LOOK_BACK = round((LOOK_BACK_S + 0.064) / _FRAME_S)  # and two windows of the detector's
_CLOSURE_FRAMES = 11
"""Silence inside the beginning of a word: a stop consonant's closure lasts 0.1 s at most."""
_HIDDEN_FRAMES = 10
"""Speech whose levels do not stand out of the noise is dated by the detector alone, when it is sure
for so many frames."""
_UNCERTAIN_S = 0.06
_NEAR_RATIO = 10.0
"""Noise less than 20 dB below the loudest speech may hide all that the look-back spans; what is
further below has moved no onset by more than 60 ms (7 human voices in LiveKit's hold music)."""
_NOISE_FRAMES = 200
_LEAST_NOISE_FRAMES = 30
_NOISE_QUANTILE = 0.75

# A track that ends by itself, as a lost agent's does, is dropped by the SDK twice (livekit 1.1.21),
# which it would tell the user as a warning.
logging.getLogger("livekit").addFilter(
    lambda record: "drop unknown FFI handle" not in record.getMessage()
)


@dataclass
class Voice:
    """A segment of voice.

    Attributes:
        start_s: Arrival of the frame with its first voiced sample, in monotonic seconds.
        end_s: Arrival of the frame with its last voiced sample so far.
        ended: Whether enough silence followed.
        loudest: The highest level of its frames so far, full scale 1.0.
        noise: The level of what was heard before it.
        speech: Whether the detector takes it for speech, not for another sound.
    """

    start_s: float
    end_s: float
    ended: bool = False
    loudest: float = field(default=0.0, repr=False)
    noise: float = field(default=0.0, repr=False)
    speech: bool = field(default=True, repr=False)

    @property
    def doubt(self) -> str:
        """Why its edges may be off by more than some 10 ms; empty if they are reliable."""
        if self.noise * CLEAR_RATIO <= self.loudest:
            return ""
        return f"there is noise only {20 * np.log10(self.loudest / self.noise):.0f} dB below it"

    @property
    def uncertainty_s(self) -> float:
        """How far its beginning may be off, in seconds; 0 if it is reliable."""
        if not self.doubt:
            return 0.0
        return LOOK_BACK_S if self.noise * _NEAR_RATIO > self.loudest else _UNCERTAIN_S

    @property
    def threshold(self) -> float:
        """The level that its frames reach."""
        return max(_FAINT_RMS, PEAK_RATIO * self.loudest, NOISE_RATIO * self.noise)


class Listener:
    """Listens to one remote audio track, 50 ms at a time, and dates its voice to 10 ms.

    Args:
        on_change: Called when voice begins or ends.
        on_frame: Called with what arrived: the id of its track, its samples, and the arrival of
            the first 10 ms of them in monotonic seconds.

    Attributes:
        voices: All segments of voice, oldest first.
    """

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        on_frame: Callable[[str, npt.NDArray[np.int16], float], None] = lambda *_: None,
    ) -> None:
        self._on_change = on_change
        self._on_frame = on_frame
        self.voices: list[Voice] = []
        self._count = 0
        self._arrived_s: deque[float] = deque(maxlen=_LOOK_BACK)
        self._high_pass = HighPass(SAMPLE_RATE_HZ)
        self._detector = VoiceProbability(SAMPLE_RATE_HZ)
        self._probability = 0.0
        self._spoken_s = float("-inf")
        self._levels: deque[float] = deque(maxlen=_LOOK_BACK)
        self._between: deque[float] = deque(maxlen=_NOISE_FRAMES)
        self._loud_frames = 0
        self._digital_silence = 0
        self._task: asyncio.Task[None] | None = None

    def listen(self, track: rtc.Track) -> None:
        """Begins to listen to a subscribed track."""
        stream = rtc.AudioStream.from_track(
            track=track, sample_rate=SAMPLE_RATE_HZ, num_channels=1, frame_size_ms=_TAKEN_MS
        )
        wake_for_own_frames(stream)
        self._task = asyncio.create_task(self._receive(track.sid, stream), name="labvoice-listener")

    async def _receive(self, track: str, stream: rtc.AudioStream) -> None:
        try:
            async for event in stream:
                samples, at_s = np.frombuffer(event.frame.data, np.int16).copy(), time.monotonic()
                first_s = at_s - len(samples) / SAMPLE_RATE_HZ + _FRAME_S
                self._on_frame(track, samples, first_s)
                self.feed(samples, at_s)
            self.finish()
        finally:
            await stream.aclose()

    def feed(self, samples: npt.NDArray[np.int16], at_s: float) -> None:
        """Takes frames of 10 ms.

        Args:
            samples: Mono, at :data:`SAMPLE_RATE_HZ`, one frame or several.
            at_s: Arrival of the last frame, in monotonic seconds.
        """
        frames = samples.reshape(-1, _FRAME_SAMPLES)
        levels = frame_levels(samples, self._high_pass(samples), _FRAME_SAMPLES)
        changed = False
        for before, frame, level in zip(
            reversed(range(len(frames))), frames, levels.tolist(), strict=True
        ):
            changed |= self._take(frame, level, at_s - before * _FRAME_S)
        if changed:
            self._on_change()

    def _take(self, samples: npt.NDArray[np.int16], level: float, at_s: float) -> bool:
        """Takes one frame; returns whether voice began or ended with it."""
        self._count += 1
        self._arrived_s.append(at_s)
        self._levels.append(level)
        self._digital_silence += level < _DIGITAL_SILENCE_RMS
        for probability in self._detector(samples):
            self._probability = probability
        if self._probability >= VAD_LEAVE:
            self._spoken_s = at_s
        current = self.voices[-1] if self.voices and not self.voices[-1].ended else None
        if current is None:
            return self._begins(level)
        speaks = not current.speech or at_s - self._spoken_s <= _SPEECH_LASTS_S
        hidden = bool(current.doubt) and self._probability >= VAD_LEAVE  # in the noise
        if speaks and (level >= current.threshold or hidden):
            current.end_s = at_s
            current.loudest = max(current.loudest, level)
        elif at_s - current.end_s >= _HANGOVER_S:
            current.ended = True
            self._levels.clear()  # what was before belongs to no other voice
            return True
        return False

    def finish(self) -> None:
        """No other frame comes: the voice in the track has ended."""
        if not self.silent:
            self.voices[-1].ended = True
            self._on_change()

    @property
    def never_silent(self) -> bool:
        """Whether something is heard all the time, as no voice alone is."""
        enough = self.heard_s >= _LEAST_HEARD_S
        return enough and self._digital_silence < _SILENT_SHARE * self._count

    def _begins(self, level: float) -> bool:
        """Returns whether voice has begun; its onset may be some frames earlier."""
        if self._probability < VAD_ENTER:
            self._speech_frames = 0
        if self._probability < VAD_ENTER and level < _SOUND_RMS:
            self._loud_frames = 0
            self._between.append(level)
            return False
        enough = len(self._between) >= _LEAST_NOISE_FRAMES
        noise = float(np.quantile(self._between, _NOISE_QUANTILE)) if enough else 0.0
        if self._probability >= VAD_ENTER:
            levels = np.array(self._levels)
            voice = Voice(0.0, self._arrived_s[-1], loudest=float(levels.max()), noise=noise)
            voiced = np.flatnonzero(voiced_runs(levels, voice.threshold, _FRAME_S))
            self._speech_frames += 1
            if len(voiced):
                # A key or a bird just before the voice is no part of it.
                apart = np.flatnonzero(np.diff(voiced) > _CLOSURE_FRAMES)
                onset = int(voiced[apart[-1] + 1 if len(apart) else 0]) - len(levels)
            elif self._speech_frames >= _HIDDEN_FRAMES:
                onset = -self._speech_frames
            else:
                return False
            voice.start_s = self._arrived_s[onset]
        elif enough and level >= _SOUND_RATIO * noise:
            self._loud_frames += 1
            if self._loud_frames * _FRAME_S < _SOUND_S:
                return False
            start_s = self._arrived_s[-self._loud_frames]
            voice = Voice(start_s, self._arrived_s[-1], loudest=level, noise=noise, speech=False)
        else:
            self._loud_frames = 0
            self._between.append(level)
            return False
        self._loud_frames = self._speech_frames = 0
        self.voices.append(voice)
        return True

    @property
    def heard_s(self) -> float:
        """Audio received so far, in seconds."""
        return self._count * _FRAME_S

    @property
    def silent(self) -> bool:
        """Whether there is no voice now."""
        return not self.voices or self.voices[-1].ended

    async def aclose(self) -> None:
        """Stops listening; nobody is told of changes any more."""
        if self._task is not None:
            await cancel(self._task)
            self._task = None  # it keeps its traceback, and so this listener
        self.close()
        self._on_change = lambda: None  # its owner, which has this listener

    def close(self) -> None:
        """Frees the detector."""
        self._detector.close()


def voices_in(samples: npt.NDArray[np.int16], rate: int) -> list[Voice]:
    """Returns the stretches of voice in a recorded track, in seconds from its first sample.

    Blocks for about a second a minute.

    Args:
        samples: Shape (n,), mono.
        rate: Samples per second.
    """
    listener = Listener()
    line = resample(samples, rate, SAMPLE_RATE_HZ)
    size = _FRAME_SAMPLES
    try:
        for number in range(len(line) // size):
            listener.feed(line[number * size : (number + 1) * size], number * _FRAME_S)
        listener.finish()
    finally:
        listener.close()
    return listener.voices
