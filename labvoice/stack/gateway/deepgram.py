"""Deepgram's sockets over the lab's models: `/v1/listen` recognises, `/v1/speak` speaks.

Messages are those of https://developers.deepgram.com/reference, as livekit-plugins-deepgram 1.8.9
and Deepgram's own SDK read them.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import web

from labvoice.stack.gateway.engines import Engines, Recognition, Transcript, words_of
from labvoice.stack.gateway.openai import failure


class Deepgram:
    """The endpoints.

    Args:
        engines: What recognises and speaks.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    async def listen(self, request: web.Request) -> web.StreamResponse:
        """Recognises linear16 audio that comes in binary messages."""
        if request.query.get("encoding", "linear16") != "linear16":
            return failure(400, "only the encoding linear16 is served offline")
        if request.query.get("channels", "1") != "1":
            return failure(400, "only one channel is served offline")
        self._engines.note_model("stt", request.query.get("model"))
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        rate = int(request.query.get("sample_rate", 16000))
        recognition = Recognition(self._engines, rate)
        telling = asyncio.create_task(self._tell(socket, recognition, request.query))
        try:
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    recognition.push(message.data)
                    continue
                match _type_of(message):
                    case "Finalize":
                        recognition.flush()
                    case "CloseStream" | None:
                        break
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await recognition.aclose()
            with suppress(ConnectionError):
                await socket.close()
        return socket

    async def _tell(
        self, socket: web.WebSocketResponse, recognition: Recognition, query: Any
    ) -> None:
        request_id = uuid.uuid4().hex
        interim = query.get("interim_results", "false") == "true"
        async for transcript in recognition.transcripts():
            match transcript.kind:
                case "start":
                    if query.get("vad_events", "false") == "true":
                        stamp = {"timestamp": transcript.start_s, "channel": [0]}
                        await socket.send_json({"type": "SpeechStarted", **stamp})
                case "interim" | "preflight":
                    if interim:
                        await socket.send_json(_results(transcript, request_id, final=False))
                case "final" | "empty":
                    await socket.send_json(_results(transcript, request_id, final=True))
                    if "utterance_end_ms" in query:
                        end = {"channel": [0, 1], "last_word_end": transcript.end_s}
                        await socket.send_json({"type": "UtteranceEnd", **end})

    async def speak_socket(self, request: web.Request) -> web.StreamResponse:
        """Speaks the texts of `Speak` messages; `Flush` ends a segment."""
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self._engines.note_model("tts", request.query.get("model"))
        rate = int(request.query.get("sample_rate", 24000))
        texts: list[str] = []
        speaking: asyncio.Task[None] | None = None
        sequence = 0
        try:
            async for message in socket:
                match _type_of(message):
                    case "Speak":
                        texts.append(str(json.loads(message.data).get("text", "")))
                    case "Flush":
                        before, said, texts = speaking, texts, []
                        speaking = asyncio.create_task(
                            self._segment(socket, said, rate, sequence, before)
                        )
                        sequence += 1
                    case "Clear":
                        texts = []
                        if speaking is not None:
                            speaking.cancel()
                        await socket.send_json({"type": "Cleared", "sequence_id": sequence})
                    case "Close" | None:
                        break
        finally:
            if speaking is not None:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
            with suppress(ConnectionError):
                await socket.close()
        return socket

    async def _segment(
        self,
        socket: web.WebSocketResponse,
        texts: list[str],
        rate: int,
        sequence: int,
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)

        async def all_of() -> AsyncIterator[str]:
            for text in texts:
                yield text

        with suppress(ConnectionError):
            if texts:
                async for chunk in self._engines.speak(all_of(), rate):
                    await socket.send_bytes(chunk.tobytes())
            await socket.send_json({"type": "Flushed", "sequence_id": sequence})

    async def speak(self, request: web.Request) -> web.StreamResponse:
        """Speaks the text of a JSON body as raw linear16."""
        try:
            text = str((await request.json())["text"])
        except (ValueError, KeyError, TypeError):
            return failure(400, "the body needs `text`")
        self._engines.note_model("tts", request.query.get("model"))
        if request.query.get("encoding", "linear16") != "linear16":
            return failure(400, "only the encoding linear16 is served offline")
        samples = await self._engines.speak_whole(
            text, int(request.query.get("sample_rate", 24000))
        )
        return web.Response(body=samples.tobytes(), content_type="audio/l16")


def _type_of(message: aiohttp.WSMessage) -> str | None:
    """Returns the `type` of a JSON message; None for anything else."""
    if message.type != aiohttp.WSMsgType.TEXT:
        return None
    try:
        return str(json.loads(message.data)["type"])
    except (ValueError, KeyError, TypeError):
        return None


def _results(transcript: Transcript, request_id: str, *, final: bool) -> dict[str, Any]:
    words = [{**word, "punctuated_word": word["word"]} for word in words_of(transcript)]
    alternative = {"transcript": transcript.text, "confidence": 1.0, "words": words}
    return {
        "type": "Results",
        "channel_index": [0, 1],
        "is_final": final,
        "speech_final": final,
        "start": transcript.start_s,
        "duration": transcript.end_s - transcript.start_s,
        "channel": {"alternatives": [alternative]},
        "metadata": {"request_id": request_id},
    }
