"""Links: their texts, what they do to packets, and what is read of a packet."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from labvoice.bench.arms import Arm, target_arms, with_links
from labvoice.errors import UsageError
from labvoice.link import rtp
from labvoice.link.impairment import NAMED, Impairment, LinkProfile, Shaper
from labvoice.targets.config import read_config

_PACKETS = 20_000
_APART_S = 0.02


def _left(impairment: Impairment, seed: str = "1", size: int = 160) -> list[list[float]]:
    shaper = Shaper(impairment, seed)
    return [shaper.due(number * _APART_S, size) for number in range(_PACKETS)]


def _delays(left: list[list[float]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([out[0] - n * _APART_S for n, out in enumerate(left) if out])


@pytest.mark.parametrize(
    ("text", "up", "down"),
    [
        (
            "delay=80ms,jitter=30ms,loss=3%,rate=64kbit,reorder=1%",
            Impairment(delay_s=0.08, jitter_s=0.03, loss=0.03, rate_bps=64e3, reorder=0.01),
            None,
        ),
        ("delay=0.1s, loss=0.5,burst=4", Impairment(delay_s=0.1, loss=0.5, burst=4), None),
        ("duplicate=2%,rate=2mbit,seed=7", Impairment(duplicate=0.02, rate_bps=2e6), None),
        ("down.delay=100ms", Impairment(), Impairment(delay_s=0.1)),
        ("none", Impairment(), None),
        ("train", NAMED["train"], None),
        ("satellite,up.loss=100%", Impairment(0.3, 0.01, 1.0, rate_bps=1e6), NAMED["satellite"]),
    ],
)
def test_a_link_is_read_as_it_is_written(
    text: str, up: Impairment, down: Impairment | None
) -> None:
    """Keys are for both directions unless one is named; a name may be changed by keys."""
    profile = LinkProfile.parse(text)
    assert (profile.up, profile.down) == (up, up if down is None else down)
    assert str(profile) == text
    assert LinkProfile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("5g", "no link '5g'"),
        ("delay=80", "delay=80 is no time with a unit"),
        ("loss=3 percent", "loss=3 percent is no share"),
        ("loss=300%", "loss of 3 is not"),
        ("rate=64", "rate=64 is no rate with a unit"),
        ("rate=1kbit", "rate of 1000 is not"),
        ("burst=many", "burst=many is no number"),
        ("burst=0", "burst of 0 is not"),
        ("delay=1ms,delay=2ms", "delay is given twice"),
        ("lag=1ms", "no key 'lag'"),
        ("left.delay=1ms", "no key 'left.delay'"),
        ("delay", "no link 'delay'"),
        ("4g,delay", "'delay' is no KEY=VALUE"),
        ("seed=x", "seed=x is no whole number"),
        ("delay=20s", "delay of 20 is not"),
    ],
)
def test_a_wrong_link_is_refused_by_the_part_that_is_wrong(text: str, named: str) -> None:
    """The error names what cannot be read, and the hint gives an example."""
    with pytest.raises(UsageError, match=r"such as|link") as refused:
        LinkProfile.parse(text)
    assert named in refused.value.observed
    assert "such as" in refused.value.hint


def test_a_link_without_impairment_passes_every_packet_at_once() -> None:
    """Nothing is delayed, lost or sent twice."""
    assert _left(Impairment()) == [[number * _APART_S] for number in range(_PACKETS)]


def test_chance_follows_from_the_seed() -> None:
    """The same seed gives every packet the same fate, another seed another."""
    train = NAMED["train"]
    assert _left(train, "1") == _left(train, "1")
    assert _left(train, "1") != _left(train, "2")


def test_jitter_spreads_the_delay_and_keeps_the_order() -> None:
    """The delay's mean and width are as told, and no packet overtakes another."""
    delays = _delays(_left(Impairment(delay_s=0.08, jitter_s=0.009)))
    assert delays.mean() == pytest.approx(0.08, abs=0.001)
    assert 0.07 < delays.min() < 0.0715
    assert 0.0885 < delays.max() < 0.09
    jumping = [out[0] for out in _left(Impairment(delay_s=0.08, jitter_s=0.08))]
    assert jumping == sorted(jumping)


def test_loss_comes_singly_or_in_bursts() -> None:
    """The share of lost packets is as told in both cases, the length of bursts too."""
    for burst in (1.0, 5.0):
        lost = [not out for out in _left(Impairment(loss=0.1, burst=burst))]
        runs = [len(list(group)) for is_lost, group in itertools.groupby(lost) if is_lost]
        assert np.mean(lost) == pytest.approx(0.1, abs=0.02)
        assert np.mean(runs) == pytest.approx(burst if burst > 1 else 1 / 0.9, rel=0.1)


def test_a_cut_link_passes_nothing() -> None:
    """With a loss of 100 % no packet leaves."""
    assert not any(_left(Impairment(loss=1.0)))
    assert LinkProfile.parse("up.loss=100%").cut
    assert not LinkProfile.parse("loss=99%").cut


def test_a_rate_queues_packets_and_drops_what_waits_too_long() -> None:
    """Below the rate a packet takes its length; above it the queue fills up, and no further."""
    slow = _delays(_left(Impairment(rate_bps=128e3), size=160))
    assert slow == pytest.approx(160 * 8 / 128e3)
    left = _left(Impairment(rate_bps=32e3), size=160)  # half of what comes
    assert np.mean([bool(out) for out in left]) == pytest.approx(0.5, abs=0.01)
    assert _delays(left).max() < 0.6


def test_reordered_packets_are_overtaken_and_duplicates_come_twice() -> None:
    """The shares are as told."""
    left = [out[0] for out in _left(Impairment(delay_s=0.05, reorder=0.05))]
    overtaken = [later < earlier for earlier, later in itertools.pairwise(left)]
    assert np.mean(overtaken) == pytest.approx(0.05, abs=0.01)
    twice = [len(out) == 2 for out in _left(Impairment(duplicate=0.1))]
    assert np.mean(twice) == pytest.approx(0.1, abs=0.01)


def _rtp(extension: bytes, profile: int = 0xBEDE, payload: int = 40) -> bytes:
    padded = extension + bytes(-len(extension) % 4)
    header = bytes([0x90, 63]) + (7).to_bytes(2) + (960).to_bytes(4) + (99).to_bytes(4)
    return header + profile.to_bytes(2) + (len(padded) // 4).to_bytes(2) + padded + bytes(payload)


@pytest.mark.parametrize(
    ("extension", "profile"),
    [(bytes([0x10, 0x80 | 18]), 0xBEDE), (bytes([1, 1, 18, 4, 0]), 0x1000)],
)
def test_a_packet_tells_its_stream_and_its_level(extension: bytes, profile: int) -> None:
    """Header and extensions are read in both of RFC 8285's forms; the voice bit is left out."""
    packet = _rtp(extension, profile)
    read = rtp.parse(packet)
    assert (read.ssrc, read.sequence, read.timestamp, read.payload) == (99, 7, 960, 40)
    assert rtp.audio_level(read.extensions[1]) == -18


def test_a_packet_without_extensions_is_read_too() -> None:
    """All after the header is its payload."""
    plain = bytes([0x80, 111]) + bytes(10) + bytes(50)
    assert rtp.parse(plain).extensions == {}
    assert rtp.parse(plain).payload == 50


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "other"),
        (bytes([0, 1]), "stun"),
        (bytes([22, 254]), "dtls"),
        (bytes([0x80, 111]) + bytes(10), "rtp"),
        (bytes([0x80, 200]) + bytes(10), "rtcp"),
        (bytes([0x80]), "other"),
    ],
)
def test_protocols_of_one_port_are_told_apart(data: bytes, kind: str) -> None:
    """The first bytes say whether a datagram is media, a check of the path, or neither."""
    assert rtp.kind_of(data) == kind


def test_a_link_is_of_all_arms_or_of_one() -> None:
    """What names an arm is for that one alone; an unknown arm is refused."""
    linked = with_links([Arm("a"), Arm("b")], ["delay=10ms", "b:4g"])
    assert [str(arm.link) for arm in linked] == ["delay=10ms", "4g"]
    assert [arm.link for arm in with_links([Arm("a")], [])] == [None]
    with pytest.raises(UsageError, match="no arm 'c'"):
        with_links([Arm("a")], ["c:4g"])


def test_a_link_stands_in_the_configuration_file(tmp_path: Path) -> None:
    """An arm has its own link, else that of the top; a wrong one is named with the file."""
    file = tmp_path / "labvoice.toml"
    file.write_text('link = "wifi"\n[arms.good]\n[arms.bad]\nlink = "train,loss=9%"\n')
    arms = target_arms(read_config(file).arms)
    assert {arm.name: str(arm.link) for arm in arms} == {"good": "wifi", "bad": "train,loss=9%"}
    file.write_text('[arms.bad]\nlink = "5g"\n')
    with pytest.raises(UsageError, match=r"labvoice\.toml: arms\.bad: there is no link '5g'"):
        read_config(file)
