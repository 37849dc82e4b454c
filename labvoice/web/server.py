"""The HTTP server: its socket, its limits, its graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Final, Self

import uvicorn
from starlette.types import ASGIApp

from labvoice.concurrency import poll
from labvoice.errors import PortInUseError, StageTimeoutError

KEEP_ALIVE_S: Final = 75
MAX_CONNECTIONS: Final = 4096
"""With more, requests are refused. Slow clients, or one that takes all of them, are not
distinguished here: where they are expected, put a proxy before the service (docs/http.md)."""
GRACE_S: Final = 32
"""Time that the shutdown waits for open requests, in seconds: a dispatch waits 30 s at most for its
agent, and then asks the workers for the cause. Longer requests are cut off."""
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
    """Raises the limit of open files to the maximum allowed: many systems start with 1,024.

    Not higher than the service needs: programs that are started later may iterate over all.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the command line, which also stops the lab."""
        yield


class HttpServer:
    """A listening HTTP server; an async context manager.

    Args:
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
                http="h11",
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # otherwise any client on this machine could claim any address
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        raise_file_limit()
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="http server")
        # uvicorn reports its start by an attribute only.
        if not await poll(lambda: self._server.started, _START_TIMEOUT_S, 0.01):
            what = "the start of the HTTP server"
            raise StageTimeoutError(what, _START_TIMEOUT_S, "it does not serve")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._server.should_exit = True
        await self._task

    async def wait(self) -> None:
        """Waits until the server ends by itself, which happens only on a failure."""
        assert self._task is not None
        await asyncio.shield(self._task)
