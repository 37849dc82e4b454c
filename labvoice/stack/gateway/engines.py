"""The engines behind the gateway: one recogniser, one voice, one language model for all calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from aiohttp import web
from livekit import rtc
from livekit.agents import stt, tts

from labvoice.concurrency import cancel

Pcm = npt.NDArray[np.int16]
Service = Literal["stt", "tts", "llm", "eot"]

_KEPT_REQUESTS: Final = 2000


@dataclass(frozen=True)
class Disturbance:
    """What a model does wrong on purpose.

    Attributes:
        delay_s: How much later it begins to answer, in seconds.
        status: HTTP status with which it refuses every request; None if it answers.
    """

    delay_s: float = 0.0
    status: int | None = None


@dataclass
class Engines:
    """The engines and the record of their requests.

    Attributes:
        recogniser: Recogniser of all streams, one at a time.
        voice: Synthesiser of all streams.
        llm_url: Address of the language model, OpenAI-compatible, ending in `/v1`.
        llm_model: Model name to send there; None: the requested name.
        llm_key: Key for that address; None if it needs none.
        disturbances: Delays and refusals on purpose, by service.
    """

    recogniser: stt.STT[Any]
    voice: tts.TTS[Any]
    llm_url: str
    llm_model: str | None
    llm_key: str | None = None
    disturbances: dict[Service, Disturbance] = field(default_factory=dict)
    _stands_for: dict[str, dict[str, str]] = field(default_factory=dict)
    _refused: dict[str, int] = field(default_factory=dict)
    _requests: list[dict[str, Any]] = field(default_factory=list)

    def note_model(self, service: Service, asked: str | None) -> None:
        """Records a requested model name and the model that answers instead."""
        answering = {
            "stt": self.recogniser.model,
            "tts": self.voice.model,
            "llm": self.llm_model or asked or "",
            "eot": "v1-mini",
        }[service]
        self._stands_for.setdefault(service, {})[asked or "(not named)"] = answering

    def note_refusal(self, path: str) -> None:
        """Counts a request for a path that is not served."""
        self._refused[path] = self._refused.get(path, 0) + 1

    def note_request(self, service: Service, room_id: str, **figures: float | str | None) -> None:
        """Records the figures of one answered request."""
        self._requests.append({"service": service, "room_id": room_id, **figures})
        del self._requests[:-_KEPT_REQUESTS]

    def report(self) -> dict[str, Any]:
        """Returns the record: `models` by service, `refused` paths, `requests`."""
        return {
            "models": self._stands_for,
            "refused": self._refused,
            "requests": self._requests,
        }

    async def delay(self, service: Service) -> None:
        """Waits as long as a model is to be late."""
        if disturbance := self.disturbances.get(service):
            await asyncio.sleep(disturbance.delay_s)

    async def transcribe(self, samples: Pcm, rate: int) -> str:
        """Recognises a whole recording, shape (n,)."""
        await self.delay("stt")
        frame = rtc.AudioFrame(samples.tobytes(), rate, 1, len(samples))
        event = await self.recogniser.recognize(frame)
        return event.alternatives[0].text if event.alternatives else ""

    async def speak(self, texts: AsyncIterator[str], rate: int) -> AsyncIterator[Pcm]:
        """Synthesises a stream of texts at a sample rate in Hz; yields samples, shape (n,)."""
        resampler = (
            rtc.AudioResampler(self.voice.sample_rate, rate)
            if rate != self.voice.sample_rate
            else None
        )
        await self.delay("tts")
        async with self.voice.stream() as stream:

            async def feed() -> None:
                async for text in texts:
                    stream.push_text(text)
                stream.end_input()

            feeding = asyncio.create_task(feed())
            try:
                async for audio in stream:
                    for frame in resampler.push(audio.frame) if resampler else [audio.frame]:
                        yield np.frombuffer(frame.data, np.int16)
                await feeding
                for frame in resampler.flush() if resampler else []:
                    yield np.frombuffer(frame.data, np.int16)
            finally:
                await cancel(feeding)

    async def speak_text(self, text: str, rate: int) -> AsyncIterator[Pcm]:
        """Synthesises one text; yields samples, shape (n,)."""

        async def once() -> AsyncIterator[str]:
            yield text

        async with aclosing(self.speak(once(), rate)) as audio:  # type: ignore[type-var]
            async for chunk in audio:
                yield chunk

    async def speak_whole(self, text: str, rate: int) -> Pcm:
        """Synthesises one whole text; returns samples, shape (n,)."""
        chunks = [chunk async for chunk in self.speak_text(text, rate)]
        return np.concatenate(chunks) if chunks else np.zeros(0, np.int16)


@dataclass
class Transcript:
    """One event of a recogniser, in stream time.

    Attributes:
        kind: `start` of speech, an `interim`, `preflight` or `final` transcript, or `empty` if
            speech ended without recognised words.
        start_s: When the stretch of speech began, in seconds of the stream.
        end_s: When it ended, so far.
    """

    kind: Literal["start", "interim", "preflight", "final", "empty"]
    text: str = ""
    start_s: float = 0.0
    end_s: float = 0.0


_KINDS: Final = {
    stt.SpeechEventType.INTERIM_TRANSCRIPT: "interim",
    stt.SpeechEventType.PREFLIGHT_TRANSCRIPT: "preflight",
    stt.SpeechEventType.FINAL_TRANSCRIPT: "final",
}
_PRE_ROLL_S: Final = 0.45
"""Longest delay of a start-of-speech event after the actual start, in seconds."""
_TAIL_S: Final = 0.24
"""Silence after which the embedded recogniser ends a stretch of speech, for engines that do not
report the time of the end."""


class Recognition:
    """One stream of audio being recognised, until the `async with` block is left.

    Args:
        engines: What recognises.
        rate: Sample rate of the audio, in Hz.
        send: Called with each event, in order.
    """

    def __init__(
        self, engines: Engines, rate: int, send: Callable[[Transcript], Awaitable[None]]
    ) -> None:
        self._engines = engines
        self._send = send
        self._rate = rate
        self._stream = engines.recogniser.stream()
        self._pushed = 0

    @property
    def heard_s(self) -> float:
        """Audio received so far, in seconds."""
        return self._pushed / self._rate

    def push(self, pcm: bytes) -> None:
        """Adds 16-bit mono samples."""
        pcm = pcm[: len(pcm) // 2 * 2]
        if pcm:
            self._pushed += len(pcm) // 2
            self._stream.push_frame(rtc.AudioFrame(pcm, self._rate, 1, len(pcm) // 2))

    def flush(self) -> None:
        """Ends the current stretch of speech."""
        self._stream.flush()

    async def transcripts(self) -> AsyncIterator[Transcript]:
        """Yields events as they occur."""
        start_s = last_end_s = 0.0
        end_s: float | None = None
        async for event in self._stream:
            now_s = self.heard_s
            if event.type == stt.SpeechEventType.START_OF_SPEECH:
                start_s = max(last_end_s, now_s - _PRE_ROLL_S)
                yield Transcript("start", "", start_s, now_s)
            elif event.type == stt.SpeechEventType.END_OF_SPEECH:
                ended = event.speech_end_time
                end_s = now_s - (time.time() - ended if ended else _TAIL_S)
            elif event.type in _KINDS and event.alternatives:
                kind: Any = _KINDS[event.type]
                text = event.alternatives[0].text
                until_s = end_s if kind == "final" and end_s is not None else now_s
                until_s = max(start_s + 0.05, until_s)
                if kind == "final":
                    await self._engines.delay("stt")
                yield Transcript(kind, text, start_s, until_s)
                if kind == "final":
                    end_s, last_end_s = None, until_s
            elif event.type == stt.SpeechEventType.RECOGNITION_USAGE and end_s is not None:
                yield Transcript("empty", "", start_s, end_s)
                end_s = None

    async def _send_all(self) -> None:
        async for transcript in self.transcripts():
            await self._send(transcript)

    async def __aenter__(self) -> Self:
        self._sending = asyncio.create_task(self._send_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._sending)
        await self._stream.aclose()


class Segments:
    """Segments of text that are spoken one after another, until the `async with` block is left.

    Args:
        speak: Speaks one segment: its number, from 0, and its texts as they arrive.
    """

    def __init__(self, speak: Callable[[int, AsyncIterator[str]], Awaitable[None]]) -> None:
        self._speak = speak
        self._texts: asyncio.Queue[str | None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def count(self) -> int:
        """How many have begun."""
        return len(self._tasks)

    def add(self, text: str | None) -> None:
        """Adds a text to the current segment; None ends it."""
        if self._texts is None:
            self._texts = asyncio.Queue()
            self._tasks.append(asyncio.create_task(self._next(self.count, self._texts)))
        self._texts.put_nowait(text)
        if text is None:
            self._texts = None

    async def _next(self, number: int, queue: asyncio.Queue[str | None]) -> None:
        async def texts() -> AsyncIterator[str]:
            while (text := await queue.get()) is not None:
                yield text

        if number:
            await asyncio.gather(self._tasks[number - 1], return_exceptions=True)
        with suppress(ConnectionError):
            await self._speak(number, texts())

    def clear(self) -> None:
        """Ends all segments unspoken."""
        self._texts = None
        for task in self._tasks:
            task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(*self._tasks)


@asynccontextmanager
async def closing(socket: web.WebSocketResponse) -> AsyncIterator[None]:
    """Closes a socket at the end of the block, also one whose client has gone."""
    try:
        yield
    finally:
        with suppress(ConnectionError):
            await socket.close()


def words_of(transcript: Transcript) -> list[dict[str, Any]]:
    """Returns the words with times that share the stretch of speech evenly, in seconds."""
    words = transcript.text.split()
    each_s = (transcript.end_s - transcript.start_s) / max(1, len(words))
    return [
        {
            "word": word,
            "start": transcript.start_s + index * each_s,
            "end": transcript.start_s + (index + 1) * each_s,
            "confidence": 1.0,
        }
        for index, word in enumerate(words)
    ]
