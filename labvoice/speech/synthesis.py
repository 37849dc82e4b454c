"""The embedded synthesiser as a streaming LiveKit TTS that starts with the first clause."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from livekit import rtc
from livekit.agents import tts, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions

from labvoice.speech.clauses import ClauseCutter
from labvoice.speech.piper import Piper

_PCM = "audio/pcm"
# The voice takes 0.25 to 0.35 s a word; only used to estimate how much audio is buffered.
_WORD_S = 0.28
_URGENT_BELOW_S = 0.5


class PiperTTS(tts.TTS[Any]):
    """Speaks with a loaded :class:`~labvoice.speech.piper.Piper`.

    Args:
        voice: Shared by all streams; they take turns.
    """

    def __init__(self, voice: Piper) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True),
            sample_rate=voice.sample_rate,
            num_channels=1,
        )
        self._voice = voice
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="piper")

    @property
    def model(self) -> str:
        """Name for LiveKit's metrics."""
        return "piper-en_US-joe-medium"

    @property
    def provider(self) -> str:
        """Name for LiveKit's metrics."""
        return "embedded"

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        """Speaks one whole text."""
        return self._synthesize_with_stream(text, conn_options=conn_options)

    def stream(
        self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> _PiperStream:
        """Speaks text that is still being written."""
        return _PiperStream(tts=self, conn_options=conn_options)

    async def aclose(self) -> None:
        """Ends the thread; a chunk being computed is finished and discarded."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def speak_into(self, emitter: tts.AudioEmitter, text: str, *, first: bool) -> int:
        """Computes a text's audio off the event loop and emits it; returns the sample count."""
        chunks = self._voice.speak(text, cut_lead_in=first)
        loop = asyncio.get_running_loop()
        samples = 0
        while (chunk := await loop.run_in_executor(self._thread, next, chunks, None)) is not None:
            if not len(chunk):
                continue
            samples += len(chunk)
            # As a frame, because bytes are buffered until they fill frames of growing size.
            emitter.push_frame(rtc.AudioFrame(chunk.tobytes(), self.sample_rate, 1, len(chunk)))
        return samples


class _PiperStream(tts.SynthesizeStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        voice = self._tts
        assert isinstance(voice, PiperTTS)
        output_emitter.initialize(
            request_id=utils.shortuuid(),
            sample_rate=voice.sample_rate,
            num_channels=1,
            mime_type=_PCM,
            stream=True,
        )
        output_emitter.start_segment(segment_id=utils.shortuuid())
        ready = utils.aio.Chan[str]()
        cutting = asyncio.create_task(self._cut_input(ready))
        try:
            samples = 0
            async for clause in ready:
                self._mark_started()
                samples += await voice.speak_into(output_emitter, clause, first=not samples)
            if not samples:
                # LiveKit treats a text without audio as a failed request, and retries it.
                output_emitter.push(bytes(2 * (voice.sample_rate // 50)))
            await cutting
        finally:
            await utils.aio.cancel_and_wait(cutting)

    async def _cut_input(self, ready: utils.aio.Chan[str]) -> None:
        """Synthesises clauses while little audio is buffered, otherwise sentences."""
        cutter = ClauseCutter()
        served_until_s = 0.0
        try:
            async for piece in self._input_ch:
                if isinstance(piece, self._FlushSentinel):
                    done = cutter.flush()
                else:
                    urgent = served_until_s - time.monotonic() < _URGENT_BELOW_S
                    done = cutter.push(piece, urgent=urgent)
                for clause in done:
                    served_until_s = max(served_until_s, time.monotonic())
                    served_until_s += _WORD_S * len(clause.split())
                    ready.send_nowait(clause)
        finally:
            ready.close()
