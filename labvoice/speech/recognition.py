"""The embedded recogniser as a streaming LiveKit STT that decodes speculatively.

The preflight transcript is the one on which LiveKit generates the reply before the turn has ended.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents import LanguageCode, stt, utils
from livekit.agents.tokenize.basic import split_words
from livekit.agents.types import (
    DEFAULT_API_CONNECT_OPTIONS,
    NOT_GIVEN,
    APIConnectOptions,
    NotGivenOr,
)
from livekit.local_inference import VAD, VAD_WINDOW_SAMPLES

from labvoice.speech.moonshine import SAMPLE_RATE, Moonshine, Pcm

_WINDOW_S = VAD_WINDOW_SAMPLES / SAMPLE_RATE
_VOICED, _UNVOICED = 0.5, 0.35  # Silero's usual pair, with hysteresis
_WINDOWS_TO_START = 2
_PRE_ROLL_WINDOWS = 12
_SPECULATE_AFTER_S = 0.06
_FINAL_AFTER_S = 0.24
_SOON_FINAL_AFTER_S = 0.15
_INTERIM_EVERY_S = 0.6
_EARLY_EVERY_S = 0.16  # and never more than half of the time
_EARLY_AFTER_S = 0.9  # with the pre-roll; what interrupts an agent that speaks has done so by then
_EARLY_WORDS = 3
_EARLY_ASKS = 4
_LONGEST_S = 28.0  # Moonshine was trained on up to 30 s
_SHIFT = 320  # samples: a clip without words may have them in other frames (of 384 samples)
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMERALS = {word: str(number) for number, word in enumerate(_NUMBERS.split())}


class MoonshineSTT(stt.STT[Any]):
    """Recognises with a loaded :class:`~labvoice.speech.moonshine.Moonshine`.

    Args:
        model: Shared by all streams; they take turns.
        name: Name for LiveKit's metrics.
        early: Whether a preflight transcript may come while the caller still speaks.
        ended: Says of a transcript whether its turn may have ended: it is final after 0.15 instead
            of 0.24 s of silence. No transcript is where not given.
    """

    def __init__(
        self,
        model: Moonshine,
        name: str,
        *,
        early: bool = False,
        ended: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))
        self._moonshine = model
        self._name = name
        self.early = early
        self.ended = ended
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="moonshine")

    @property
    def model(self) -> str:
        """Name for LiveKit's metrics."""
        return self._name

    @property
    def provider(self) -> str:
        """Name for LiveKit's metrics."""
        return "embedded"

    async def transcribe(self, pcm: Pcm) -> str:
        """Recognises samples, shape (n,), at 16 kHz, off the event loop.

        Where nothing is found, they are heard once more after 20 ms of silence, which puts them in
        other frames of the model.
        """
        for heard in (pcm, np.pad(pcm, (_SHIFT, 0))):
            if text := await self.decode(heard, threading.Event(), []):
                return text
        return ""

    async def decode(self, pcm: Pcm, stop: threading.Event, draft: list[int]) -> str:
        """Recognises the speech so far, off the event loop.

        Args:
            pcm: Samples, shape (n,), at 16 kHz.
            stop: Ends the work early when set.
            draft: What was decoded of the beginning of this speech; kept up to date.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._decode, pcm, stop, draft)

    def _decode(self, pcm: Pcm, stop: threading.Event, draft: list[int]) -> str:
        tokens = self._moonshine.decode(pcm, stop, draft)
        if not stop.is_set() or len(tokens) > len(draft):
            draft[:] = tokens
        return self._moonshine.text(tokens)

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        frame = utils.merge_frames(buffer)
        frames = [frame]
        if frame.sample_rate != SAMPLE_RATE:
            resampler = rtc.AudioResampler(frame.sample_rate, SAMPLE_RATE)
            frames = [*resampler.push(frame), *resampler.flush()]
        text = await self.transcribe(np.concatenate([_samples(each) for each in frames]))
        return _event(stt.SpeechEventType.FINAL_TRANSCRIPT, text)

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> _MoonshineStream:
        """Returns a stream that recognises speech as it arrives."""
        return _MoonshineStream(stt=self, conn_options=conn_options, sample_rate=SAMPLE_RATE)

    async def aclose(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Preflights:
    """Says which transcripts of one speech are preflight transcripts.

    In silence each whose words are new is. Early, while the caller speaks, also the last one at the
    first moment without voice, and one whose words a second decode has confirmed: at most
    :data:`_EARLY_ASKS` of these, or one for two words, for each costs a request to the model.

    Args:
        early: Whether there are early ones.
    """

    def __init__(self, early: bool) -> None:
        self._early, self._asks = early, 0
        self._latest = self._asked = ""

    def decoded(self, text: str, *, speaking: bool) -> stt.SpeechEventType | None:
        """Returns what the transcript of a decode is; None where the preflight has its words."""
        confirmed = same_words(text, self._latest)
        self._latest = text
        if same_words(text, self._asked):
            return None
        if not speaking or (confirmed and self._ask_early()):
            self._asked = text
            return stt.SpeechEventType.PREFLIGHT_TRANSCRIPT
        self._asked = ""  # LiveKit gives that reply up
        return stt.SpeechEventType.INTERIM_TRANSCRIPT

    def paused(self) -> str:
        """Returns the transcript that becomes a preflight where the voice pauses; empty if none."""
        if same_words(self._latest, self._asked) or not self._ask_early():
            return ""
        self._asked = self._latest
        return self._asked

    def final(self, text: str) -> str:
        """Returns the final transcript: that of the preflight where the words are the same.

        LiveKit would generate another reply for another comma.
        """
        return self._asked if same_words(text, self._asked) else text

    def _ask_early(self) -> bool:
        words = len(split_words(self._latest))
        if not self._early or words < _EARLY_WORDS or self._asks >= max(_EARLY_ASKS, words // 2):
            return False
        self._asks += 1
        return True


def same_words(one: str, other: str) -> bool:
    """Returns whether two transcripts differ in nothing but case, punctuation and numerals."""
    words = (
        [
            _NUMERALS.get(word.casefold(), word.casefold())
            for word, _, _ in split_words(text, ignore_punctuation=True)
        ]
        for text in (one, other)
    )
    return one == other or next(words) == next(words)


class _Decode:
    """One running decode; abandoned if the speaker continues."""

    def __init__(self, recogniser: MoonshineSTT, pcm: Pcm, draft: list[int]) -> None:
        self._stop = threading.Event()
        self.task = asyncio.create_task(recogniser.decode(pcm, self._stop, draft))

    @property
    def abandoned(self) -> bool:
        return self._stop.is_set()

    def abandon(self) -> None:
        self._stop.set()


class _MoonshineStream(stt.RecognizeStream):
    """Finds segments of speech with its own VAD, and emits their transcripts.

    During speech it emits interim transcripts. The first silence starts a speculative decode, whose
    text is the preflight transcript and, if the silence lasts, the final one. Each decode starts
    from what the one before it has found. Early, it decodes as often as half of one processor
    allows, and the preflight transcript may come before the silence; see :class:`Preflights`.
    """

    async def _run(self) -> None:
        self._vad = VAD()
        self._before: deque[Pcm] = deque(maxlen=_PRE_ROLL_WINDOWS)
        self._speech: list[Pcm] = []
        self._draft: list[int] = []
        self._voiced_windows = 0
        self._silence_s = 0.0
        self._interim_at_s = 0.0
        self._took_s = 0.0
        recogniser = self._stt
        assert isinstance(recogniser, MoonshineSTT)
        self._recogniser = recogniser
        self._preflights = Preflights(recogniser.early)
        self._every_s = _EARLY_EVERY_S if recogniser.early else _INTERIM_EVERY_S
        self._interim: _Decode | None = None
        self._speculation: _Decode | None = None
        pending = np.zeros(0, np.int16)
        try:
            async for item in self._input_ch:
                if isinstance(item, self._FlushSentinel):
                    if self._speech:
                        await self._end_speech()
                    continue
                pending = np.concatenate([pending, _samples(item)])
                while len(pending) >= VAD_WINDOW_SAMPLES:
                    window, pending = np.split(pending, [VAD_WINDOW_SAMPLES])
                    await self._take(window, self._vad.predict(window))
        finally:
            self._abandon(self._interim, self._speculation)
            self._vad.close()

    async def _take(self, window: Pcm, voice: float) -> None:
        """Processes one window of samples with its probability of speech."""
        if not self._speech:
            self._before.append(window)
            self._voiced_windows = self._voiced_windows + 1 if voice >= _VOICED else 0
            if self._voiced_windows >= _WINDOWS_TO_START:
                self._speech = list(self._before)
                self._silence_s = 0.0
                self._interim_at_s = (
                    _EARLY_AFTER_S - _EARLY_EVERY_S if self._recogniser.early else 0.0
                )
                self._preflights = Preflights(self._recogniser.early)
                self._event_ch.send_nowait(_event(stt.SpeechEventType.START_OF_SPEECH))
            return
        self._speech.append(window)
        if voice >= _UNVOICED:
            self._silence_s = 0.0
            self._abandon(self._speculation)
            self._speculation = None
            self._consider_interim()
        else:
            if not self._silence_s and (text := self._preflights.paused()):
                self._event_ch.send_nowait(_event(stt.SpeechEventType.PREFLIGHT_TRANSCRIPT, text))
            self._silence_s += _WINDOW_S
            if self._silence_s >= _SPECULATE_AFTER_S and self._speculation is None:
                self._abandon(self._interim)
                self._speculation = self._decode(rest=True)
        if self._silence_s >= self._final_after_s() or self._length_s() >= _LONGEST_S:
            await self._end_speech()

    async def _end_speech(self) -> None:
        """Emits the end of speech and its final transcript."""
        ended_at = time.time() - self._silence_s
        self._abandon(self._interim)
        decode = self._speculation or self._started()
        length_s = self._length_s()
        # Audio after the speech may be the beginning of the next.
        self._before.extend(self._speech[-int(self._silence_s / _WINDOW_S) or len(self._speech) :])
        self._speech, self._speculation, self._voiced_windows = [], None, 0
        self._draft = []
        text = await decode.task
        event = partial(_event, ended_at=ended_at)
        self._event_ch.send_nowait(event(stt.SpeechEventType.END_OF_SPEECH))
        if text:
            text = self._preflights.final(text)
            self._event_ch.send_nowait(event(stt.SpeechEventType.FINAL_TRANSCRIPT, text))
        usage = stt.SpeechEvent(
            stt.SpeechEventType.RECOGNITION_USAGE,
            recognition_usage=stt.RecognitionUsage(audio_duration=length_s),
        )
        self._event_ch.send_nowait(usage)

    def _final_after_s(self) -> float:
        """Silence after which the transcript is final."""
        ended = self._recogniser.ended
        decode = self._speculation
        if ended is None or decode is None or not decode.task.done() or decode.task.exception():
            return _FINAL_AFTER_S
        return _SOON_FINAL_AFTER_S if ended(decode.task.result()) else _FINAL_AFTER_S

    def _consider_interim(self) -> None:
        idle = self._interim is None or self._interim.task.done()
        if idle and self._length_s() - self._interim_at_s >= max(self._every_s, 2 * self._took_s):
            self._interim_at_s = self._length_s()
            self._interim = self._decode()

    def _decode(self, *, rest: bool = False) -> _Decode:
        """Starts to decode the speech so far, and emits what comes of it.

        Args:
            rest: Whether the voice has ceased: the transcript is then a preflight.
        """
        decode = self._started()
        began_s = time.monotonic()
        preflights = self._preflights

        def done(task: asyncio.Task[str]) -> None:
            self._took_s = time.monotonic() - began_s
            if decode.abandoned or task.cancelled() or task.exception():
                return
            silent = rest or (self._recogniser.early and self._silence_s > 0)
            text = task.result()
            if text and (kind := preflights.decoded(text, speaking=not silent)):
                self._event_ch.send_nowait(_event(kind, text))

        decode.task.add_done_callback(done)
        return decode

    def _started(self) -> _Decode:
        return _Decode(self._recogniser, np.concatenate(self._speech), self._draft)

    def _length_s(self) -> float:
        return len(self._speech) * _WINDOW_S

    @staticmethod
    def _abandon(*decodes: _Decode | None) -> None:
        for decode in decodes:
            if decode is not None:
                decode.abandon()


def _event(
    kind: stt.SpeechEventType, text: str = "", *, ended_at: float | None = None
) -> stt.SpeechEvent:
    data = stt.SpeechData(language=LanguageCode("en"), text=text, confidence=1.0)
    spoken = kind in (stt.SpeechEventType.START_OF_SPEECH, stt.SpeechEventType.END_OF_SPEECH)
    return stt.SpeechEvent(kind, alternatives=[] if spoken else [data], speech_end_time=ended_at)


def _samples(frame: rtc.AudioFrame) -> Pcm:
    return np.frombuffer(frame.data, np.int16)
