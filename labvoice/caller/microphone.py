"""The caller's microphone: sends frames in real time and records when each sample was sent."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from livekit import rtc

from labvoice.agent._livekit import send_frame
from labvoice.concurrency import cancel
from labvoice.errors import LabvoiceError, StageTimeoutError

SAMPLE_RATE_HZ = 48000
_FRAME_S = 0.01
_FRAME_SAMPLES = int(SAMPLE_RATE_HZ * _FRAME_S)
_MAX_LATE_S = 0.2
_LATE_KEPT = 1000
_PUBLISH_TIMEOUT_S = 10.0
REST_AFTER_S = 0.2
"""Silence after an utterance that is still sent: it ends the last packet of the speech."""
_ECHO_DELAY_S = 0.05
"""From the loudspeaker's queue to the microphone: 17 m of air, or a usual sound card."""
_ECHO_LONGEST_S = 0.5


@dataclass(eq=False)
class _Playing:
    samples: npt.NDArray[np.int16]
    first_voiced: int
    last_voiced: int
    done: asyncio.Future[tuple[float, float]]
    position: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0


class Microphone:
    """Publishes a microphone track: silence, and whatever is played into it.

    The source has no queue (`queue_size_ms=0`), so a sample has left the caller when
    `capture_frame` is called with it; with the default queue of 1 s it would only have been
    handed over.

    Args:
        on_frame: Called with every frame and the instant at which it left, in monotonic seconds.

    Attributes:
        background: Sound around the caller that goes on all the time, int16, shape (n,), at
            :data:`SAMPLE_RATE_HZ`; repeated from its end.
        echo_gain: Of what is heard in what is sent, as loudspeaker and microphone in one room have
            it; 0 for none.
        rests: Whether nothing is sent between two utterances, once somebody has subscribed to the
            track; set it before that is published. An agent that finds the end of a turn by the
            caller's silence hears none then.
        gaps: How often nothing was sent for so long (0.2 s) that the others heard a pause.
    """

    def __init__(
        self, on_frame: Callable[[npt.NDArray[np.int16], float], None] = lambda *_: None
    ) -> None:
        self._on_frame = on_frame
        self._source = rtc.AudioSource(SAMPLE_RATE_HZ, 1, queue_size_ms=0)
        self._waiting: deque[_Playing] = deque()
        self._task: asyncio.Task[None] | None = None
        self._late: deque[tuple[float, float]] = deque(maxlen=_LATE_KEPT)
        self.background: npt.NDArray[np.int16] = np.zeros(0, np.int16)
        self.echo_gain = 0.0
        self._echoes: dict[str, npt.NDArray[np.int16]] = {}
        self._around = 0
        self.rests = False
        self._subscribed: asyncio.Task[None] | None = None
        self._spoken_s = 0.0
        self._wanted = asyncio.Event()
        self.gaps = 0

    async def publish(self, room: rtc.Room) -> None:
        """Publishes the track and starts to send silence.

        Raises:
            StageTimeoutError: The server does not take the track in time.
        """
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        # DTX would drop silence, and with it the pauses that end a turn.
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False)
        try:
            async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
                publication = await room.local_participant.publish_track(track, options)
        except TimeoutError:
            raise StageTimeoutError(
                "mic_published", _PUBLISH_TIMEOUT_S, "the server did not accept the caller's track"
            ) from None
        if self.rests:
            self._subscribed = asyncio.create_task(publication.wait_for_subscription())
        self._task = asyncio.create_task(self._send(), name="labvoice-microphone")

    async def play(
        self, samples: npt.NDArray[np.int16], first_voiced: int, last_voiced: int
    ) -> tuple[float, float]:
        """Plays samples in real time.

        Args:
            samples: Mono, at :data:`SAMPLE_RATE_HZ`.
            first_voiced: Index of the first voiced sample.
            last_voiced: Index of the last voiced sample.

        Returns:
            When the first and the last voiced sample left, in monotonic seconds. It returns
            after the last sample of all.

        Raises:
            LabvoiceError: The microphone is not published, or it ended meanwhile.
        """
        if self._task is None or self._task.done():
            raise LabvoiceError(
                "the caller's microphone is not on", "connect the call first, and hang up last"
            )
        playing = _Playing(
            samples, first_voiced, last_voiced, asyncio.get_running_loop().create_future()
        )
        self._waiting.append(playing)
        self._wanted.set()
        try:
            return await playing.done
        finally:
            if playing in self._waiting:
                self._waiting.remove(playing)

    def hear(self, track: str, samples: npt.NDArray[np.int16], rate_hz: int) -> None:
        """Takes a frame that the loudspeaker plays, for its echo.

        Args:
            track: Id of its track.
            samples: Mono.
            rate_hz: Their rate, of which that of the microphone is a multiple.
        """
        if not self.echo_gain:
            return
        before = self._echoes.get(track)
        if before is None or not len(before):  # it begins, or a gap has used up the delay
            before = np.zeros(round(_ECHO_DELAY_S * SAMPLE_RATE_HZ), np.int16)
        echo = np.repeat(samples, SAMPLE_RATE_HZ // rate_hz) * self.echo_gain
        kept = round(_ECHO_LONGEST_S * SAMPLE_RATE_HZ)
        self._echoes[track] = np.concatenate([before, echo.astype(np.int16)])[-kept:]

    def _next_frame(self) -> npt.NDArray[np.int16]:
        frame = np.zeros(_FRAME_SAMPLES, np.int16)
        if self._waiting:
            playing = self._waiting[0]
            piece = playing.samples[playing.position : playing.position + _FRAME_SAMPLES]
            frame[: len(piece)] = piece
        if len(self.background):
            around = self.background.take(
                range(self._around, self._around + _FRAME_SAMPLES), mode="wrap"
            )
            self._around = (self._around + _FRAME_SAMPLES) % len(self.background)
            frame = _mixed(frame, around)
        for track, echo in self._echoes.items():
            frame = _mixed(frame, echo[:_FRAME_SAMPLES])
            self._echoes[track] = echo[_FRAME_SAMPLES:]
        return frame

    def _frame_left(self, at_s: float) -> None:
        if not self._waiting:
            return
        playing = self._waiting[0]
        begin, playing.position = playing.position, playing.position + _FRAME_SAMPLES
        if begin <= playing.first_voiced < playing.position:
            playing.started_s = at_s
        if begin <= playing.last_voiced < playing.position:
            playing.ended_s = at_s
        if playing.position >= len(playing.samples):
            self._waiting.popleft()
            self._spoken_s = at_s
            if not playing.done.done():
                playing.done.set_result((playing.started_s, playing.ended_s))

    async def _send(self) -> None:
        try:
            await self._send_frames()
        finally:
            for playing in self._waiting:
                if not playing.done.done():
                    playing.done.set_exception(
                        LabvoiceError("the caller's microphone ended while it spoke")
                    )

    async def _send_frames(self) -> None:
        due = self._spoken_s = time.monotonic()
        while True:
            if self._may_rest():
                self._wanted.clear()
                await self._wanted.wait()
                due = time.monotonic()
            data = self._next_frame()
            left_s = time.monotonic()
            await send_frame(
                self._source, rtc.AudioFrame(data.tobytes(), SAMPLE_RATE_HZ, 1, _FRAME_SAMPLES)
            )
            self._on_frame(data, left_s)
            self._frame_left(left_s)
            if left_s - due > _FRAME_S:
                self._late.append((left_s, left_s - due))
            due += _FRAME_S
            delay = due - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            elif delay < -_MAX_LATE_S:
                self.gaps += 1
                due = time.monotonic()  # after a stall, do not send a burst

    def _may_rest(self) -> bool:
        """Whether nothing needs to be sent until :meth:`play` is called."""
        if not self.rests or self._waiting or len(self.background) or self.echo_gain:
            return False
        heard = self._subscribed is not None and self._subscribed.done()
        return heard and time.monotonic() - self._spoken_s >= REST_AFTER_S

    def late_s(self, at_s: float, around_s: float) -> float:
        """Returns how late a frame was at most around an instant, in seconds; 0 if none was."""
        near = (late_s for left_s, late_s in self._late if abs(left_s - at_s) <= around_s)
        return max(near, default=0.0)

    async def aclose(self) -> None:
        """Stops sending."""
        tasks = [task for task in (self._task, self._subscribed) if task is not None]
        await cancel(*tasks)
        self._task = self._subscribed = None  # they keep their traceback, and so this microphone
        del tasks
        await self._source.aclose()


def _mixed(frame: npt.NDArray[np.int16], other: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Returns the sum, clipped; what the other lacks at its end is silence."""
    mixed = frame.astype(np.int32)
    mixed[: len(other)] += other
    return np.clip(mixed, -32768, 32767).astype(np.int16)
