"""An HTTP proxy for tests: it keeps what it is asked, and sends all of it to one server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RecordingProxy:
    """Answers for every name, whether there is such a host or not.

    Attributes:
        url: Its address.
        asked: The first line of each request, oldest first.
    """

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self.url = ""
        self.asked: list[str] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves on loopback."""
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, rest = head.partition(b"\r\n")
            self.asked.append(line.decode())
            method, target, version = line.decode().split(" ")
            if method == "CONNECT":  # an `https` or `wss` address; nothing is behind it
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                await writer.drain()
                return
            path = "/" + target.split("/", 3)[3]
            fields = [
                field
                for field in rest.rstrip(b"\r\n").split(b"\r\n")
                if not field.lower().startswith(b"connection:")
            ]
            server, to_server = await asyncio.open_connection("127.0.0.1", self._behind)
            with contextlib.closing(to_server):
                to_server.write(f"{method} {path} {version}\r\n".encode())
                to_server.write(b"\r\n".join([*fields, b"Connection: close"]) + b"\r\n\r\n")
                both = (_copy(reader, to_server), _copy(server, writer))
                await asyncio.wait(
                    [asyncio.create_task(one) for one in both],
                    return_when=asyncio.FIRST_COMPLETED,
                )


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
