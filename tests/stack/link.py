"""A network that can be cut."""

from __future__ import annotations

import asyncio
import contextlib


class Link:
    """The network between a worker and the server: TCP on loopback, until it is cut.

    Attributes:
        broken: How many open connections were broken, each counted at both of its ends.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.broken = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Opens it on a port of its own."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    def interrupt(self) -> None:
        """Breaks all connections; new ones can be made."""
        for writer in self._writers:
            self.broken += not writer.is_closing()
            writer.transport.abort()
        self._writers.clear()

    async def cut(self) -> None:
        """Breaks all connections, for good."""
        self._server.close()
        self.interrupt()
