"""Deepgram's sockets over the lab's models: `/v1/listen` recognises, `/v1/speak` speaks.

Messages are those of https://developers.deepgram.com/reference, as livekit-plugins-deepgram 1.8.9
and Deepgram's own SDK read them.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from labvoice.stack.gateway.engines import (
    Engines,
    Recognition,
    Segments,
    Transcript,
    closing,
    words_of,
)
from labvoice.stack.gateway.openai import failure


class Deepgram:
    """The endpoints."""

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
        send = functools.partial(_send, socket, request.query, uuid.uuid4().hex)
        async with closing(socket), Recognition(self._engines, rate, send) as recognition:
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    recognition.push(message.data)
                    continue
                match _type_of(message):
                    case "Finalize":
                        recognition.flush()
                    case "CloseStream" | None:
                        break
        return socket

    async def speak_socket(self, request: web.Request) -> web.StreamResponse:
        """Speaks the texts of `Speak` messages; `Flush` ends a segment."""
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self._engines.note_model("tts", request.query.get("model"))
        rate = int(request.query.get("sample_rate", 24000))

        async def speak(number: int, texts: AsyncIterator[str]) -> None:
            # Speaks from the flush on, as Deepgram does.
            if text := "".join([text async for text in texts]):
                async for chunk in self._engines.speak_text(text, rate):
                    await socket.send_bytes(chunk.tobytes())
            await socket.send_json({"type": "Flushed", "sequence_id": number})

        async with closing(socket), Segments(speak) as segments:
            async for message in socket:
                match _type_of(message):
                    case "Speak":
                        segments.add(str(json.loads(message.data).get("text", "")))
                    case "Flush":
                        segments.add(None)
                    case "Clear":
                        segments.clear()
                        cleared = {"type": "Cleared", "sequence_id": segments.count}
                        await socket.send_json(cleared)
                    case "Close" | None:
                        break
        return socket

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


async def _send(
    socket: web.WebSocketResponse, query: Any, request_id: str, transcript: Transcript
) -> None:
    match transcript.kind:
        case "start":
            if query.get("vad_events", "false") == "true":
                stamp = {"timestamp": transcript.start_s, "channel": [0]}
                await socket.send_json({"type": "SpeechStarted", **stamp})
        case "interim" | "preflight":
            if query.get("interim_results", "false") == "true":
                await socket.send_json(_results(transcript, request_id, final=False))
        case "final" | "empty":
            await socket.send_json(_results(transcript, request_id, final=True))
            if "utterance_end_ms" in query:
                end = {"channel": [0, 1], "last_word_end": transcript.end_s}
                await socket.send_json({"type": "UtteranceEnd", **end})


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
