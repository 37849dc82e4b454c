"""What is measured of a LiveKit server's network before anything is started there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from aiohttp import web
from livekit.protocol.rtc import ICEServer, JoinResponse, Pong, SignalRequest, SignalResponse

from labvoice.errors import LabvoiceError, ServerUnreachableError
from labvoice.health.reach import Reach, check_clock, measure, turn_answers

TURN = "turn:192.0.2.1:3478?transport=udp"


@asynccontextmanager
async def signalling(ahead_s: float) -> AsyncIterator[str]:
    """A server whose clock is ahead, and which answers pings."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        join = JoinResponse(ice_servers=[ICEServer(urls=["stun:192.0.2.1:3478", TURN])])
        await socket.send_bytes(SignalResponse(join=join).SerializeToString())
        async for message in socket:
            assert SignalRequest.FromString(message.data).WhichOneof("message") == "ping_req"
            pong = Pong(timestamp=int((time.time() + ahead_s) * 1000))
            await socket.send_bytes(SignalResponse(pong_resp=pong).SerializeToString())
        return socket

    app = web.Application()
    app.router.add_get("/rtc", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("ahead_s", [40.0, -40.0])
async def test_the_offset_of_the_servers_clock_is_found(ahead_s: float) -> None:
    """Its sign too, within half the round trip and a rounded millisecond; far off fails."""
    async with signalling(ahead_s) as url:
        reach = await measure(url, "token")
    assert abs(reach.clock_offset_s - ahead_s) <= reach.round_trip_s / 2 + 0.002
    assert reach.turn_urls == (TURN,)
    with pytest.raises(LabvoiceError, match="ahead of" if ahead_s > 0 else "behind"):
        check_clock(reach)


def test_a_clock_that_is_near_enough_passes() -> None:
    """Tokens are dated to the second, and taken a minute early."""
    check_clock(Reach(0.1, 3.0, ()))


async def test_signalling_that_does_not_answer_is_told() -> None:
    """A server that speaks no websocket, and none at all, end in one error."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"ws://127.0.0.1:{runner.addresses[0][1]}"
    with pytest.raises(ServerUnreachableError, match="does not answer"):
        await measure(url, "token")
    await runner.cleanup()
    with pytest.raises(ServerUnreachableError, match="does not answer"):
        await measure(url, "token")


async def test_what_is_no_turn_server_does_not_count() -> None:
    """Wrong bytes, a refused connection and an address that is none are named."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LabvoiceError, match="no TURN server"):
            await turn_answers(f"turn:127.0.0.1:{port}?transport=tcp")
    with pytest.raises(LabvoiceError, match=f"turn:127.0.0.1:{port}"):
        await turn_answers(f"turn:127.0.0.1:{port}?transport=tcp")
    with pytest.raises(LabvoiceError, match="not the address"):
        await turn_answers("stun:127.0.0.1:3478")


async def test_turn_by_udp_answers_the_request_that_was_sent() -> None:
    """An answer with another transaction's number is nobody's; a refusal without a key counts."""

    class Turn(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(b"\x01\x13\x00\x00" + bytes(16), addr)
            self.transport.sendto(b"\x01\x13\x00\x00" + data[4:20], addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Turn, local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    assert await turn_answers(f"turn:127.0.0.1:{port}") > 0
    transport.close()
