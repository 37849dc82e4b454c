"""The HTTP server around the application: sockets, limits on time and number, orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final, Self

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from labvoice.errors import PortInUseError, StageTimeoutError

REQUEST_READ_S: Final = 10.0
"""Within so many seconds of its first byte, or of the connection's opening, a request must have
arrived whole; uvicorn itself would wait for ever."""
KEEP_ALIVE_S: Final = 75
MAX_CONNECTIONS: Final = 4096
GRACE_S: Final = 32
"""So long the end waits for requests that are being answered; a dispatch takes 30 s at most."""
_MAX_HEAD_BYTES: Final = 16 * 1024
_START_TIMEOUT_S: Final = 10.0


def bind_port(host: str, port: int) -> socket.socket:
    """Returns a socket that holds an address and does not listen yet.

    Args:
        host: Address of this machine.
        port: TCP port; 0 for a free one.

    Raises:
        PortInUseError: The port belongs to another process, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it every answer waits
    # 40 ms for the client's delayed acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise PortInUseError(
            f"port {port} on {host}, wanted for the HTTP service, cannot be used: {error.strerror}",
            f"stop what listens there (`ss -ltnp 'sport = :{port}'`) or choose another "
            "with `--port`",
        ) from None
    return sock


class TimedProtocol(H11Protocol):
    """Closes connections whose requests trickle in."""

    read_s = REQUEST_READ_S
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection was opened: its first request is due."""
        super().connection_made(transport)
        self._reading = self.loop.call_later(self.read_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Some of a request arrived; with the last of it the time stops."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer left; part of the next request may be here already."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        state = self.conn.their_state
        begun = state is h11.IDLE and self.conn.trailing_data[0]
        if state is not h11.SEND_BODY and not begun:
            self._stop_reading()
        elif self._reading is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(self.read_s, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_reading()
        super().connection_lost(exc)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the command line, which stops the lab as well."""
        yield


class HttpServer:
    """A listening HTTP server; an async context manager.

    Args:
        app: What it serves.
        sock: Bound to the address to listen on, as by :func:`bind_port`.

    Attributes:
        port: The port in use.
    """

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        self.port: int = sock.getsockname()[1]
        self._socket = sock
        self._server = _Server(
            uvicorn.Config(
                app,
                http=TimedProtocol,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # else anybody on this machine could claim any address
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="http server")
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                # uvicorn tells its start by an attribute only.
                while not self._server.started:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise StageTimeoutError(
                "the start of the HTTP server", _START_TIMEOUT_S, "it does not serve"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._server.should_exit = True
        await self._task

    async def wait(self) -> None:
        """Waits until the server ends by itself, which it does only on a fault."""
        assert self._task is not None
        await asyncio.shield(self._task)
