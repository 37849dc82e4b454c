"""A caller's media connection: its link, its jitter buffer, and its packets on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from livekit import rtc

from labvoice.caller.microphone import Microphone
from labvoice.caller.turns import Turn
from labvoice.caller.wire import TurnPackets, turn_packets
from labvoice.concurrency import poll
from labvoice.errors import LabvoiceError, MediaPathError
from labvoice.link.client import Link

_STATS_TIMEOUT_S: Final = 2.0
_PATH_TIMEOUT_S: Final = 3.0
_POLL_S: Final = 0.05
_PACKETS_UNDER_WAY: Final = 50
_AROUND_S: Final = 1.0
_LATE_S: Final = 0.03
"""A stall of the caller's process by more than this, at an edge of a turn, moves its marks."""
_EDGE_S: Final = 0.1
_SWOLLEN_S: Final = 0.1
"""A jitter buffer above this, in seconds, where no link makes it so: on an idle machine its mean
over a turn is 40 ms, below 60 ms in 95 of 100 turns; one stall makes it 300 to 600 ms for the rest
of the call."""

OpenLink = Callable[[], Awaitable[Link]]


class MediaStats(NamedTuple):
    """What WebRTC's statistics say of a caller's connection.

    Attributes:
        ports: Ports of the other ends of the paths in use.
        sent: Packets sent on them.
        received: Packets received on them.
        buffered_s: Time that samples have spent in jitter buffers, in seconds, summed over samples.
        emitted: How many samples these are.
    """

    ports: frozenset[int]
    sent: int
    received: int
    buffered_s: float
    emitted: int

    def buffer_since(self, before: MediaStats) -> float | None:
        """Mean time in the jitter buffer since then, in seconds; None if nothing was heard."""
        emitted = self.emitted - before.emitted
        return (self.buffered_s - before.buffered_s) / emitted if emitted > 0 else None


async def media_stats(room: rtc.Room) -> MediaStats | None:
    """Returns the statistics of a room's connection; None where there is none (any more)."""
    try:
        async with asyncio.timeout(_STATS_TIMEOUT_S):
            stats = await room.get_rtc_stats()
    except (RuntimeError, TimeoutError):
        return None
    entries = [*stats.publisher_stats, *stats.subscriber_stats]
    remote = {
        each.remote_candidate.rtc.id: each.remote_candidate.candidate.port
        for each in entries
        if each.WhichOneof("stats") == "remote_candidate"
    }
    pairs = [
        each.candidate_pair.candidate_pair
        for each in entries
        if each.WhichOneof("stats") == "candidate_pair"
    ]
    used = [pair for pair in pairs if pair.nominated]
    heard = [
        each.inbound_rtp.inbound
        for each in entries
        if each.WhichOneof("stats") == "inbound_rtp" and each.inbound_rtp.stream.kind == "audio"
    ]
    return MediaStats(
        frozenset(remote.get(pair.remote_candidate_id, 0) for pair in used),
        sum(pair.packets_sent for pair in used),
        sum(pair.packets_received for pair in used),
        sum(each.jitter_buffer_delay for each in heard),
        sum(each.jitter_buffer_emitted_count for each in heard),
    )


@dataclass
class Media:
    """The media of one call.

    Attributes:
        open_link: Opens the link of the call; None for a call without one.
        tap: The relay before the agent, which tells the levels of what it sends.
        link: The link, once it is open.
        packets: Those of the last turn that was heard, where the link keeps them.
    """

    room: rtc.Room
    microphone: Microphone
    open_link: OpenLink | None = None
    tap: Link | None = None
    link: Link | None = None
    packets: TurnPackets | None = None

    def __post_init__(self) -> None:
        self._before: MediaStats | None = None

    async def open(self) -> None:
        """Opens the link, if there is to be one."""
        if self.open_link is not None and self.link is None:
            self.link = await self.open_link()

    async def check_path(self) -> None:
        """Checks that all media goes by the link.

        Raises:
            MediaPathError: Some of it does not.
        """
        if self.link is None:
            return

        async def with_a_path() -> MediaStats | None:
            stats = await media_stats(self.room)
            return stats if stats is not None and stats.ports else None

        stats = await poll(with_a_path, _PATH_TIMEOUT_S, _POLL_S)
        if stats is not None:  # without any path, what waits for media says so
            await self._check(stats, self.link)

    async def _check(self, stats: MediaStats, link: Link) -> None:
        hint = "this call's figures are not of the link; please report it, with the run file"
        if others := stats.ports - {link.udp_port}:
            raise MediaPathError(
                f"the caller's media goes to port {min(others)}, and not by the link's relay at "
                f"{link.udp_port}",
                hint,
            )
        counts = await link.counts()
        for what, here, there in (
            ("sent", stats.sent, counts["up in"]),
            ("received", stats.received, counts["down out"]),
        ):
            # They were counted one after the other.
            if there < 0.9 * here - _PACKETS_UNDER_WAY:
                raise MediaPathError(
                    f"the caller has {what} {here} packets, and the link's relay knows of {there}",
                    hint,
                )

    async def said(self) -> None:
        """The caller has spoken: what the jitter buffer does from now on is the turn's."""
        self._before = await media_stats(self.room)

    async def heard(self, turn: Turn) -> None:
        """Takes what is known of a turn that was heard: jitter buffer, stalls, packets.

        Raises:
            MediaPathError: Some of its media did not take the link.
            ProcessError: The link's relay does not answer.
        """
        stats = await media_stats(self.room)
        buffer_s = None
        if stats is not None and self._before is not None:
            buffer_s = stats.buffer_since(self._before)
        if buffer_s is not None:
            turn.jitter_buffer_s = buffer_s
        turn.upset = self._upset(turn)
        if stats is not None and stats.ports and self.link is not None:
            await self._check(stats, self.link)
        await self._date_packets(turn)

    def _upset(self, turn: Turn) -> str:
        """Why a turn's figures are of a stall of this machine; empty where they are not."""
        reasons = []
        edges = [turn.marks[m] for m in ("user_speech_end", "reply_heard") if m in turn.marks]
        late_s = max((self.microphone.late_s(at_s, _EDGE_S) for at_s in edges), default=0.0)
        if late_s > _LATE_S:
            reasons.append(f"the caller stalled for {late_s * 1000:.0f} ms")
        clean = self.link is None or self.link.profile.none
        if clean and (turn.jitter_buffer_s or 0.0) > _SWOLLEN_S:
            reasons.append(f"the jitter buffer held {(turn.jitter_buffer_s or 0) * 1000:.0f} ms")
        return " and ".join(reasons)

    async def _date_packets(self, turn: Turn) -> None:
        """Adds the marks of the turn's packets, where the link keeps them."""
        self.packets = None
        if self.link is None or not self.link.keeps_packets or turn.voice_to_voice_s is None:
            return
        # No longer: to match the packets of a long reply would itself stall the caller.
        around = (turn.marks["user_speech_end"] - _AROUND_S, turn.marks["reply_heard"] + _AROUND_S)
        mine = await self.link.packets(*around)
        agents = [] if self.tap is None else await self.tap.packets(*around)
        self.packets = await asyncio.to_thread(
            turn_packets,
            mine,
            agents,
            turn.marks["user_speech_end"],
            turn.marks["reply_heard"],
            turn.jitter_buffer_s or 0.0,
        )
        turn.marks |= self.packets.marks

    def cut(self) -> str:
        """Says that the link lets nothing pass; empty where that is not so."""
        if self.link is None or not self.link.profile.cut:
            return ""
        ways = {"up": self.link.profile.up.loss, "down": self.link.profile.down.loss}
        cut = " and ".join(
            {"up": "from the caller", "down": "to the caller"}[way]
            for way, loss in ways.items()
            if loss == 1.0
        )
        return f"the link ({self.link.profile}) loses every packet {cut}"

    async def aclose(self) -> None:
        """Closes the link."""
        if self.link is not None:
            with suppress(LabvoiceError):  # its process is gone, and the link with it
                await self.link.aclose()
