"""The gateway's HTTP application: authentication, routes, and the report of requests.

One server offers several protocols over the same engines, so that another program's agent uses the
lab's models unmodified:

- LiveKit Inference (`/v1/stt`, `/v1/tts`, `/v1/eot`), see :mod:`labvoice.stack.gateway.inference`;
- OpenAI's HTTP API (`/v1/chat/completions`, `/v1/audio/transcriptions`, `/v1/audio/speech`,
  `/v1/models`), see :mod:`labvoice.stack.gateway.openai`;
- Deepgram's (`/v1/listen`, `/v1/speak`), see :mod:`labvoice.stack.gateway.deepgram`;
- `/labvoice/report`, the requests and the models that answered; `/labvoice/disturb`, which makes a
  model late or refuse.

Every other path is refused with 404 at the handshake: livekit-agents then takes its local fallback
within 5 ms, whereas it would hang on an accepted but silent socket.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from aiohttp import web
from livekit import api
from livekit.agents.utils import http_context

from labvoice.stack.gateway.deepgram import Deepgram
from labvoice.stack.gateway.engines import Disturbance, Engines, Service
from labvoice.stack.gateway.inference import Inference
from labvoice.stack.gateway.openai import OpenAI, failure

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MAX_BODY_BYTES: Final = 32 * 2**20
REPORT_PATH: Final = "/labvoice/report"
DISTURB_PATH: Final = "/labvoice/disturb"
HEALTH_PATH: Final = "/health"
_SERVICES: Final[dict[str, Service]] = {
    "/v1/stt": "stt",
    "/v1/listen": "stt",
    "/v1/audio/transcriptions": "stt",
    "/v1/chat/completions": "llm",
    "/v1/tts": "tts",
    "/v1/speak": "tts",
    "/v1/audio/speech": "tts",
}


class Gateway:
    """The application over loaded engines.

    Args:
        engines: Recogniser, voice and language model.
        api_key: LiveKit API key whose inference tokens are accepted.
        gateway_key: Key that OpenAI's and Deepgram's clients send.
    """

    def __init__(
        self, engines: Engines, *, api_key: str, api_secret: str, gateway_key: str
    ) -> None:
        self._engines = engines
        self._verifier = api.TokenVerifier(api_key, api_secret)
        self._gateway_key = gateway_key

    def app(self) -> web.Application:
        """Returns the application."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._authorise])
        inference, deepgram = Inference(self._engines), Deepgram(self._engines)
        openai = OpenAI(self._engines)
        app.router.add_get(HEALTH_PATH, _health)
        app.router.add_get(REPORT_PATH, self._report)
        app.router.add_post(DISTURB_PATH, self._disturb)
        app.router.add_get("/v1/stt", inference.stt)
        app.router.add_get("/v1/tts", inference.tts)
        app.router.add_get("/v1/eot", inference.eot)
        app.router.add_get("/v1/models", openai.models)
        app.router.add_post("/v1/chat/completions", openai.chat)
        app.router.add_post("/v1/audio/transcriptions", openai.transcribe)
        app.router.add_post("/v1/audio/speech", openai.speak)
        app.router.add_get("/v1/listen", deepgram.listen)
        app.router.add_get("/v1/speak", deepgram.speak_socket)
        app.router.add_post("/v1/speak", deepgram.speak)
        app.router.add_route("*", "/{rest:.*}", self._refuse)
        app.cleanup_ctx.append(_plugins_session)
        app.cleanup_ctx.append(openai.client)
        return app

    @web.middleware
    async def _authorise(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path == HEALTH_PATH:
            return await handler(request)
        kind, _, credential = request.headers.get("Authorization", "").partition(" ")
        if kind not in ("Bearer", "Token") or not self._accepts(credential.strip()):
            return failure(401, "no valid credential: an inference token or the gateway's key")
        service = _SERVICES.get(request.path)
        disturbance = self._engines.disturbances.get(service) if service else None
        if disturbance is not None and disturbance.status is not None:
            return failure(disturbance.status, f"{service} refuses on purpose")
        return await handler(request)

    def _accepts(self, credential: str) -> bool:
        if secrets.compare_digest(credential.encode(), self._gateway_key.encode()):
            return True
        try:
            claims = self._verifier.verify(credential)
        except Exception:  # any error: it is not a valid token of this key
            return False
        return bool(claims.inference and claims.inference.perform)

    async def _refuse(self, request: web.Request) -> web.Response:
        self._engines.note_refusal(request.path)
        return failure(404, f"{request.path} is not served offline")

    async def _disturb(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self._engines.disturbances[asked["service"]] = Disturbance(
            asked["delay_s"], asked["status"]
        )
        return web.json_response({})

    async def _report(self, _: web.Request) -> web.Response:
        return web.json_response(self._engines.report())


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _plugins_session(_: web.Application) -> AsyncIterator[None]:
    """Provides the HTTP session that LiveKit plugins expect to find in a job."""
    async with http_context.open():
        yield
