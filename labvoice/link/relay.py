"""A UDP relay: forwards, timestamps and impairs every packet between a client and its server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from labvoice.link import rtp
from labvoice.link.impairment import LinkProfile, Shaper

Direction = Literal["up", "down"]
LOOPBACK: Final = "127.0.0.1"
_SO_TIMESTAMPNS: Final = 35  # Linux; the `socket` module does not name it
_LARGEST: Final = 65536
_KEPT: Final = 60_000
"""Packets that are kept: ten minutes of both directions."""


class Packet(NamedTuple):
    """An RTP packet that came to a relay.

    Attributes:
        direction: `up`: from the client; `down`: to it.
        in_s: When the kernel received it, in monotonic seconds.
        out_s: When it was sent on; None if it was lost.
        client: UDP port of the client.
        ssrc: The stream.
        timestamp: Of its first sample, in samples at 48 kHz, 32 bits.
        payload: Length of what is encrypted, in bytes.
        level: Audio level in dBov; None where the packet tells none.
    """

    direction: Direction
    in_s: float
    out_s: float | None
    client: int
    ssrc: int
    timestamp: int
    payload: int
    level: int | None


class _Passing(NamedTuple):
    """A datagram on its way."""

    direction: Direction
    kind: rtp.Kind
    data: bytes
    in_s: float
    client: Any
    send: Callable[[bytes], int]


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    if sys.platform == "linux":
        made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return made


def _receive(source: socket.socket) -> tuple[bytes, float, Any] | None:
    """Returns a datagram, when the kernel got it, in monotonic seconds, and its sender."""
    try:
        data, ancillary, _, sender = source.recvmsg(_LARGEST, 64)
    except OSError:  # nothing waits, or the other end refused what was sent before
        return None
    at_s = time.monotonic()
    for _, name, value in ancillary:
        if name == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", value[:16])
            at_s -= max(0.0, time.time() - (seconds + nanoseconds / 1e9))
    return data, at_s, sender


class UdpRelay:
    """Forwards between a UDP port of its own and the server's.

    Attributes:
        port: UDP port for the clients.
        server: Address of the server's media; nothing passes before it is known.
        level_numbers: Number of the audio level's extension, by direction.
        packets: The last RTP packets, in the order in which they left or were lost.
        counts: Packets by direction and fate: `up in`, `up out`, `up lost`, …; checks of the path
            (STUN) are not counted, as WebRTC's statistics do not.
    """

    def __init__(self, profile: LinkProfile, seed: str, *, keep: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = _socket()
        self._listening.bind((LOOPBACK, 0))
        self._loop.add_reader(self._listening, self._from_clients)
        self.port: int = self._listening.getsockname()[1]
        self.server: tuple[str, int] | None = None
        self.level_numbers: dict[Direction, int] = {}
        self.packets: deque[Packet] = deque(maxlen=_KEPT)
        self.counts: Counter[str] = Counter()
        self._keep, self._seed, self._times_set = keep, seed, 0
        self._upstream: dict[Any, socket.socket] = {}
        self._closed = False
        self.impair(profile)

    def impair(self, profile: LinkProfile) -> None:
        """Changes the impairment from now on."""
        seed = f"{profile.seed} {self._seed} {self._times_set}"
        self._times_set += 1
        self._shapers: dict[Direction, Shaper] = {
            "up": Shaper(profile.up, f"{seed} up"),
            "down": Shaper(profile.down, f"{seed} down"),
        }

    def _from_clients(self) -> None:
        while got := _receive(self._listening):
            data, at_s, client = got
            if client not in self._upstream:
                if self.server is None:
                    continue
                upstream = self._upstream[client] = _socket()
                upstream.connect(self.server)
                self._loop.add_reader(
                    upstream, functools.partial(self._from_server, upstream, client)
                )
            send = self._upstream[client].send
            self._pass(_Passing("up", rtp.kind_of(data), data, at_s, client, send))

    def _from_server(self, upstream: socket.socket, client: Any) -> None:
        send = functools.partial(self._to_client, client)
        while got := _receive(upstream):
            data, at_s, _ = got
            self._pass(_Passing("down", rtp.kind_of(data), data, at_s, client, send))

    def _to_client(self, client: Any, data: bytes) -> int:
        return self._listening.sendto(data, client)

    def _pass(self, passing: _Passing) -> None:
        due = self._shapers[passing.direction].due(passing.in_s, len(passing.data))
        self._count(passing, "in")
        if not due:
            self._count(passing, "lost")
            self._note(passing, None)
        for copy, due_s in enumerate(due):
            leave = functools.partial(self._leave, passing, first=not copy)
            if due_s <= time.monotonic():
                leave()
            else:
                # Timers of a loop fire in order of time, so what `due` keeps in order stays so.
                self._loop.call_at(due_s, leave)

    def _leave(self, passing: _Passing, *, first: bool) -> None:
        if self._closed:
            return
        with contextlib.suppress(OSError):  # the other end is gone, or its buffer is full
            passing.send(passing.data)
        out_s = time.monotonic()
        self._count(passing, "out")
        if first:
            self._note(passing, out_s)

    def _count(self, passing: _Passing, fate: str) -> None:
        if passing.kind != "stun":
            self.counts[f"{passing.direction} {fate}"] += 1

    def _note(self, passing: _Passing, out_s: float | None) -> None:
        if not self._keep or passing.kind != "rtp":
            return
        header = rtp.parse(passing.data)
        level = header.extensions.get(self.level_numbers.get(passing.direction, 0))
        self.packets.append(
            Packet(
                passing.direction,
                passing.in_s,
                out_s,
                passing.client[1],
                header.ssrc,
                header.timestamp,
                header.payload,
                rtp.audio_level(level) if level else None,
            )
        )

    def close(self) -> None:
        """Closes its ports; packets that wait are dropped."""
        self._closed = True
        for each in (self._listening, *self._upstream.values()):
            self._loop.remove_reader(each)
            each.close()
