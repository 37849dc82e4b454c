"""What is said of media that does not pass; `tests/stack/test_media_blocked.py` blocks it."""

from __future__ import annotations

import asyncio
from typing import cast

import psutil
import pytest
from livekit import rtc

from labvoice.caller.connection import connect_room, late_rooms_left
from labvoice.concurrency import cancel
from labvoice.dispatch.media import media_hint
from labvoice.errors import MediaBlockedError, StageTimeoutError


async def test_a_server_that_says_nothing_is_not_one_whose_media_is_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where signalling does not answer either, no media port is blamed."""

    async def connect(*_: object) -> None:
        raise TimeoutError

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    monkeypatch.setattr(rtc.Room, "connect", connect)
    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(StageTimeoutError, match="did not finish the handshake") as raised:
            await connect_room(rtc.Room(), url, "token")
    assert not isinstance(raised.value, MediaBlockedError)
    assert "rtc.udp_port" not in raised.value.hint


async def test_a_container_without_a_network_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """With loopback alone the cause is the missing interface, and not a closed port."""

    async def connect(*_: object) -> None:
        raise TimeoutError

    async def announced(*_: object) -> list[str]:
        return ["UDP 127.0.0.1:7882"]

    loopback = {name: each for name, each in psutil.net_if_addrs().items() if name in ("lo", "lo0")}
    assert loopback
    monkeypatch.setattr(rtc.Room, "connect", connect)
    monkeypatch.setattr("labvoice.caller.connection.announced_addresses", announced)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: loopback)
    with pytest.raises(MediaBlockedError) as raised:
        await connect_room(rtc.Room(), "ws://127.0.0.1:9", "token")
    observed = raised.value.observed
    assert observed.count("this machine has no network interface besides loopback")  # entry
    assert "rtc.udp_port" not in raised.value.hint


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ([], "`rtc.udp_port`"),
        (["UDP 10.0.0.1:7882"], "UDP 10.0.0.1:7882: UDP"),
        (["UDP 10.0.0.1:7882"], "no TCP fallback"),
        (["UDP 10.0.0.1:7882", "TCP 10.0.0.1:7881"], "UDP 10.0.0.1:7882, TCP 10.0.0.1:7881"),
    ],
)
def test_the_hint_names_the_ports(addresses: list[str], said: str) -> None:
    """The hint names the ports that the server announces, and whether it has a fallback."""
    assert said in media_hint(addresses)


async def test_a_room_that_connects_after_it_was_given_up_is_left() -> None:
    """The native side panics where its connection is cancelled half-way, so it never is."""
    done: list[str] = []
    may = asyncio.Event()

    class Room:
        async def connect(self, *_: object) -> None:
            await may.wait()
            done.append("connected")

        async def disconnect(self) -> None:
            done.append("left")

    room = cast("rtc.Room", Room())
    connecting = asyncio.create_task(connect_room(room, "ws://127.0.0.1:9", "token"))
    await asyncio.sleep(0)
    await cancel(connecting)
    assert connecting.cancelled()
    assert done == []
    may.set()
    await late_rooms_left()
    assert done == ["connected", "left"]
