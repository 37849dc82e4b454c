"""OpenAI's HTTP API over the lab's models: chat completions (forwarded), transcriptions, speech."""

from __future__ import annotations

import asyncio
import io
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import numpy as np
import soundfile
from aiohttp import web

from labvoice.proxies import http_session
from labvoice.stack.gateway.engines import Engines, Pcm

_SPEECH_RATE: Final = 24000  # what OpenAI's own `pcm` is
_FORMATS: Final = {
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
}


class OpenAI:
    """The HTTP endpoints.

    Args:
        engines: The speech engines, and the address of the language model.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._http: aiohttp.ClientSession | None = None

    async def client(self, _: web.Application) -> AsyncIterator[None]:
        """Keeps the connection to the language model for the application's lifetime."""
        async with http_session(self._engines.llm_url) as self._http:
            yield

    async def models(self, _: web.Request) -> web.Response:
        """Lists the one language model."""
        name = self._engines.llm_model or "default"
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "labvoice"}
        return web.json_response({"object": "list", "data": [entry]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Forwards a chat completion to the lab's language model, under that model's name."""
        assert self._http is not None
        try:
            body = await request.json()
            asked = body.get("model")
        except (ValueError, AttributeError):
            return failure(400, "the body is not a JSON object")
        if self._engines.llm_model is not None:
            body["model"] = self._engines.llm_model
        self._engines.note_model("llm", asked)
        headers = {}
        if self._engines.llm_key is not None:
            headers["Authorization"] = f"Bearer {self._engines.llm_key}"
        began_s, first_s = time.monotonic(), None
        await self._engines.delay("llm")
        try:
            async with self._http.post(
                f"{self._engines.llm_url}/chat/completions",
                json=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            ) as upstream:
                answer = web.StreamResponse(
                    status=upstream.status,
                    headers={
                        "Content-Type": upstream.headers.get("Content-Type", "application/json"),
                        "Cache-Control": "no-cache",
                        "X-LiveKit-Request-Id": uuid.uuid4().hex,
                    },
                )
                await answer.prepare(request)
                async for data in upstream.content.iter_any():
                    first_s = first_s or time.monotonic()
                    await answer.write(data)  # fails when the client has gone: upstream closes too
                await answer.write_eof()
        except aiohttp.ClientConnectorError as error:
            return failure(502, f"the language model cannot be reached: {error}")
        room_id = request.headers.get("X-LiveKit-Room-ID", "")
        ttfb_s = first_s - began_s if first_s else None
        self._engines.note_request("llm", room_id, ttfb_s=ttfb_s)
        return answer

    async def transcribe(self, request: web.Request) -> web.Response:
        """Recognises an uploaded recording (multipart, like OpenAI's API)."""
        form = await request.post()
        upload = form.get("file")
        if not isinstance(upload, web.FileField):
            return failure(400, "the form has no `file`")
        self._engines.note_model("stt", str(form.get("model") or "") or None)
        data = io.BytesIO(upload.file.read())
        try:
            samples, rate = await asyncio.to_thread(
                soundfile.read, data, dtype="int16", always_2d=True
            )
        except soundfile.LibsndfileError as error:
            return failure(400, f"the recording cannot be read: {error}")
        text = await self._engines.transcribe(np.ascontiguousarray(samples[:, 0]), rate)
        match form.get("response_format", "json"):
            case "text":
                return web.Response(text=text)
            case "verbose_json":
                seconds = len(samples) / rate
                segment = {"id": 0, "start": 0.0, "end": seconds, "text": text}
                content: dict[str, Any] = {
                    "task": "transcribe",
                    "language": "english",
                    "duration": seconds,
                    "text": text,
                    "segments": [segment] if text else [],
                }
                return web.json_response(content)
            case "json":
                return web.json_response({"text": text})
            case other:
                return failure(400, f"response_format {other!r} is not served offline")

    async def speak(self, request: web.Request) -> web.StreamResponse:
        """Synthesises a text; `pcm` is streamed, other formats are sent whole."""
        try:
            body = json.loads(await request.text())
            text, form = str(body["input"]), body.get("response_format", "mp3")
        except (ValueError, KeyError, TypeError):
            return failure(400, "the body needs `input`")
        self._engines.note_model("tts", body.get("model"))
        if form == "pcm":
            return await self._stream_pcm(request, text)
        if form not in _FORMATS:
            return failure(400, f"response_format {form!r} is not served offline")
        rate = 48000 if form == "opus" else _SPEECH_RATE
        samples = await self._engines.speak_whole(text, rate)
        container, subtype, content_type = _FORMATS[form]
        data = await asyncio.to_thread(_encode, samples, rate, container, subtype)
        return web.Response(body=data, content_type=content_type)

    async def _stream_pcm(self, request: web.Request, text: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
        await answer.prepare(request)
        async for chunk in self._engines.speak_text(text, _SPEECH_RATE):
            await answer.write(chunk.tobytes())
        await answer.write_eof()
        return answer


def _encode(samples: Pcm, rate: int, container: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def failure(status: int, message: str) -> web.Response:
    """Returns an error in the form that OpenAI's clients read."""
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error", "code": None}},
        status=status,
    )
