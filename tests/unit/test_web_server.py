"""The HTTP server on a real socket: slow and idle clients, long heads, orderly ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from labvoice.errors import PortInUseError
from labvoice.web.server import HttpServer, TimedProtocol, bind_port, raise_file_limit
from tests.unit.web_client import OWNER, app_with


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpServer]:
    """A server over the stub, which waits half a second for a request to arrive."""
    monkeypatch.setattr(TimedProtocol, "read_s", 0.5)
    async with HttpServer(app_with(), bind_port("127.0.0.1", 0)) as running:
        yield running


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Waits until the server has closed a connection; returns what it said before."""
    async with asyncio.timeout(10):
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


async def nothing(writer: asyncio.StreamWriter) -> None:
    """Says nothing."""


async def half_a_head(writer: asyncio.StreamWriter) -> None:
    """Begins a request and stops."""
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: local")


async def trickle(writer: asyncio.StreamWriter) -> None:
    """Sends a head byte by byte, each of which would restart a naive timer."""
    try:
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)
    except ConnectionError:
        return


async def half_a_body(writer: asyncio.StreamWriter) -> None:
    """Announces a body and sends half of it."""
    writer.write(
        b"POST /api/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Authorization: {OWNER['Authorization']}\r\n".encode()
        + b'Content-Length: 100\r\n\r\n{"room":'
    )


async def second_request_half(writer: asyncio.StreamWriter) -> None:
    """Finishes one request and begins another one."""
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")


@pytest.mark.parametrize(
    "attack", [nothing, half_a_head, trickle, half_a_body, second_request_half]
)
async def test_a_request_that_trickles_in_is_cut_off(
    server: HttpServer, attack: Callable[[asyncio.StreamWriter], Awaitable[None]]
) -> None:
    """Slow clients lose their connection, and do not keep others from being answered."""
    connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(20)]
    attacks = [asyncio.ensure_future(attack(writer)) for _, writer in connections]
    async with httpx.AsyncClient(trust_env=False) as client:
        good = await client.get(f"http://127.0.0.1:{server.port}/healthz")
    assert good.status_code == 200
    said = await asyncio.gather(*(closed(reader) for reader, _ in connections))
    await asyncio.gather(*attacks)
    whole = attack is second_request_half
    assert all(text.startswith(b"HTTP/1.1 200") is whole for text in said)
    for _, writer in connections:
        await hang_up(writer)


async def test_idle_clients_keep_their_connections(server: HttpServer) -> None:
    """A client that has been answered may be silent for longer than a request may take."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with asyncio.timeout(10):
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
    assert_looks_like_an_error(said, "bad_request")
    await hang_up(writer)


def assert_looks_like_an_error(said: bytes, code: str) -> None:
    """What the server itself refuses has the form of every other error."""
    error = json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] == code


async def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that nobody reads is not kept for ever; a client that reads gets all of it."""
    monkeypatch.setattr(TimedProtocol, "write_s", 0.5)
    sock = bind_port("127.0.0.1", 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    request = (
        b"GET /static/widgets/call.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    async with HttpServer(app_with(), sock) as server:
        said = []
        for pause_s in (0.0, 2.0):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", server.port))
            await asyncio.get_running_loop().sock_sendall(raw, request)
            await asyncio.sleep(pause_s)
            reader, writer = await asyncio.open_connection(sock=raw)
            said.append(await closed(reader))
            await hang_up(writer)
    whole, cut = said
    assert len(whole) > 100_000
    assert len(cut) < len(whole)


async def test_one_address_cannot_take_all_connections(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection too many is answered 503 and closed; a closed one makes room again."""
    monkeypatch.setattr(TimedProtocol, "max_per_address", 2)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    kept = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    said = await closed(reader)
    assert said.startswith(b"HTTP/1.1 503")
    assert_looks_like_an_error(said, "busy")
    await hang_up(writer)
    for old_reader, old_writer in kept:
        old_writer.write(request)
        assert (await closed(old_reader)).startswith(b"HTTP/1.1 200")
        await hang_up(old_writer)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    assert (await closed(reader)).startswith(b"HTTP/1.1 200")
    await hang_up(writer)


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


async def test_what_was_accepted_is_answered_before_the_end() -> None:
    """A server that is told to stop answers the dispatches it is working on."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        async with HttpServer(app_with(), bind_port("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.port}/api/dispatch-agent"
            asked = [
                asyncio.create_task(client.post(url, headers=OWNER, json={"room": f"r{number}"}))
                for number in range(20)
            ]
            await asyncio.sleep(0.05)
        answers = await asyncio.gather(*asked)
    assert all(answer.json()["success"] for answer in answers)


async def test_answers_are_not_held_back(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections have TCP_NODELAY; else an answer waits for the client's acknowledgement."""
    seen: list[int] = []
    made = TimedProtocol.connection_made

    def connection_made(self: TimedProtocol, transport: asyncio.Transport) -> None:
        sock = transport.get_extra_info("socket")
        seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(TimedProtocol, "connection_made", connection_made)
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
