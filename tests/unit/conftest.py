"""A lab that runs without any process."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from labvoice.stack.livekit.server import LiveKitServer


@pytest.fixture
def dead_server(monkeypatch: pytest.MonkeyPatch) -> LiveKitServer:
    """The LiveKit server of every lab that a test starts: nothing listens at its address."""
    secret = SecretStr("not-a-real-secret-but-long-enough")
    server = LiveKitServer("ws://127.0.0.1:9", "key", secret)

    async def start(*_: object, **__: object) -> LiveKitServer:
        return server

    monkeypatch.setattr(LiveKitServer, "start", start)
    return server
