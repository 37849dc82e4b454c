"""Whose end it is: a call's, a lab's, and what each leaves behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from livekit import rtc
from pydantic import SecretStr

from labvoice.caller.agent import RoomAgent
from labvoice.caller.call import Call
from labvoice.caller.connection import PendingCall
from labvoice.caller.marks import ConnectionMarks
from labvoice.caller.microphone import Microphone
from labvoice.caller.turns import Turns
from labvoice.dispatch import Dispatcher
from labvoice.errors import AgentLostError
from labvoice.lab import Lab
from labvoice.stack.livekit.server import LiveKitServer


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


async def test_a_recording_that_cannot_be_written_costs_the_call_nothing_else(
    tmp_path: Path,
) -> None:
    """On a full disk the call ends as it would, and its notice says what is missing."""
    ended: list[Call] = []
    (tmp_path / "file").touch()
    async with _call(ended) as call:
        call.recorder.sent(np.ones(480, np.int16), 0.0)
        call.recording_path = tmp_path / "file" / "call.wav"
    assert ended == [call]
    assert "call.wav cannot be written" in call.notice


async def test_a_call_that_has_ended_is_freed_without_the_garbage_collector() -> None:
    """No reference cycle keeps a call, its room or its agent once nobody uses the call."""
    ended: list[Call] = []
    gc.collect()
    gc.disable()
    try:
        async with _call(ended) as call:
            call.agent.follow()
            await call.reports.start()
            call.agent.ear.add("track", name="voice", publisher="agent")
        parts = (call, call.media.room, call.agent, call.reports, call.recorder)
        kept = [weakref.ref(each) for each in parts]
        ended.clear()
        del call, parts
        await asyncio.sleep(0)  # tasks that have ended let go of what they used
        assert [each() for each in kept] == [None] * 5
    finally:
        gc.enable()


async def test_a_microphone_that_is_off_is_freed_without_the_garbage_collector() -> None:
    """The task that sent its sound, and was cancelled, keeps neither it nor whoever it told."""

    class Deaf:
        async def publish_track(self, *_: object) -> None:
            pass

    room = cast("rtc.Room", SimpleNamespace(local_participant=Deaf()))
    gc.disable()
    try:
        microphone = Microphone()
        await microphone.publish(room)
        await asyncio.sleep(0.05)
        await microphone.aclose()
        kept = weakref.ref(microphone)
        del microphone
        await asyncio.sleep(0)
        assert kept() is None
    finally:
        gc.enable()


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
    room = rtc.Room()

    async def why_ended(*_: str) -> str:
        return ""

    agent = RoomAgent(room, "me", ConnectionMarks(), Turns(), lambda *_: None, why_ended)
    agent.follow()
    room.emit("disconnected", reason)
    with pytest.raises(AgentLostError) as caught:
        await agent.until(lambda: False, "greeting_heard", 1.0)
    assert words in caught.value.observed


def _lab(tmp_path: Path) -> Lab:
    return Lab(llm="paced", letta=False, workers=0, model=False, data_dir=tmp_path)


async def test_a_lab_that_stops_ends_its_open_calls_first(
    dead_server: LiveKitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls end while the server still runs."""
    order: list[str] = []

    async def end() -> None:
        order.append("call")

    async def server_stops() -> None:
        order.append("server")

    monkeypatch.setattr(dead_server, "stop", server_stops)
    async with _lab(tmp_path) as lab:
        monkeypatch.setattr(lab.new_call(), "end", end)
    assert order == ["call", "server"]


async def test_an_error_while_a_lab_stops_does_not_leave_it_running(
    dead_server: LiveKitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab is stopped, what remains is stopped too, and the logs of the failure are kept."""
    stopped: list[str] = []

    async def fails() -> None:
        raise RuntimeError("it does not end")

    async def ends() -> None:
        stopped.append("the server")

    monkeypatch.setattr(dead_server, "stop", ends)
    lab = _lab(tmp_path)
    monkeypatch.setattr(lab.pool, "stop", fails)
    await lab.start()
    assert lab.running
    with pytest.raises(RuntimeError, match="it does not end"):
        await lab.stop()
    assert not lab.running
    assert stopped == ["the server"]
    assert len(list((tmp_path / "labs").iterdir())) == 1


@pytest.mark.parametrize(
    ("error", "kept"), [(KeyboardInterrupt, 0), (asyncio.CancelledError, 0), (ValueError, 1)]
)
async def test_logs_are_kept_after_an_error_and_not_after_ctrl_c(
    dead_server: LiveKitServer, tmp_path: Path, error: type[BaseException], kept: int
) -> None:
    """An ordinary end of `up` or `worker` leaves no folder behind."""
    lab = await _lab(tmp_path).__aenter__()
    await lab.__aexit__(error, error(), None)
    assert len(list((tmp_path / "labs").iterdir())) == kept
