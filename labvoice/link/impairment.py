"""Impairments of a link: delay, jitter, loss, rate limit, reordering, duplicates."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from labvoice.errors import UsageError

SEED: Final = 20261
_QUEUE_S: Final = 0.5
"""A packet that would wait longer for its turn at a limited rate is dropped, as routers do."""
_HELD_BACK_S: Final = 0.05
"""How much later a reordered packet leaves: audio packets are 20 ms apart, so two overtake it."""
_LONGEST_S: Final = 10.0
_LEAST_BPS: Final = 8000.0


@dataclass(frozen=True)
class Impairment:
    """What one direction of a link does to each packet.

    Attributes:
        delay_s: Mean delay, in seconds.
        jitter_s: Half the width of the delay's uniform distribution around `delay_s`, in seconds;
            no delay is negative. Packets stay in order, which adds to the delay where the jitter
            exceeds their distance of 20 ms.
        loss: Share of packets that are lost.
        burst: Mean number of packets lost in a row (Gilbert's model); 1: each by itself.
        rate_bps: Bits per second; packets queue, and are dropped after 0.5 s. 0: no limit.
        reorder: Share of packets that leave 50 ms later, so that later ones overtake them.
        duplicate: Share of packets that are sent twice.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    burst: float = 1.0
    rate_bps: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "duplicate"):
            _check(name, getattr(self, name), 0.0, 1.0, "a share from 0 to 100 %")
        for name in ("delay_s", "jitter_s"):
            limits = f"a time from 0 to {_LONGEST_S:g} s"
            _check(name.removesuffix("_s"), getattr(self, name), 0.0, _LONGEST_S, limits)
        _check("burst", self.burst, 1.0, 1000.0, "a number of packets from 1 to 1000")
        if self.rate_bps:
            _check("rate", self.rate_bps, _LEAST_BPS, math.inf, "at least 8kbit")

    @property
    def none(self) -> bool:
        """Whether packets are not impaired."""
        return dataclasses.replace(self, burst=1.0) == Impairment()


def _check(name: str, value: float, least: float, most: float, wanted: str) -> None:
    if not least <= value <= most:
        raise UsageError(f"link: {name} of {value:g} is not {wanted}", HINT)


@dataclass(frozen=True)
class LinkProfile:
    """A link between the caller and the server, both directions; `str` is what :meth:`parse` reads.

    Attributes:
        up: From the caller to the server.
        down: From the server to the caller.
        seed: Seed of its random numbers.
        text: As the user wrote it.
    """

    up: Impairment = Impairment()
    down: Impairment = Impairment()
    seed: int = SEED
    text: str = "none"

    @classmethod
    def parse(cls, text: str) -> LinkProfile:
        """Reads a link such as `4g`, `delay=80ms,jitter=30ms,loss=3%` or `4g,down.loss=10%`.

        Args:
            text: The name of a link of :data:`NAMED`, or `none`, then `KEY=VALUE`, with commas. A
                key is one of delay, jitter (`80ms`, `0.08s`), loss, reorder, duplicate (`3%`),
                burst (packets), rate (`64kbit`, `2mbit`), each for both directions, or for one as
                `up.KEY` or `down.KEY`; or `seed`.

        Raises:
            UsageError: It is invalid; the message names the part.
        """
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise UsageError("the link is empty", HINT)
        first = parts[0]
        up = down = Impairment()
        if "=" not in first:
            if first not in NAMED and first != "none":
                raise UsageError(f"there is no link {first!r}", HINT)
            up = down = NAMED.get(first, Impairment())
            parts = parts[1:]
        seed = SEED
        told: set[str] = set()
        for part in parts:
            key, equals, value = (each.strip() for each in part.partition("="))
            if not equals:
                raise UsageError(f"link: {part!r} is no KEY=VALUE", HINT)
            if key in told:
                raise UsageError(f"link: {key} is given twice", HINT)
            told.add(key)
            if key == "seed":
                seed = _seed(value)
                continue
            way, dot, name = key.rpartition(".")
            if name not in _KEYS or (dot and way not in ("up", "down")):
                raise UsageError(f"link: there is no key {key!r}", HINT)
            field, read = _KEYS[name]
            changed = {field: read(name, value)}
            if way != "down":
                up = dataclasses.replace(up, **changed)
            if way != "up":
                down = dataclasses.replace(down, **changed)
        return cls(up, down, seed, text.strip())

    @property
    def none(self) -> bool:
        """Whether neither direction is impaired."""
        return self.up.none and self.down.none

    @property
    def cut(self) -> bool:
        """Whether a direction loses every packet."""
        return 1.0 in (self.up.loss, self.down.loss)

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Returns what :meth:`from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> LinkProfile:
        """Returns the profile that :meth:`to_json` has written."""
        up, down = Impairment(**told["up"]), Impairment(**told["down"])
        return cls(up, down, told["seed"], told["text"])


def _seconds(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if match is None:
        raise UsageError(f"link: {name}={text} is no time with a unit", "such as 80ms or 0.08s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def _share(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if match is None:
        raise UsageError(f"link: {name}={text} is no share", "such as 3% or 0.03")
    return float(match[1]) / (100 if match[2] else 1)


def _rate(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k|m|)bit(?:/s)?", text.lower())
    if match is None:
        raise UsageError(f"link: {name}={text} is no rate with a unit", "such as 64kbit or 2mbit")
    return float(match[1]) * {"": 1, "k": 1e3, "m": 1e6}[match[2]]


def _packets(name: str, text: str) -> float:
    if re.fullmatch(r"\d+(?:\.\d+)?", text) is None:
        raise UsageError(f"link: {name}={text} is no number of packets", "such as burst=4")
    return float(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"link: seed={text} is no whole number", "such as seed=7")
    return int(text)


_KEYS: Final[dict[str, tuple[str, Callable[[str, str], float]]]] = {
    "delay": ("delay_s", _seconds),
    "jitter": ("jitter_s", _seconds),
    "loss": ("loss", _share),
    "burst": ("burst", _packets),
    "rate": ("rate_bps", _rate),
    "reorder": ("reorder", _share),
    "duplicate": ("duplicate", _share),
}

NAMED: Final = {
    "wifi": Impairment(delay_s=0.005, jitter_s=0.005, loss=0.01, burst=3, rate_bps=20e6),
    "4g": Impairment(delay_s=0.04, jitter_s=0.02, loss=0.01, burst=2, rate_bps=5e6),
    "satellite": Impairment(delay_s=0.3, jitter_s=0.01, loss=0.005, rate_bps=1e6),
    "train": Impairment(delay_s=0.06, jitter_s=0.04, loss=0.05, burst=25, reorder=0.01),
}
"""Links by name: what each direction does. They are labvoice's choice of orders of magnitude, not
measurements of any network: a busy access point, a mobile network in motion, a geostationary
satellite (36,000 km up and down), and a train, where half a second at a time is lost."""

HINT: Final = (
    f"such as `--link delay=80ms,jitter=30ms,loss=3%,burst=4`; keys are {', '.join(_KEYS)}, seed, "
    f"each but the seed also as up.KEY or down.KEY; named links are {', '.join(NAMED)}"
)


class Shaper:
    """Computes when each packet of one direction leaves.

    The fate of the n-th packet (lost, held back, sent twice, and how much it jitters) follows from
    the seed and n alone.
    """

    def __init__(self, impairment: Impairment, seed: str) -> None:
        self.impairment = impairment
        self._random = random.Random(seed)  # noqa: S311  # chance that can be repeated, no secret
        self._losing = False
        self._idle_s = self._last_s = -math.inf

    def due(self, now_s: float, size: int) -> list[float]:
        """Returns when a packet leaves: never, once, or twice.

        Args:
            now_s: When it came, in seconds; not before the packet before it.
            size: Its length in bytes.
        """
        what, chance = self.impairment, self._random.random
        lost, shift, held_back, twice = self._lost(chance()), chance(), chance(), chance()
        if lost:
            return []
        at_s = now_s
        if what.rate_bps:
            begin_s = max(now_s, self._idle_s)
            if begin_s - now_s > _QUEUE_S:
                return []
            at_s = self._idle_s = begin_s + size * 8 / what.rate_bps
        at_s += max(0.0, what.delay_s + what.jitter_s * (2 * shift - 1))
        at_s = max(at_s, self._last_s)
        if held_back < what.reorder:
            at_s += _HELD_BACK_S
        else:
            self._last_s = at_s
        return [at_s, at_s] if twice < what.duplicate else [at_s]

    def _lost(self, chance: float) -> bool:
        """Gilbert's model: while packets are lost, each may end the burst; else each may begin one.

        With mean burst b the burst ends with probability 1/b, and for a share p of lost packets one
        begins with probability p / (b (1 - p)).
        """
        what = self.impairment
        if what.loss in (0.0, 1.0):
            return bool(what.loss)
        if what.burst == 1.0:
            return chance < what.loss
        begins = min(1.0, what.loss / (what.burst * (1 - what.loss)))
        self._losing = chance >= 1 / what.burst if self._losing else chance < begins
        return self._losing
