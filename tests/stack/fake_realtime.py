"""OpenAI's Realtime protocol with no model: it waits for the end of speech, and plays a recording.

Messages are those that livekit-agents 1.8.9 reads (`livekit/agents/llm/_realtime/openai.py`). The
end of speech is found by level alone.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web

from labvoice.stack.processes import free_port

RATE = 24000  # of OpenAI's `audio/pcm`
HEARD = "what the model heard"
_SILENCE_S = 0.5
_LOUD = 300
_CHUNK = RATE // 10


class FakeRealtime:
    """Answers every utterance with the same recording.

    Args:
        reply: What it says.
        samples: The recording, at 24 kHz.

    Attributes:
        base_url: Its address as `OPENAI_BASE_URL`.
        answered: How many utterances it has answered.
    """

    def __init__(self, reply: str, samples: np.ndarray[Any, np.dtype[np.int16]]) -> None:
        self._reply, self._samples = reply, samples
        self._port = free_port()
        self.base_url = f"http://127.0.0.1:{self._port}/v1"
        self.answered = 0
        app = web.Application()
        app.router.add_get("/v1/realtime", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=1)

    async def __aenter__(self) -> FakeRealtime:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        session = {"id": "sess_1", "type": "realtime", "object": "realtime.session"}

        async def send(kind: str, **fields: Any) -> None:
            await socket.send_json({"type": kind, "event_id": f"event_{uuid.uuid4().hex}"} | fields)

        await send("session.created", session=session)
        spoken_s = silent_s = 0.0
        item = ""
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                break
            event = json.loads(message.data)
            match event["type"]:
                case "session.update":
                    await send("session.updated", session=session | event["session"])
                case "conversation.item.create":
                    await send("conversation.item.added", item=event["item"])
                case "input_audio_buffer.append":
                    pcm = np.frombuffer(base64.b64decode(event["audio"]), np.int16)
                    lasts_s = len(pcm) / RATE
                    if np.abs(pcm.astype(np.int32)).max(initial=0) >= _LOUD:
                        spoken_s, silent_s = spoken_s + lasts_s, 0.0
                    else:
                        silent_s += lasts_s
                    if spoken_s > 0.1 and not item:
                        item = f"item_{uuid.uuid4().hex[:12]}"
                        await send(
                            "input_audio_buffer.speech_started", item_id=item, audio_start_ms=0
                        )
                    elif item and silent_s >= _SILENCE_S:
                        await self._answer(send, item)
                        spoken_s, item = 0.0, ""
        return socket

    async def _answer(self, send: Any, item: str) -> None:
        await send("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=0)
        await send("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        part = {"type": "input_audio", "transcript": None}
        said = {"id": item, "type": "message", "role": "user", "content": [part]}
        await send("conversation.item.added", item=said, previous_item_id=None)
        await send(
            "conversation.item.input_audio_transcription.completed",
            item_id=item,
            content_index=0,
            transcript=HEARD,
        )
        response = {"id": f"resp_{uuid.uuid4().hex[:12]}", "object": "realtime.response"}
        await send("response.created", response={**response, "status": "in_progress"})
        reply = f"item_{uuid.uuid4().hex[:12]}"
        message = {"id": reply, "type": "message", "role": "assistant", "content": []}
        place = {"response_id": response["id"], "item_id": reply, "output_index": 0}
        head = {"response_id": response["id"], "output_index": 0}
        await send("response.output_item.added", **head, item=message)
        await send("conversation.item.added", item=message, previous_item_id=item)
        place["content_index"] = 0
        audio = {"type": "audio", "transcript": ""}
        await send("response.content_part.added", **place, part=audio)
        await send("response.output_audio_transcript.delta", **place, delta=self._reply)
        for start in range(0, len(self._samples), _CHUNK):
            chunk = base64.b64encode(self._samples[start : start + _CHUNK].tobytes()).decode()
            await send("response.output_audio.delta", **place, delta=chunk)
        await send("response.output_audio.done", **place)
        await send("response.output_audio_transcript.done", **place, transcript=self._reply)
        await send("response.output_item.done", **head, item=message)
        usage = {"total_tokens": 2, "input_tokens": 1, "output_tokens": 1}
        ended = {**response, "status": "completed", "output": [message], "usage": usage}
        await send("response.done", response=ended)
        self.answered += 1
