"""The LiveKit Inference protocol of livekit-agents 1.8.9's `inference` clients.

Read in `livekit/agents/inference/{stt,tts,eot}.py`: JSON text frames for speech, protobuf for the
end of turn. A client sends `session.create` first, and is answered `session.created`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import aiohttp
import numpy as np
from aiohttp import web
from livekit.agents.inference.eot.languages import LOCAL_LANGUAGES
from livekit.local_inference import EOT
from livekit.protocol.agent_pb import agent_inference

from labvoice.stack.gateway.engines import (
    Engines,
    Recognition,
    Segments,
    Transcript,
    closing,
    words_of,
)

_EOT_WINDOW_S: Final = 1.2  # what the local model looks at; livekit/agents/inference/eot
_MESSAGE_TYPES: Final = {
    "interim": "interim_transcript",
    "preflight": "preflight_transcript",
    "final": "final_transcript",
    "empty": "final_transcript",
}


class Inference:
    """The three sockets."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    async def stt(self, request: web.Request) -> web.StreamResponse:
        """Recognises base64 audio from `input_audio` messages."""
        socket, create = await _open(request)
        if create is None:
            return socket
        self._engines.note_model("stt", request.query.get("model") or create.get("model"))
        session = _session_id(request)
        rate = int(create.get("settings", {}).get("sample_rate", 16000))
        await socket.send_json({"type": "session.created", "session_id": session})
        request_id = uuid.uuid4().hex

        async def send(transcript: Transcript) -> None:
            nonlocal request_id
            await socket.send_json(
                {"session_id": session, "request_id": request_id, **_content(transcript)}
            )
            if transcript.kind in ("final", "empty"):
                request_id = uuid.uuid4().hex

        async with closing(socket):
            async with Recognition(self._engines, rate, send) as recognition:
                async for message in _messages(socket):
                    match message["type"]:
                        case "input_audio":
                            recognition.push(base64.b64decode(message["audio"]))
                        case "session.finalize":  # also sent within a session: not its end
                            recognition.flush()
                            done = {"type": "session.finalized", "session_id": session}
                            await socket.send_json(done)
                        case "session.close":
                            break
            if not socket.closed:
                with suppress(ConnectionError):
                    await socket.send_json({"type": "session.closed", "session_id": session})
        return socket

    async def tts(self, request: web.Request) -> web.StreamResponse:
        """Speaks the texts of `input_transcript` messages; `session.flush` ends a segment.

        The client keeps the socket for further segments, and closes it if speech is interrupted.
        """
        socket, create = await _open(request)
        if create is None:
            return socket
        self._engines.note_model("tts", request.query.get("model") or create.get("model"))
        rate = int(create.get("sample_rate", 24000))
        await socket.send_json({"type": "session.created", "session_id": _session_id(request)})
        room_id = request.headers.get("X-LiveKit-Room-ID", "")

        async def speak(_: int, texts: AsyncIterator[str]) -> None:
            await self._segment(socket, texts, rate, room_id)

        async with closing(socket), Segments(speak) as segments:
            async for message in _messages(socket):
                match message["type"]:
                    case "input_transcript":
                        segments.add(message["transcript"])
                    case "session.flush":
                        segments.add(None)
                    case "session.close":
                        break
        return socket

    async def _segment(
        self, socket: web.WebSocketResponse, texts: AsyncIterator[str], rate: int, room_id: str
    ) -> None:
        """Synthesises one segment; each message names its session."""
        session = uuid.uuid4().hex
        asked_s: list[float] = []
        first_s: float | None = None

        async def incoming() -> AsyncIterator[str]:
            async for text in texts:
                asked_s.append(time.monotonic())
                yield text

        async def send(pcm: bytes) -> None:
            audio = base64.b64encode(pcm).decode()
            await socket.send_json({"type": "output_audio", "session_id": session, "audio": audio})

        try:
            async for chunk in self._engines.speak(incoming(), rate):
                first_s = first_s or time.monotonic()
                await send(chunk.tobytes())
            if first_s is None:  # a segment without audio counts as a failure and is retried
                await send(bytes(2 * (rate // 50)))
            await socket.send_json({"type": "done", "session_id": session})
        except ConnectionError:
            return
        except Exception as error:
            message = {"type": "error", "session_id": session, "message": str(error), "code": 500}
            await socket.send_json(message)
            return
        ttfb_s = first_s - asked_s[0] if first_s and asked_s else None
        self._engines.note_request("tts", room_id, ttfb_s=ttfb_s)

    async def eot(self, request: web.Request) -> web.StreamResponse:
        """Predicts the end of a turn by the SDK's own local model (v1-mini)."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._engines.note_model("eot", request.query.get("model"))
        model = await asyncio.to_thread(EOT)
        window, limit = np.zeros(0, np.int16), int(_EOT_WINDOW_S * 16000)
        latest: Any = None

        async def send(**fields: Any) -> None:
            message = agent_inference.ServerMessage(**fields)
            message.server_created_at.GetCurrentTime()
            await socket.send_bytes(message.SerializeToString())

        async for raw in socket:
            if raw.type != aiohttp.WSMsgType.BINARY:
                break
            message = agent_inference.ClientMessage.FromString(raw.data)
            match message.WhichOneof("message"):
                case "session_create":
                    limit = int(_EOT_WINDOW_S * message.session_create.settings.sample_rate)
                    created = agent_inference.SessionCreated(
                        default_thresholds=LOCAL_LANGUAGES,
                        default_threshold=LOCAL_LANGUAGES["en"],
                    )
                    await send(client_created_at=message.created_at, session_created=created)
                case "input_audio":
                    samples = np.frombuffer(message.input_audio.audio, np.int16)
                    window = np.concatenate([window, samples])[-limit:]
                    latest = message.input_audio.created_at
                case "session_flush":
                    window = np.zeros(0, np.int16)
                case "inference_start":
                    asked_s = time.monotonic()
                    probability = float(await asyncio.to_thread(model.predict, window))
                    took_ns = int((time.monotonic() - asked_s) * 1e9)
                    prediction = agent_inference.EotPrediction(probability=probability)
                    stats = prediction.inference_stats
                    stats.latest_client_created_at.CopyFrom(latest or message.created_at)
                    stats.server_e2e_latency.FromNanoseconds(took_ns)
                    stats.inference_duration.FromNanoseconds(took_ns)
                    await send(
                        request_id=message.inference_start.request_id,
                        client_created_at=message.created_at,
                        eot_prediction=prediction,
                    )
                case "session_close":
                    await send(session_closed=agent_inference.SessionClosed())
                    break
        await socket.close()
        return socket


def _content(transcript: Transcript) -> dict[str, Any]:
    if transcript.kind == "start":
        return {"type": "start_of_speech"}
    return {
        "type": _MESSAGE_TYPES[transcript.kind],
        "transcript": transcript.text,
        "language": "en",
        "confidence": 1.0,
        "start": transcript.start_s,
        "duration": transcript.end_s - transcript.start_s,
        "words": words_of(transcript),
    }


async def _open(request: web.Request) -> tuple[web.WebSocketResponse, dict[str, Any] | None]:
    """Accepts the socket and reads its `session.create`; returns None for another message."""
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in _messages(socket):
        if message["type"] == "session.create":
            return socket, message
        await socket.send_json(
            {"type": "error", "message": "send session.create first", "code": 400}
        )
        break
    await socket.close()
    return socket, None


async def _messages(socket: web.WebSocketResponse) -> AsyncIterator[dict[str, Any]]:
    """Yields JSON objects with a `type`; ends when the socket closes or sends anything else."""
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:
            return
        try:
            content = json.loads(message.data)
        except ValueError:
            return
        if not isinstance(content, dict) or "type" not in content:
            return
        yield content


def _session_id(request: web.Request) -> str:
    return request.headers.get("X-LiveKit-Session-ID") or uuid.uuid4().hex
