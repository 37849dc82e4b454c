"""The caller's connection to a room, and the errors of a failed one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from livekit import rtc

from labvoice.dispatch.media import announced_addresses, has_network, media_hint
from labvoice.errors import (
    CredentialsError,
    MediaBlockedError,
    ServerUnreachableError,
    StageTimeoutError,
)

if TYPE_CHECKING:
    from labvoice.caller.call import Call

CONNECT_TIMEOUT_S: Final = 10.0
_late: Final[set[asyncio.Task[None]]] = set()
"""Rooms that were given up and have not connected yet."""


class PendingCall:
    """A call being connected: `call = await pending`, or `async with pending as call:`.

    Leaving `async with` ends the call, its agent and its room.
    """

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, Call]]) -> None:
        self._connect = connect
        self._call: Call | None = None

    def __await__(self) -> Generator[Any, None, Call]:
        return self._connect().__await__()

    async def __aenter__(self) -> Call:
        self._call = await self._connect()
        return self._call

    async def __aexit__(self, *_: object) -> None:
        assert self._call is not None
        await self._call.end()


async def connect_room(room: rtc.Room, url: str, token: str) -> None:
    """Connects signalling and media.

    Raises:
        ServerUnreachableError: The server does not answer.
        CredentialsError: It refuses the token.
        MediaBlockedError: It answers, and media cannot pass.
        StageTimeoutError: Its signalling does not answer in time.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await connect_to_end(room, url, token)
    except rtc.ConnectError as error:
        if "401" in str(error) or "unauthorized" in str(error).lower():
            raise CredentialsError(
                f"the LiveKit server at {url} refuses the caller's token",
                "compare LIVEKIT_API_KEY and LIVEKIT_API_SECRET with the server's",
            ) from None
        raise ServerUnreachableError(
            f"the caller cannot connect to {url}: {error}",
            "check that the server runs and that its RTC ports can be reached",
        ) from None
    except TimeoutError:
        raise await _why_not_connected(url, token) from None


async def connect_to_end(room: rtc.Room, url: str, token: str) -> None:
    """Connects a room; if nobody waits any more, it still connects, and leaves then.

    A connection that is cancelled half-way ends the process: the SDK's native side goes on,
    waits for its Python side to take the room, and panics after some seconds ("timed out waiting
    for ReadyForRoomEventRequest", livekit 1.1.21).
    """
    options = rtc.RoomOptions(auto_subscribe=True)
    connecting = asyncio.create_task(room.connect(url, token, options))
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        leaving = asyncio.create_task(_leave(room, connecting), name="labvoice-late-room")
        _late.add(leaving)
        leaving.add_done_callback(_late.discard)
        raise


async def _leave(room: rtc.Room, connecting: asyncio.Task[None]) -> None:
    with suppress(rtc.ConnectError):
        await connecting
        await room.disconnect()


async def late_rooms_left(timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Waits for the rooms that were given up, before the event loop ends."""
    if _late:
        await asyncio.wait(_late, timeout=timeout_s)


async def _why_not_connected(url: str, token: str) -> StageTimeoutError:
    """Where the signalling answers, media is what fails."""
    addresses = await announced_addresses(url, token)
    if addresses is None:
        return StageTimeoutError(
            "room_connected",
            CONNECT_TIMEOUT_S,
            f"{url} did not finish the handshake",
            "check the address and that the server answers",
        )
    if not has_network():
        return MediaBlockedError(
            "room_connected",
            CONNECT_TIMEOUT_S,
            f"{url} answers, but this machine has no network interface besides loopback, which "
            "WebRTC does not use",
            "give the container a network (`docker run` without `--network none`); it needs no "
            "route to other machines",
        )
    return MediaBlockedError(
        "room_connected",
        CONNECT_TIMEOUT_S,
        f"{url} answers, but media cannot pass between it and the caller (UDP is blocked, or the "
        "address that it announces cannot be reached)",
        media_hint(addresses),
    )
