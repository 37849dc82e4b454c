"""Runs Letta's HTTP API on loopback behind a bearer token; works in Letta's own environment.

`python serve.py PORT`, the token in the environment as `LABVOICE_LETTA_TOKEN`. Letta's own
`--secure` prints its password into the log and buffers every answer, streams included.
"""

from __future__ import annotations

import hmac
import os
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REFUSAL = b'{"detail": "the key is missing or wrong"}'


def locked(app: App, token: str) -> App:
    """Returns the application behind a token, except for its health check.

    Args:
        token: Token that clients send as `Authorization: Bearer …`.
    """
    expected = f"Bearer {token}".encode()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", [])).get(b"authorization", b"")
        if (
            scope["type"] == "lifespan"
            or scope.get("path") == "/v1/health/"
            or hmac.compare_digest(given, expected)
        ):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return serve


def main() -> None:
    """Binds the port before the long import, so that no other process takes it; then serves."""
    # asyncio sets TCP_NODELAY only where the protocol is named.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    token = os.environ.pop("LABVOICE_LETTA_TOKEN")
    os.chdir(os.environ["HOME"])  # Letta writes files into the folder where it starts

    import uvicorn
    from letta.server.rest_api.app import app  # type: ignore[import-not-found]

    # A stop must not wait for streams whose client has disconnected.
    config = uvicorn.Config(locked(app, token), access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
