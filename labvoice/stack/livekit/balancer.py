"""One address in front of several servers: each connection goes to one that accepts it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from typing import Final

from labvoice.concurrency import both_ways, cancel

_LOOPBACK: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16


class Balancer:
    """Passes TCP connections on to servers on loopback, as they take turns.

    Args:
        ports: Of the servers. One that refuses a connection is passed over.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._turn = itertools.count()
        self._listeners: list[asyncio.Server] = []
        self._open: set[asyncio.Task[None]] = set()

    async def listen(self, first: int | None = None) -> int:
        """Opens one more port, and returns it.

        Args:
            first: Number of the server that is tried first; None: they take turns.
        """

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._open.add(task)
            try:
                await self._pass_on(reader, writer, next(self._turn) if first is None else first)
            except asyncio.CancelledError:
                pass  # by :meth:`close`; asyncio would log it
            finally:
                writer.close()
                self._open.discard(task)

        listener = await asyncio.start_server(serve, _LOOPBACK, 0)
        self._listeners.append(listener)
        port: int = listener.sockets[0].getsockname()[1]
        return port

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: int
    ) -> None:
        for number in range(len(self._ports)):
            port = self._ports[(first + number) % len(self._ports)]
            try:
                from_server, to_server = await asyncio.open_connection(_LOOPBACK, port)
            except OSError:
                continue
            try:
                await both_ways(_copy(reader, to_server), _copy(from_server, writer))
            finally:
                to_server.close()
            return

    async def close(self) -> None:
        """Closes all ports and connections; safe to call twice."""
        for listener in self._listeners:
            listener.close()
        await cancel(*self._open)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until either end breaks off."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
