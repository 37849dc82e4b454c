"""The dispatcher before a server that is busy, breaks off, or is not there."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import pytest
from pydantic import SecretStr

from labvoice.dispatch import Dispatcher
from labvoice.errors import CredentialsError, ServerUnreachableError
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.processes import free_port


def twirp(status: HTTPStatus, code: str) -> bytes:
    """An error as LiveKit's server answers with."""
    body = json.dumps({"code": code, "msg": "so it is"}).encode()
    head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def test_a_first_question_that_breaks_off_is_asked_again() -> None:
    """A server that closes the connection, resets it, or is busy is there: its answer counts."""
    answers = [
        b"",
        b"reset",
        twirp(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
        twirp(HTTPStatus.UNAUTHORIZED, "unauthenticated"),
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if (words := answers.pop(0)) == b"reset":
            writer.transport.abort()
            return
        writer.write(words)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Dispatcher(f"ws://127.0.0.1:{port}", "key", SecretStr("s" * 32)) as dispatcher:
            with pytest.raises(CredentialsError):
                await dispatcher.dispatch("room", "agent", timeout_s=60)
    assert answers == []


async def test_a_port_where_nobody_listens_is_told_at_once() -> None:
    """A refused connection is no server, however long the caller would wait."""
    url = f"ws://127.0.0.1:{free_port()}"
    async with Dispatcher(url, "key", SecretStr("s" * 32)) as dispatcher, asyncio.timeout(60):
        with pytest.raises(ServerUnreachableError, match=url):
            await dispatcher.dispatch("room", "agent", timeout_s=3600)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (HTTPStatus.BAD_GATEWAY, "answered HTTP 502 when asked for its rooms"),
        (HTTPStatus.NOT_FOUND, "is not a LiveKit server"),
    ],
)
async def test_a_server_that_cannot_serve_now_is_not_called_another_program(
    status: HTTPStatus, words: str
) -> None:
    """What stands before a LiveKit server may answer for it while it restarts."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(twirp(status, "so it is"))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match=words):
            await LiveKitServer.check(url, "key", SecretStr("s" * 32))


async def test_a_room_that_was_not_made_is_not_asked_for_its_dispatches() -> None:
    """Where the request that makes the room breaks off, the next one is made, not only waited for.

    A server answers questions about the dispatches of a room that is not there as unavailable.
    """
    asked: list[str] = []
    empty = b"HTTP/1.1 200 OK\r\nContent-Type: application/protobuf\r\nContent-Length: 0\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split()[1].decode().rpartition("/")[2])
        if asked[-1] == "ListRooms":
            writer.write(empty + b"Connection: close\r\n\r\n")
        elif asked[-1] != "CreateDispatch":
            writer.write(twirp(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"))
        elif asked.count("CreateDispatch") > 1:
            writer.write(twirp(HTTPStatus.UNAUTHORIZED, "unauthenticated"))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Dispatcher(f"ws://127.0.0.1:{port}", "key", SecretStr("s" * 32)) as dispatcher:
            with pytest.raises(CredentialsError):
                await dispatcher.dispatch("room", "agent", timeout_s=20)
    assert asked[:4] == ["ListRooms", "CreateDispatch", "ListRooms", "CreateDispatch"]
