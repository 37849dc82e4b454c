"""A caller whose signalling is answered and whose media does not pass."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit import rtc
from pydantic import SecretStr

from labvoice.caller.call import Call
from labvoice.errors import MediaBlockedError, StageTimeoutError


@pytest.mark.parametrize(
    ("answers", "error", "observed"),
    [
        (True, MediaBlockedError, "media cannot pass"),
        (False, StageTimeoutError, "did not finish the handshake"),
    ],
)
async def test_blocked_media_is_told_from_a_server_that_does_not_answer(
    answers: bool, error: type[StageTimeoutError], observed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that times out while the server answers names the media ports to open."""

    async def connect(*_: object) -> None:
        raise TimeoutError

    async def list_rooms(_: object) -> None:
        if not answers:
            raise TimeoutError

    monkeypatch.setattr(rtc.Room, "connect", connect)
    dispatcher = SimpleNamespace(
        api=SimpleNamespace(room=SimpleNamespace(list_rooms=list_rooms)),
        server_errors=contextlib.nullcontext,
    )
    call = Call(
        url="ws://127.0.0.1:1",
        api_key="key",
        api_secret=SecretStr("a secret of thirty-two characters"),
        dispatcher=cast("Any", dispatcher),
        room="room",
        agent_name="agent",
    )
    with pytest.raises(StageTimeoutError, match=observed) as raised:
        await call.connect()
    assert type(raised.value) is error
    assert ("rtc.udp_port" in raised.value.hint) == answers
    await call.hang_up()
