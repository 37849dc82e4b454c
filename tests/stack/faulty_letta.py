"""A proxy between a worker and a real Letta server that fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Literal

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from labvoice.stack.processes import free_port
from tests.serving import serving

Mode = Literal["pass", "refuse", "slow", "500", "garbage", "cut"]
SLOW_S = 10.0
_DROPPED = {"host", "content-length", "transfer-encoding", "connection", "content-encoding"}


class FaultyLetta:
    """Hands every request on to the real server; what becomes of the answer is the mode's.

    `slow` keeps it for 10 s, `500` and `garbage` replace it: the server has done its work all the
    same, which is the hardest case for whoever must do nothing twice. `cut` breaks a streamed
    answer off after its first piece. `refuse` closes the port.

    Args:
        target: Address of the real server.
    """

    def __init__(self, target: str) -> None:
        self.base_url = f"http://127.0.0.1:{free_port()}"
        self.mode: Mode = "refuse"
        self.requests = 0
        self._client = httpx.AsyncClient(base_url=target, timeout=120.0, trust_env=False)
        self._app = Starlette(
            routes=[
                Route("/{path:path}", self._pass, methods=["GET", "POST", "PATCH", "PUT", "DELETE"])
            ]
        )
        self._open = AsyncExitStack()

    async def set(self, mode: Mode) -> None:
        """Changes the mode from here on."""
        if (mode == "refuse") != (self.mode == "refuse"):
            if mode == "refuse":
                await self._open.aclose()
            else:
                port = int(self.base_url.rpartition(":")[2])
                await self._open.enter_async_context(serving(self._app, port))
        self.mode = mode

    async def close(self) -> None:
        """Closes the port and the connections to the real server."""
        await self.set("refuse")
        await self._client.aclose()

    async def _pass(self, request: Request) -> Response:
        self.requests += 1
        mode = self.mode
        asked = self._client.build_request(
            request.method,
            request.url.path,
            params=request.query_params,
            headers={k: v for k, v in request.headers.items() if k.lower() not in _DROPPED},
            content=await request.body(),
        )
        answer = await self._client.send(asked, stream=True)
        if mode in {"500", "garbage"}:
            await answer.aread()
            await answer.aclose()
            if mode == "500":
                return Response('{"detail": "out of order"}', 500, media_type="application/json")
            return Response("<html>a page of somebody else's</html>", media_type="text/html")
        if mode == "slow":
            await asyncio.sleep(SLOW_S)

        streamed = answer.headers.get("content-type", "").startswith("text/event-stream")

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_bytes():
                    yield piece
                    if mode == "cut" and streamed:
                        raise ConnectionError("cut")
            finally:
                await answer.aclose()

        headers = {k: v for k, v in answer.headers.items() if k.lower() not in _DROPPED}
        return StreamingResponse(body(), answer.status_code, headers)
