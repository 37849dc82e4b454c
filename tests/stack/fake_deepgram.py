"""What Deepgram's two WebSockets and its list of projects answer, for tests without a key.

It recognises nothing: whatever was spoken before a pause is told as :data:`HEARD`. It speaks one
recording for every text. Messages are those of https://developers.deepgram.com/reference.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
from aiohttp import WSMsgType, web

from labvoice.caller.microphone import SAMPLE_RATE_HZ
from labvoice.speech.utterances import Utterance
from labvoice.stack.processes import free_port

KEY = "dg-a-key-of-the-test"
HEARD = "Which bus goes to the city centre?"
_LOUD = 500  # of a 16-bit sample; what the caller's microphone sends between words is silence
_PAUSE_S = 0.3
_SPOKEN_RATE_HZ = 24000
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeDeepgram:
    """A server that knows one key.

    Args:
        recording: What it says for every text.

    Attributes:
        base_url: Its address as `DEEPGRAM_BASE_URL`.
        refused: How many requests came without the key.
        said: Texts that it was asked to speak, oldest first.
    """

    def __init__(self, recording: Utterance) -> None:
        self._recording = recording.samples[:: SAMPLE_RATE_HZ // _SPOKEN_RATE_HZ].tobytes()
        self._port = free_port()
        self.base_url = f"http://127.0.0.1:{self._port}"
        self.refused = 0
        self.said: list[str] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeDeepgram]:
        """Answers until the block ends."""
        app = web.Application(middlewares=[self._only_with_key])
        app.router.add_get("/v1/listen", self._listen)
        app.router.add_get("/v1/speak", self._speak)
        app.router.add_get("/v1/projects", _projects)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            yield self
        finally:
            await runner.cleanup()

    @web.middleware
    async def _only_with_key(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Token {KEY}":
            self.refused += 1
            raise web.HTTPUnauthorized(text=json.dumps({"err_code": "INVALID_AUTH"}))
        return await handler(request)

    async def _listen(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        rate_hz = int(request.query["sample_rate"])
        speaking, silent_s = False, 0.0
        async for message in socket:
            if message.type != WSMsgType.BINARY:
                continue  # KeepAlive, Finalize, CloseStream
            samples = np.frombuffer(message.data, np.int16)
            if np.abs(samples.astype(np.int32)).max(initial=0) > _LOUD:
                if not speaking:
                    await socket.send_json({"type": "SpeechStarted"})
                speaking, silent_s = True, 0.0
                continue
            silent_s += len(samples) / rate_hz
            if speaking and silent_s >= _PAUSE_S:
                speaking = False
                await socket.send_json(_result(HEARD))
        return socket

    async def _speak(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        words: list[str] = []
        async for message in socket:
            asked = json.loads(message.data)
            if asked["type"] == "Speak":
                words.append(asked["text"].strip())
            elif asked["type"] == "Flush" and words:
                self.said.append(" ".join(words))
                words = []
                await socket.send_bytes(self._recording)
                await socket.send_json({"type": "Flushed", "sequence_id": 0})
            elif asked["type"] == "Close":
                break
        return socket


async def _projects(_: web.Request) -> web.Response:
    return web.json_response({"projects": []})


def _result(text: str) -> dict[str, object]:
    words = [
        {"word": word, "punctuated_word": word, "start": 0.0, "end": 0.1, "confidence": 1.0}
        for word in text.split()
    ]
    return {
        "type": "Results",
        "is_final": True,
        "speech_final": True,
        "metadata": {"request_id": "test"},
        "start": 0.0,
        "duration": 1.0,
        "channel": {"alternatives": [{"transcript": text, "confidence": 1.0, "words": words}]},
    }
