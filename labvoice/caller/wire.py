"""Finds a turn's packets on the wire: the last voiced one sent, the first voiced one received.

Packets tell their level (RFC 6464) on the way from a client to the server alone. A relay before the
agent sees the agent's, and the server passes a payload on as it is, with timestamps shifted by a
constant: so each packet that the caller receives is known by the one that the agent sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from labvoice.link.relay import Direction, Packet
from labvoice.speech.detection import NOISE_RATIO, PEAK_RATIO

_FAINT_DBOV: Final = -60.0
"""As quiet as a 10 ms frame may be that the ear takes for voice (labvoice.caller.ear)."""
_SILENCE_DBOV: Final = -127.0
_PEAK_DB: Final = float(20 * np.log10(PEAK_RATIO))
_NOISE_DB: Final = float(20 * np.log10(NOISE_RATIO))
_BEFORE_S: Final = 0.3
_AFTER_S: Final = 0.1
_CLOSURE_S: Final = 0.12
"""Silence inside a word, and between the packets around it."""
_SLACK_S: Final = 0.3
_UNDER_WAY_S: Final = 2.0
_TRIED: Final = 3
_TIMESTAMPS: Final = 1 << 32
_RATE_HZ: Final = 48000
_PACKET: Final = 960
PACKET_S: Final = _PACKET / _RATE_HZ
"""Duration of a packet, in seconds: 20 ms of Opus, as WebRTC sends it."""
_AROUND: Final = range(-3 * _PACKET, 4 * _PACKET, _PACKET)
_OFFSETS: Final = range(-_PACKET // 2, _PACKET + _PACKET // 2, 24)
_LINE_DBOV: Final = -48.0
"""Quieter packets say nothing of a sound: it may be the line's own noise."""


class Matched(NamedTuple):
    """A packet as it was sent and as it was received."""

    sent: Packet
    received: Packet


class TurnPackets(NamedTuple):
    """The packets of a turn.

    Attributes:
        spoken: What the caller sent, by arrival at its relay.
        last: That with the caller's last voiced sample.
        at_agent: The same before the agent.
        reply: What the agent sent and the caller received.
        first: That with the first voiced sample of the reply.
    """

    spoken: list[Packet]
    last: Packet | None
    at_agent: Packet | None
    reply: list[Matched]
    first: Matched | None

    @property
    def marks(self) -> dict[str, float]:
        """Those marks of the packets that can be told, in monotonic seconds.

        `speech_packet_sent`: the packet with the caller's last voiced sample leaves;
        `speech_packet_at_agent`: it reaches the agent; `reply_packet_sent`: the first voiced packet
        of the reply leaves the agent; `reply_packet_received`: it reaches the caller.
        """
        found: dict[str, float] = {}
        if self.last is not None:
            found["speech_packet_sent"] = self.last.in_s
        if self.at_agent is not None and self.at_agent.out_s is not None:
            found["speech_packet_at_agent"] = self.at_agent.out_s
        if self.first is not None and self.first.received.out_s is not None:
            found["reply_packet_sent"] = self.first.sent.in_s
            found["reply_packet_received"] = self.first.received.out_s
        return found


def turn_packets(
    mine: Sequence[Packet],
    agents: Sequence[Packet],
    speech_end_s: float,
    heard_s: float,
    buffer_s: float,
) -> TurnPackets:
    """Finds a turn's packets.

    Args:
        mine: Packets at the caller's relay.
        agents: Packets at the relay before the agent, of all its agents.
        speech_end_s: The caller's `user_speech_end`.
        heard_s: Its `reply_heard`.
        buffer_s: Mean time of samples in its jitter buffer.
    """
    spoken = busiest(mine, "up")
    last = last_voiced(spoken, speech_end_s)
    arrived = _best(_pairs(spoken, stream) for stream in _streams(agents, "down"))
    at_agent = [] if last is None else [pair.received for pair in arrived if pair.sent is last]
    heard = busiest(mine, "down")
    reply = _best(_pairs(stream, heard) for stream in _streams(agents, "up"))
    first = first_voiced(reply, heard_s, buffer_s)
    return TurnPackets(spoken, last, at_agent[0] if at_agent else None, reply, first)


def busiest(packets: Iterable[Packet], direction: Direction) -> list[Packet]:
    """Returns the packets of one direction, of the stream that has most, by arrival."""
    return max(_streams(packets, direction), key=len, default=[])


def last_voiced(spoken: Sequence[Packet], speech_end_s: float) -> Packet | None:
    """Returns the packet with the last voiced sample; in noise, the one that its time says."""
    near = [p for p in spoken if abs(p.in_s - speech_end_s) <= 2 * _BEFORE_S]
    window = [p for p in near if -_BEFORE_S <= p.in_s - speech_end_s <= _AFTER_S]
    loudest = max(map(_level, window), default=_SILENCE_DBOV)
    threshold = max(_FAINT_DBOV, loudest + _PEAK_DB)
    voiced = [p for p in window if _level(p) > threshold]
    after = [p for p in near if _AFTER_S < p.in_s - speech_end_s <= 2 * _AFTER_S]
    if not voiced or any(_level(p) > threshold for p in after):
        return next((p for p in window if p.in_s >= speech_end_s), None)
    return voiced[-1]


def first_voiced(pairs: Iterable[Matched], heard_s: float, buffer_s: float) -> Matched | None:
    """Returns the first voiced packet of the voice that was heard at an instant.

    Of all segments of voice it is the one that begins nearest to that instant less the jitter
    buffer; None where none begins within 0.3 s of it, as when the line is never silent.
    """
    got = sorted((p for p in pairs if p.received.out_s is not None), key=_at_s)
    due_s = heard_s - buffer_s
    near = [pair for pair in got if -1.0 <= _at_s(pair) - due_s <= 0.5]
    before = [_level(pair.sent) for pair in near if _at_s(pair) < due_s - _SLACK_S]
    noise = float(np.quantile(before, 0.75)) if before else _SILENCE_DBOV
    loudest = max((_level(pair.sent) for pair in near), default=_SILENCE_DBOV)
    threshold = max(_FAINT_DBOV, loudest + _PEAK_DB, noise + _NOISE_DB)
    begins: list[Matched] = []
    last_s = float("-inf")
    for pair in got:
        if _level(pair.sent) > threshold:
            if _at_s(pair) - last_s > _CLOSURE_S:
                begins.append(pair)
            last_s = _at_s(pair)
    there = [p for p in begins if _at_s(p) - due_s >= -_SLACK_S and _at_s(p) <= heard_s]
    return min(there, key=lambda pair: abs(_at_s(pair) - due_s), default=None)


def offset_in_packet(
    packets: Iterable[Packet], packet: Packet, samples: npt.NDArray[np.int16], index: int
) -> float:
    """Returns how far into a packet one sample of a known sound is, in seconds.

    The levels of the packets around it say where the sound begins and ends among them. Negative, or
    longer than the packet, where the sample is in one of its neighbours.

    Args:
        packets: Of one stream, with this one.
        samples: The sound, mono at 48 kHz, with silence before and after it.
        index: Of the sample in the sound.
    """
    levels = {
        (each.timestamp - packet.timestamp + _TIMESTAMPS // 2) % _TIMESTAMPS - _TIMESTAMPS // 2: (
            max(_level(each), _LINE_DBOV)
        )
        for each in packets
    }
    around = {shift: levels[shift] for shift in _AROUND if shift in levels}
    margin = 2 * max(_AROUND)
    line = np.pad(samples / np.iinfo(np.int16).max, margin)
    energy = np.concatenate([[0.0], np.cumsum(np.square(line))])
    begins = np.array([index + margin + shift for shift in around])
    best = min(
        _OFFSETS,
        key=lambda offset: float(
            np.sum(np.square(_mean_levels(energy, begins - offset) - list(around.values())))
        ),
    )
    return best / _RATE_HZ


def _mean_levels(
    energy: npt.NDArray[np.float64], begins: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Levels of the packets that begin at these samples, in dBov."""
    mean = (energy[begins + _PACKET] - energy[begins]) / _PACKET
    return np.asarray(np.maximum(10 * np.log10(np.maximum(mean, 1e-12)), _LINE_DBOV))


def _at_s(pair: Matched) -> float:
    return pair.received.out_s if pair.received.out_s is not None else float("inf")


def _level(packet: Packet) -> float:
    return _SILENCE_DBOV if packet.level is None else float(packet.level)


def _streams(packets: Iterable[Packet], direction: Direction) -> list[list[Packet]]:
    """Packets of one direction by client and stream, each by arrival."""
    found: dict[tuple[int, int], list[Packet]] = {}
    for each in packets:
        if each.direction == direction:
            found.setdefault((each.client, each.ssrc), []).append(each)
    return [sorted(stream, key=lambda packet: packet.in_s) for stream in found.values()]


def _best(every: Iterable[list[Matched]]) -> list[Matched]:
    return max(every, key=len, default=[])


def _pairs(sent: Sequence[Packet], received: Sequence[Packet]) -> list[Matched]:
    """Pairs the packets of two streams: one shift of timestamps, one difference of sizes."""
    by_timestamp = {each.timestamp: each for each in sent}
    best: list[Matched] = []
    # From the middle: the first ones received may have been sent before the first ones seen.
    for one in received[len(received) // 2 :][:_TRIED]:
        for other in sent:
            if not 0 <= one.in_s - other.in_s + 0.01 <= _UNDER_WAY_S:
                continue
            shift = one.timestamp - other.timestamp
            pairs: dict[int, list[Matched]] = {}
            for each in received:
                twin = by_timestamp.get((each.timestamp - shift) % _TIMESTAMPS)
                if twin is not None:
                    pairs.setdefault(each.payload - twin.payload, []).append(Matched(twin, each))
            most = max(pairs.values(), key=len, default=[])
            if len(most) > len(best):
                best = most
    return best
