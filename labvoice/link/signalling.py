"""A proxy of LiveKit's signalling that replaces all ICE candidates by the relay's."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
from aiohttp import web
from google.protobuf.message import DecodeError
from livekit.protocol import rtc

from labvoice.concurrency import both_ways
from labvoice.link.relay import LOOPBACK, Direction, UdpRelay
from labvoice.link.rtp import LEVEL_EXTENSION
from labvoice.proxies import http_session

_CANDIDATE: Final = re.compile(r"^(?:a=)?candidate:\S+ \d+ (\S+) \d+ (\S+) (\d+) typ (\S+)")
_EXTENSION: Final = re.compile(r"a=extmap:(\d+)")
_HEADERS: Final = ("authorization", "content-type")
_CONNECT_TIMEOUT_S: Final = 10.0


class Signalling:
    """Passes a client's signalling on, with the ICE candidates in it changed.

    The client learns of the relay's port and of no other. The server learns of no candidate of the
    client's: it is no ICE-lite server, would try them by itself, and media would go round the
    relay at random. What is no participant's signalling (a worker's, the server's API) passes as
    it is.

    Args:
        server: The server's address, `http://…`.
        relay: Where the media goes.
    """

    def __init__(self, server: str, relay: UdpRelay) -> None:
        self._server = server.rstrip("/")
        self._relay = relay
        self._http: aiohttp.ClientSession | None = None

    def app(self) -> web.Application:
        """Returns the web application."""
        app = web.Application(client_max_size=1 << 24)
        app.cleanup_ctx.append(self._session)
        app.router.add_route("*", "/{path:.*}", self._proxy)
        return app

    async def _session(self, _: web.Application) -> AsyncIterator[None]:
        async with http_session(self._server) as self._http:
            yield

    async def _proxy(self, request: web.Request) -> web.StreamResponse:
        url, query = self._server + request.path, dict(request.query)
        headers = {k: v for k, v in request.headers.items() if k.lower() in _HEADERS}
        if "join_request" in query:
            query["join_request"] = self._join_request(query["join_request"])
        if request.headers.get("upgrade", "").lower() == "websocket":
            return await self._socket(request, url, query, headers)
        assert self._http is not None
        try:
            async with self._http.request(
                request.method, url, params=query, headers=headers, data=await request.read()
            ) as answer:
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    content_type=answer.content_type,
                )
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"the server does not answer: {error}")

    async def _socket(
        self, request: web.Request, url: str, query: dict[str, str], headers: dict[str, str]
    ) -> web.StreamResponse:
        assert self._http is not None
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                theirs = await self._http.ws_connect(
                    url, params=query, headers=headers, max_msg_size=0
                )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status, text=error.message)
        except (aiohttp.ClientError, TimeoutError) as error:
            return web.Response(status=502, text=f"the server does not answer: {error}")
        ours = web.WebSocketResponse(max_msg_size=0)
        await ours.prepare(request)
        participant = request.path.rstrip("/").endswith(("/rtc", "/rtc/v1"))
        try:
            await both_ways(
                self._pump(ours, theirs, rtc.SignalRequest, participant),
                self._pump(theirs, ours, rtc.SignalResponse, participant),
            )
        finally:
            await theirs.close()
            await ours.close()
        return ours

    async def _pump(self, source: Any, sink: Any, message: Any, participant: bool) -> None:
        async for event in source:
            if event.type == aiohttp.WSMsgType.BINARY:
                data = self._changed(message, event.data) if participant else event.data
                if data is not None:
                    await sink.send_bytes(data)
            elif event.type == aiohttp.WSMsgType.TEXT:
                if participant:  # JSON would pass unread, and with it another path
                    return
                await sink.send_str(event.data)

    def _changed(self, kind: Any, data: bytes) -> bytes | None:
        """Returns a message with the relay's candidate alone in it; None for one to leave out."""
        try:
            message = kind.FromString(data)
        except DecodeError:
            return None
        from_server = kind is rtc.SignalResponse
        which = message.WhichOneof("message")
        if which == "trickle":
            candidate = json.loads(message.trickle.candidateInit)
            kept = self._candidate(candidate.get("candidate", ""), from_server)
            if kept is None:
                return None
            candidate["candidate"] = kept
            message.trickle.candidateInit = json.dumps(candidate)
        elif which in ("offer", "answer"):
            description = getattr(message, which)
            # A client offers what it sends, the server what it sends; with a single peer
            # connection the client offers for both.
            way: Direction = "up" if (which == "offer") != from_server else "down"
            description.sdp = self._sdp(description.sdp, from_server, way)
        elif which in ("join", "reconnect"):
            del getattr(message, which).ice_servers[:]  # no STUN, no TURN: nothing but the relay
            if which == "join":
                message.join.ClearField("alternative_url")
        changed: bytes = message.SerializeToString()
        return changed

    def _join_request(self, text: str) -> str:
        """Newer clients put their first offer into the address."""
        with contextlib.suppress(binascii.Error, DecodeError, gzip.BadGzipFile):
            wrapped = rtc.WrappedJoinRequest.FromString(
                base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            )
            packed = wrapped.compression == rtc.WrappedJoinRequest.GZIP
            data = gzip.decompress(wrapped.join_request) if packed else wrapped.join_request
            join = rtc.JoinRequest.FromString(data)
            if join.HasField("publisher_offer"):
                join.publisher_offer.sdp = self._sdp(join.publisher_offer.sdp, False, "up")
                data = join.SerializeToString()
                wrapped.join_request = gzip.compress(data) if packed else data
                return base64.urlsafe_b64encode(wrapped.SerializeToString()).decode()
        return text

    def _sdp(self, sdp: str, from_server: bool, way: Direction) -> str:
        lines = []
        for line in sdp.splitlines():
            if line.startswith("a=candidate:"):
                kept = self._candidate(line, from_server)
                if kept is not None:
                    lines.append(kept)
                continue
            if LEVEL_EXTENSION in line and (number := _EXTENSION.match(line)):
                self._relay.level_numbers[way] = int(number[1])
            lines.append(line)
        return "\r\n".join(lines) + "\r\n"

    def _candidate(self, text: str, from_server: bool) -> str | None:
        """Returns the relay's candidate for the server's; None for any other."""
        if not text:
            return text  # the end of candidates
        match = _CANDIDATE.match(text)
        if not from_server or match is None or match[1].lower() != "udp" or match[4] != "host":
            return None
        address = (match[2], int(match[3]))
        if self._relay.server is None:
            self._relay.server = address
        if address != self._relay.server:
            return None
        return text.replace(f" {match[2]} {match[3]} ", f" {LOOPBACK} {self._relay.port} ", 1)
