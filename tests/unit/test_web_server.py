"""The HTTP server on a real socket: slow and idle clients, long heads, orderly ends."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from labvoice.dispatch import Dispatch
from labvoice.errors import PortInUseError
from labvoice.web import server as http_server
from labvoice.web.models import DispatchRequest
from labvoice.web.server import HttpServer, bind_port, raise_file_limit
from labvoice.web.stub import StubBackend
from tests.unit.web_client import OWNER, app_with


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    """A server over the stub."""
    async with HttpServer(app_with(), bind_port("127.0.0.1", 0)) as running:
        yield running


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Waits until the server has closed a connection; returns what it said before."""
    async with asyncio.timeout(60):
        said = b""
        try:
            while some := await reader.read(4096):
                said += some
        except ConnectionResetError:
            pass
        return said


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Closes a connection."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_slow_clients_keep_nobody_waiting() -> None:
    """Connections with half a request, or none, hold up neither others nor the server's end."""
    halves = (
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: local",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal",
    )
    async with asyncio.timeout(20):
        async with HttpServer(app_with(), bind_port("127.0.0.1", 0)) as server:
            opened = []
            for half in halves * 20:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(half)
                opened.append((reader, writer))
            async with httpx.AsyncClient(trust_env=False) as client:
                good = await client.get(f"http://127.0.0.1:{server.port}/healthz")
            assert good.status_code == 200
        for reader, writer in opened:
            await closed(reader)
            await hang_up(writer)


async def test_idle_clients_keep_their_connections(server: HttpServer) -> None:
    """A client that has been answered may be silent for longer than a request may take."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with asyncio.timeout(60):
        for _ in range(2):
            writer.write(request)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            while b'"ok"' not in await reader.readline() and not reader.at_eof():
                if (await reader.readexactly(1)) == b"{":
                    await reader.readexactly(len('"status":"ok"}'))
                    break
            await asyncio.sleep(1)
    await hang_up(writer)


async def test_a_head_that_does_not_end_is_refused(server: HttpServer) -> None:
    """A head over 16 KiB ends in 400."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 20_000)
    said = await closed(reader)
    assert said.startswith(b"HTTP/1.1 400")
    await hang_up(writer)


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection too many is answered 503; closed ones make room again."""
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with HttpServer(app_with(), bind_port("127.0.0.1", 0)) as server:
        kept = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        for status in (b"503", b"200"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request)
            assert (await closed(reader))[9:12] == status
            await hang_up(writer)
            for reader, writer in kept:
                writer.write(b"no HTTP\r\n\r\n")
                assert (await closed(reader))[9:12] == b"400"
                await hang_up(writer)
            kept.clear()


async def test_the_limit_on_open_files_is_raised() -> None:
    """A soft limit that is too low for the connections promised is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        raise_file_limit()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised[0] >= min(hard, 65_536) or hard == resource.RLIM_INFINITY
        assert raised[1] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_length_that_is_a_lie_is_refused(server: HttpServer) -> None:
    """Two lengths, or a length with a chunked body, are not passed on."""
    for lines in (
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /api/session HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\nhello")
        assert (await closed(reader))[9:12] in (b"400", b"413")
        await hang_up(writer)


class _Counting(StubBackend):
    """A stub that counts the dispatches it has begun."""

    accepted = 0

    async def dispatch(self, body: DispatchRequest, traceparent: str | None) -> Dispatch:
        """As the stub's."""
        self.accepted += 1
        return await super().dispatch(body, traceparent)


async def test_what_was_accepted_is_answered_before_the_end() -> None:
    """A server that is told to stop answers the dispatches it is working on."""
    backend = _Counting()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        async with HttpServer(app_with(backend), bind_port("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.port}/api/dispatch-agent"
            asked = [
                asyncio.create_task(client.post(url, headers=OWNER, json={"room": f"r{number}"}))
                for number in range(20)
            ]
            while backend.accepted < len(asked):
                await asyncio.sleep(0.01)
        answers = await asyncio.gather(*asked)
    assert all(answer.json()["success"] for answer in answers)


async def test_answers_are_not_held_back(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections have TCP_NODELAY; else an answer waits for the client's acknowledgement."""
    seen: list[int] = []
    made = H11Protocol.connection_made

    def connection_made(self: H11Protocol, transport: asyncio.Transport) -> None:
        sock = transport.get_extra_info("socket")
        seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(H11Protocol, "connection_made", connection_made)
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{server.port}/healthz")
    assert seen == [1]


async def test_a_taken_port_is_named(server: HttpServer) -> None:
    """A port that belongs to another server is an error in words."""
    with pytest.raises(PortInUseError, match=f"port {server.port}") as caught:
        bind_port("127.0.0.1", server.port)
    assert "--port" in caught.value.hint


async def test_a_forwarded_address_is_not_believed(server: HttpServer) -> None:
    """Rate limits go by the connection's address, whatever a header claims."""
    statuses = []
    async with httpx.AsyncClient(trust_env=False) as client:
        for number in range(11):
            headers = {"X-Forwarded-For": f"10.0.0.{number}", "Authorization": "Bearer guess"}
            url = f"http://127.0.0.1:{server.port}/api/rooms"
            statuses.append((await client.get(url, headers=headers)).status_code)
    assert statuses[-1] == 429
