"""How a LiveKit server is reached: round trip, clock offset, TURN servers, the way of the media."""

from __future__ import annotations

import asyncio
import re
import secrets
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Final

import aiohttp
from livekit import rtc
from livekit.protocol.rtc import Ping, SignalRequest, SignalResponse

from labvoice.errors import LabvoiceError, ServerUnreachableError, StageTimeoutError
from labvoice.proxies import http_session

_TIMEOUT_S: Final = 5.0
_PINGS: Final = 5
_TURN_TIMEOUT_S: Final = 3.0
_RETRANSMIT_S: Final = 0.5
_MOST_OFFSET_S: Final = 30.0
"""LiveKit takes a token that is dated up to a minute ahead (go-jose, `jwt.DefaultLeeway`)."""
_TURN_URL: Final = re.compile(
    r"(turns?):(\[[0-9a-fA-F:.]+\]|[^:?]+)(?::(\d+))?(?:\?transport=(udp|tcp))?"
)
# RFC 5389 and RFC 5766
_MAGIC: Final = 0x2112A442
_ALLOCATE: Final = 0x0003
_ANSWERS: Final = (0x0103, 0x0113)
_REQUESTED_TRANSPORT: Final = 0x0019
_UDP: Final = 17
_RELAY: Final = 3  # livekit's stats.proto, IceCandidateType
_RELAY_PROTOCOLS: Final = ("UDP", "TCP", "TLS")  # IceServerTransportProtocol


@dataclass(frozen=True)
class Reach:
    """What a server's signalling says in one connection.

    Attributes:
        round_trip_s: The shortest of five, in seconds.
        clock_offset_s: How far the server's clock is ahead of this machine's, in seconds; known to
            half the round trip, and to the millisecond that the server tells.
        turn_urls: Its TURN servers, such as `turn:192.0.2.1:3478?transport=udp`.
    """

    round_trip_s: float
    clock_offset_s: float
    turn_urls: tuple[str, ...]

    def __str__(self) -> str:
        way = "ahead of" if self.clock_offset_s >= 0 else "behind"
        sure_s = self.round_trip_s / 2 + 0.001
        return (
            f"round trip {self.round_trip_s * 1000:.1f} ms; the server's clock is "
            f"{abs(self.clock_offset_s) * 1000:.0f} ms {way} this machine's "
            f"(± {sure_s * 1000:.0f} ms)"
        )


async def measure(url: str, token: str) -> Reach:
    """Measures a server by its signalling.

    Args:
        token: Of a participant; it joins for the while, without media.

    Raises:
        ServerUnreachableError: Its signalling does not answer.
        LabvoiceError: Its clock is too far from this machine's.
    """
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            http_session(url) as client,
            client.ws_connect(
                f"{url.rstrip('/')}/rtc?protocol=16", headers={"Authorization": f"Bearer {token}"}
            ) as signalling,
        ):
            turn: tuple[str, ...] = ()
            found: list[tuple[float, float]] = []
            sent_s = 0.0
            async for message in signalling:
                if message.type != aiohttp.WSMsgType.BINARY:
                    continue
                response = SignalResponse.FromString(message.data)
                kind = response.WhichOneof("message")
                if kind == "join":
                    urls = [each for server in response.join.ice_servers for each in server.urls]
                    turn = tuple(each for each in urls if each.startswith("turn"))
                elif kind == "pong_resp":
                    round_trip_s = time.monotonic() - sent_s
                    here_s = time.time() - round_trip_s / 2
                    found.append((round_trip_s, response.pong_resp.timestamp / 1000 - here_s))
                    if len(found) == _PINGS:
                        return Reach(*min(found), turn)
                else:
                    continue
                ping = SignalRequest(ping_req=Ping(timestamp=int(time.time() * 1000)))
                sent_s = time.monotonic()
                await signalling.send_bytes(ping.SerializeToString())
    except TimeoutError:
        raise StageTimeoutError(
            "the server's pong", _TIMEOUT_S, "its signalling says none"
        ) from None
    except (aiohttp.ClientError, OSError) as error:
        raise ServerUnreachableError(
            f"the signalling at {url} does not answer: {error or type(error).__name__}",
            "a proxy before it has to pass websockets on",
        ) from None
    raise ServerUnreachableError(
        f"the signalling at {url} ended before it answered", "the server's log says why"
    )


def check_clock(reach: Reach) -> None:
    """Checks that the clocks are near enough for tokens.

    Raises:
        LabvoiceError: They are not.
    """
    if abs(reach.clock_offset_s) > _MOST_OFFSET_S:
        raise LabvoiceError(str(reach), "set the clocks of both machines: tokens are dated")


async def turn_answers(url: str) -> float:
    """Asks a TURN server for an allocation without a key, which it refuses.

    Args:
        url: As a server announces it: `turn:HOST:PORT?transport=udp` or `turns:…`.

    Returns:
        The time until its answer, in seconds; with TLS without the handshake.

    Raises:
        LabvoiceError: It does not answer as a TURN server does.
    """
    parts = _TURN_URL.fullmatch(url)
    if parts is None:
        raise LabvoiceError(f"{url} is not the address of a TURN server")
    tls, host = parts[1] == "turns", parts[2].strip("[]")
    port = int(parts[3] or (5349 if tls else 3478))
    try:
        async with asyncio.timeout(_TURN_TIMEOUT_S):
            if tls or parts[4] == "tcp":
                return await _ask_by_tcp(host, port, ssl.create_default_context() if tls else None)
            return await _ask_by_udp(host, port)
    except TimeoutError:
        reason = f"silent for {_TURN_TIMEOUT_S:g} s"
    except (OSError, asyncio.IncompleteReadError) as error:
        reason = str(error) or type(error).__name__
    raise LabvoiceError(f"{url}: {reason}")


def _allocate() -> bytes:
    attribute = struct.pack("!HHBxxx", _REQUESTED_TRANSPORT, 4, _UDP)
    head = struct.pack("!HHI", _ALLOCATE, len(attribute), _MAGIC)
    return head + secrets.token_bytes(12) + attribute


def _answers(said: bytes, asked: bytes) -> bool:
    """Whether it is the answer to this request: LiveKit's is an error, 401."""
    return (
        len(said) >= 20
        and int.from_bytes(said[:2], "big") in _ANSWERS
        and said[4:20] == asked[4:20]
    )


async def _ask_by_tcp(host: str, port: int, tls: ssl.SSLContext | None) -> float:
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        asked, asked_s = _allocate(), time.monotonic()
        writer.write(asked)
        if not _answers(await reader.readexactly(20), asked):
            raise OSError("what answers is no TURN server")
        return time.monotonic() - asked_s
    finally:
        writer.close()


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, asked: bytes) -> None:
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = asked

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.came.done() and _answers(data, self._asked):
            self.came.set_result(None)

    def error_received(self, exc: Exception) -> None:
        if not self.came.done():
            self.came.set_exception(exc)


async def _ask_by_udp(host: str, port: int) -> float:
    asked = _allocate()
    transport, answer = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Answer(asked), remote_addr=(host, port)
    )
    try:
        while True:
            asked_s = time.monotonic()
            transport.sendto(asked)
            done, _ = await asyncio.wait({answer.came}, timeout=_RETRANSMIT_S)
            if done:
                answer.came.result()
                return time.monotonic() - asked_s
    finally:
        transport.close()


async def media_path(room: rtc.Room) -> str:
    """Returns how the media of a connected room goes, such as `UDP to 192.0.2.1:7882`.

    Empty where the statistics name no path.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            stats = await room.get_rtc_stats()
    except (RuntimeError, TimeoutError):
        return ""
    entries = [*stats.subscriber_stats, *stats.publisher_stats]
    local = {e.local_candidate.rtc.id: e.local_candidate.candidate for e in entries}
    remote = {e.remote_candidate.rtc.id: e.remote_candidate.candidate for e in entries}
    for entry in entries:
        pair = entry.candidate_pair.candidate_pair
        if entry.WhichOneof("stats") != "candidate_pair" or not pair.nominated:
            continue
        ours, theirs = local.get(pair.local_candidate_id), remote.get(pair.remote_candidate_id)
        if ours is None or theirs is None:
            continue
        if ours.candidate_type == _RELAY:
            return f"TURN over {_RELAY_PROTOCOLS[ours.relay_protocol]} ({ours.url})"
        return f"{theirs.protocol.upper()} to {theirs.address}:{theirs.port}"
    return ""
