"""Whose end it is: a call's, a lab's, and what each leaves behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc
from pydantic import SecretStr

from labvoice.caller.call import Call, PendingCall
from labvoice.dispatch import Dispatcher
from labvoice.errors import AgentLostError
from labvoice.lab import Lab


def _call(ended: list[Call] | None = None) -> Call:
    return Call(
        url="ws://127.0.0.1:9",
        api_key="key",
        api_secret=SecretStr("secret"),
        dispatcher=Dispatcher("ws://127.0.0.1:9", "key", SecretStr("secret")),
        room="room",
        agent_name="agent",
        identity="me",
        on_end=(ended if ended is not None else []).append,
    )


async def test_a_call_is_awaited_or_entered_and_leaving_it_ends_it() -> None:
    """`await` gives the call as it is; `async with` ends it once, whoever ended it before."""
    ended: list[Call] = []

    async def connect() -> Call:
        return _call(ended)

    call = await PendingCall(connect)
    assert ended == []
    async with call:
        pass
    assert ended == [call]
    async with PendingCall(connect) as other:
        await other.end()
    assert ended == [call, other]
    assert "ended" in repr(other)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (rtc.DisconnectReason.DUPLICATE_IDENTITY, "under the same identity, 'me'"),
        (rtc.DisconnectReason.ROOM_DELETED, "the room was deleted"),
        (rtc.DisconnectReason.UNKNOWN_REASON, "connection to the server ended while"),
    ],
)
async def test_a_caller_who_is_thrown_out_is_told_why(reason: int, words: str) -> None:
    """The SDK's reason of a disconnect stands in the error of whoever waits."""
    call = _call()
    call._watch_room()
    call._room.emit("disconnected", reason)
    with pytest.raises(AgentLostError) as caught:
        await call.hear_greeting(1.0)
    assert words in caught.value.observed


async def test_a_lab_that_stops_ends_its_open_calls_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls end while the server is there to be told so."""
    lab = Lab(llm="paced", letta=False, workers=0)
    order: list[str] = []
    call = _call()

    async def end() -> None:
        order.append("call")

    async def server_stops() -> None:
        order.append("server")

    monkeypatch.setattr(call, "end", end)
    lab._calls.add(call)
    lab._stack.push_async_callback(server_stops)
    await lab.stop()
    assert order == ["call", "server"]


async def test_an_error_while_a_lab_stops_does_not_leave_it_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The lab is stopped, what remains is stopped too, and the logs of the failure are kept."""
    lab = Lab(llm="paced", letta=False, workers=0, data_dir=tmp_path)
    lab._state_dir = tmp_path / "state"
    lab._state_dir.mkdir()
    stopped: list[str] = []

    async def fails() -> None:
        raise RuntimeError("it does not end")

    async def ends() -> None:
        stopped.append("the other part")

    lab._dispatcher = Dispatcher("ws://127.0.0.1:9", "key", SecretStr("secret"))
    lab._stack.push_async_callback(ends)
    lab._stack.push_async_callback(fails)
    assert lab.running
    with pytest.raises(RuntimeError, match="it does not end"):
        await lab.stop()
    assert not lab.running
    assert stopped == ["the other part"]
    assert (tmp_path / "state").is_dir()


@pytest.mark.parametrize(
    ("error", "kept"), [(KeyboardInterrupt, 0), (asyncio.CancelledError, 0), (ValueError, 1)]
)
async def test_logs_are_kept_after_an_error_and_not_after_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[BaseException], kept: int
) -> None:
    """An ordinary end of `up` or `worker` leaves no folder behind."""

    async def nothing(*_: Any) -> None:
        pass

    lab = Lab(llm="paced", letta=False, workers=0, data_dir=tmp_path)
    monkeypatch.setattr(lab, "_start_parts", nothing)
    await lab.__aenter__()
    await lab.__aexit__(error, error(), None)
    assert len(list((tmp_path / "labs").iterdir())) == kept
