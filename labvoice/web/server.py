"""The HTTP server around the application: sockets, limits on time and number, orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, Self

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from labvoice.errors import PortInUseError, StageTimeoutError
from labvoice.web.errors import error_body

REQUEST_READ_S: Final = 10.0
"""Within so many seconds of its first byte, or of the connection's opening, a request must have
arrived whole; uvicorn itself would wait for ever."""
WRITE_S: Final = 30.0
"""A client that takes nothing of what waits for it loses its connection after so many seconds."""
KEEP_ALIVE_S: Final = 75
MAX_CONNECTIONS: Final = 4096
MAX_PER_ADDRESS: Final = MAX_CONNECTIONS // 2
"""Connections of one address: it cannot take them all. Behind a proxy all have the proxy's."""
GRACE_S: Final = 32
"""So long the end waits for requests that are being answered: a dispatch waits 30 s at most for
its agent, and asks the workers for the cause after that. What takes longer is cut off."""
_FILES: Final = 65_536
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


def raise_file_limit() -> None:
    """Lets this process open as many files as it may: many systems begin with 1,024.

    Not more than the service has a use for: programs that are started later may walk through all.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class TimedProtocol(H11Protocol):
    """Closes connections whose requests trickle in, or whose answers are not taken.

    Args:
        addresses: How many connections each address has.
    """

    read_s = REQUEST_READ_S
    write_s = WRITE_S
    max_connections = MAX_CONNECTIONS
    max_per_address = MAX_PER_ADDRESS

    def __init__(self, *args: Any, addresses: Counter[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._addresses = addresses
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection was opened: its first request is due."""
        super().connection_made(transport)
        self._addresses[self._address] += 1
        if len(self.connections) > self.max_connections:
            self._refuse(503, "busy", "the service has as many connections as it can serve")
        elif self._addresses[self._address] > self.max_per_address:
            self._refuse(503, "busy", "this address has as many connections as one may have")
        else:
            self._reading = self.loop.call_later(self.read_s, transport.abort)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Some of a request arrived; with the last of it the time stops."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer left; part of the next request may be here already."""
        super().on_response_complete()
        self._watch()
        self._expect_taking()

    def pause_writing(self) -> None:
        """More waits for the client than is kept for it."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """The client took some of it."""
        super().resume_writing()
        self._stop_writing()
        self._expect_taking()

    def _watch(self) -> None:
        state = self.conn.their_state
        begun = state is h11.IDLE and self.conn.trailing_data[0]
        if state is not h11.SEND_BODY and not begun:
            self._stop_reading()
        elif self._reading is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(self.read_s, self.transport.abort)

    def _expect_taking(self) -> None:
        """Gives the client its time to take what waits; a closed transport waits for it too."""
        if self._writing is None and self.transport.get_write_buffer_size():
            self._writing = self.loop.call_later(self.write_s, self._abort_unless_taken)

    def _abort_unless_taken(self) -> None:
        self._writing = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_reading()
        self._stop_writing()
        self._addresses[self._address] -= 1
        if not self._addresses[self._address]:
            del self._addresses[self._address]
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error that looks like the others."""
        self._refuse(400, "bad_request", msg.rstrip(".").lower())

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answers beside the application, and closes."""
        body = json.dumps(error_body(code, message)).encode()
        head = (
            f"HTTP/1.1 {status} {STATUS_PHRASES[status].decode()}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._expect_taking()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


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
        addresses: Counter[str] = Counter()
        protocol: Any = functools.partial(TimedProtocol, addresses=addresses)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # else anybody on this machine could claim any address
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        raise_file_limit()
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
