"""Packets of a turn: which one has the last voiced sample sent, which the first one heard."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from labvoice.bench.calibrate import reply_of
from labvoice.caller.wire import PACKET_S, offset_in_packet, turn_packets
from labvoice.link.relay import Packet

_SAMPLES = 960
_SILENT = -127
_VOICED = -20
_UP_S, _DOWN_S = 0.03, 0.05
_SPEECH_S = (1.0, 1.6)
_REPLY_S = (2.5, 3.1)


def _levels(voiced: tuple[float, float], between: int) -> list[int]:
    return [_VOICED if voiced[0] <= n * PACKET_S < voiced[1] else between for n in range(200)]


def _streams(
    *, between: int = _SILENT, lost: frozenset[int] = frozenset(), seed: int = 1
) -> tuple[list[Packet], list[Packet]]:
    """Packets at the caller's relay and at the agent's, which two agents use."""
    rng = np.random.default_rng(seed)
    mine, agents = [], []
    sizes = rng.integers(40, 160, (3, 200))
    for n, (up, down) in enumerate(
        zip(_levels(_SPEECH_S, between), _levels(_REPLY_S, between), strict=True)
    ):
        at_s = n * PACKET_S
        size, reply, other = (int(each) for each in sizes[:, n])
        mine.append(Packet("up", at_s, at_s + 0.001, 5, 1, n * _SAMPLES, size, up))
        agents.append(
            Packet("down", at_s + _UP_S, at_s + _UP_S, 8, 2, n * _SAMPLES + 77, size + 6, None)
        )
        stamp = (n * _SAMPLES - 90_000) % 2**32  # wraps in mid-call
        agents.append(Packet("up", at_s, at_s, 8, 3, stamp, reply, down))
        agents.append(Packet("up", at_s, at_s, 9, 3, n * _SAMPLES, other, _VOICED))
        out_s = None if n in lost else at_s + _DOWN_S
        mine.append(Packet("down", at_s + 0.01, out_s, 5, 4, (stamp + 5) % 2**32, reply + 6, None))
    return mine, agents


def _marks(mine: list[Packet], agents: list[Packet], buffer_s: float = 0.04) -> dict[str, float]:
    heard_s = _REPLY_S[0] + _DOWN_S + buffer_s + 0.005
    return turn_packets(mine, agents, _SPEECH_S[1] - 0.011, heard_s, buffer_s).marks


@pytest.mark.parametrize("buffer_s", [0.04, 0.6])
def test_voice_is_found_at_both_ends_of_the_wire(buffer_s: float) -> None:
    """Each of the four marks is the instant of its packet, however large the jitter buffer is."""
    found = _marks(*_streams(), buffer_s)
    assert found == pytest.approx(
        {
            "speech_packet_sent": _SPEECH_S[1] - PACKET_S,
            "speech_packet_at_agent": _SPEECH_S[1] - PACKET_S + _UP_S,
            "reply_packet_sent": _REPLY_S[0],
            "reply_packet_received": _REPLY_S[0] + _DOWN_S,
        }
    )


@pytest.mark.parametrize("late_s", [0.1, 0.5])
def test_packets_of_a_slow_link_are_found_though_both_relays_see_other_ones(late_s: float) -> None:
    """What one relay saw first the other has seen before the time that is looked at."""
    mine, agents = _streams()
    late = [p._replace(in_s=p.in_s + late_s, out_s=(p.out_s or 0) + late_s) for p in agents]
    seen = [p for p in mine if 0.6 <= p.in_s <= 3.5], [p for p in late if 0.6 <= p.in_s <= 3.5]
    assert _marks(*seen)["speech_packet_at_agent"] == pytest.approx(
        _SPEECH_S[1] - PACKET_S + _UP_S + late_s
    )


def test_noise_on_the_line_moves_no_mark() -> None:
    """A level between the utterances that is 35 dB below them is no voice."""
    assert _marks(*_streams(between=_VOICED - 35)) == _marks(*_streams())


def test_loud_noise_leaves_the_time_of_the_last_sample_and_no_onset() -> None:
    """Where levels tell nothing the sent packet is known by its time, and the reply's is not."""
    found = _marks(*_streams(between=_VOICED - 4))
    assert found["speech_packet_sent"] == pytest.approx(_SPEECH_S[1])
    assert "reply_packet_received" not in found


def test_a_lost_first_packet_is_not_the_first_heard() -> None:
    """The first voiced packet is the first that arrives."""
    first = round(_REPLY_S[0] / PACKET_S)
    found = _marks(*_streams(lost=frozenset({first})))
    assert found["reply_packet_received"] == pytest.approx(_REPLY_S[0] + _DOWN_S + PACKET_S)


def test_without_a_relay_before_the_agent_only_the_caller_is_known() -> None:
    """Levels are told on the way to the server alone."""
    mine, _ = _streams()
    assert _marks(mine, []).keys() == {"speech_packet_sent"}
    assert _marks([], []) == {}


def _packets_of(line: npt.NDArray[np.int16], first_timestamp: int) -> list[Packet]:
    """What a client sends of a line: 20 ms a packet, with the level of its samples."""
    packets = []
    for n, piece in enumerate(line[: len(line) // _SAMPLES * _SAMPLES].reshape(-1, _SAMPLES)):
        mean = float(np.mean(np.square(piece / 32767)))
        level = max(-127, round(10 * np.log10(max(mean, 1e-13))))
        stamp = (first_timestamp + n * _SAMPLES) % 2**32
        packets.append(Packet("up", n * PACKET_S, n * PACKET_S, 5, 1, stamp, 80, level))
    return packets


@pytest.mark.parametrize("variant", ["plain", "quiet", "breath"])
@pytest.mark.parametrize("noise_rms", [0.0, 0.0018])
@pytest.mark.parametrize("shift", [0, 144, 480, 700, 900])
def test_a_sounds_place_in_its_packet_follows_from_the_levels(
    variant: str, noise_rms: float, shift: int
) -> None:
    """The first and the last sample of a sound are placed in their packets to 2 ms."""
    sound, first = reply_of(variant)
    begin = 20 * _SAMPLES + shift
    rng = np.random.default_rng(2)
    line = rng.normal(0, noise_rms * 32767, 100 * _SAMPLES).astype(np.int16)
    line[begin : begin + len(sound)] += sound
    packets = _packets_of(line, first_timestamp=2**32 - 21 * _SAMPLES)  # wraps in the sound
    for index in (first, len(sound) - 1):
        number, inside = divmod(begin + index, _SAMPLES)
        found_s = offset_in_packet(packets, packets[number], sound, index)
        assert found_s == pytest.approx(inside / 48000, abs=0.002)
