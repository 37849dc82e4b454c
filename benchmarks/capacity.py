"""Simulates capacity: from the measured cost of a call to fleets, and what breaks first.

`python -m benchmarks.capacity LOAD.jsonl [--echo ECHO.jsonl] [--waiting S]` takes runs of
`labvoice bench load`: LOAD of the agent, ECHO of the same machine with `--echo-agent`, which tells
what the media path costs alone. It prints the levels that the model predicts beside those that were
measured, and the fleets for 1,000 and 100,000 calls at once. docs/scale.md has the assumptions.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from labvoice.runs.load import Level, knee
from labvoice.runs.run import Run

Floats = npt.NDArray[np.float64]

_SEED: Final = 20261
_CALL_S: Final = 180.0
"""Mean length of a call, in seconds."""
_SPREAD: Final = 1.0
"""Standard deviation of a call's length over its mean; the lengths are lognormal."""
_REFUSED: Final = 0.001
"""Share of calls that may find no free worker."""
_SURGE: Final = 2.0
_WORKER_START_S: Final = 60.0
_DISPATCHES_HZ: Final = 200.0
"""Dispatches a second that one HTTP service has shown to serve (`labvoice bench http`)."""
_PARTS: Final = ("worker", "server", "model")


@dataclass(frozen=True)
class Cost:
    """What a call costs, in cores and bytes: a line through the levels of a run.

    Attributes:
        cores: Cores of each part that a further call takes.
        idle: Cores that are used without a call.
        memory_bytes: Memory of all parts that a further call takes.
    """

    cores: dict[str, float]
    idle: float
    memory_bytes: float

    @property
    def total(self) -> float:
        """Cores of all parts that a further call takes."""
        return sum(self.cores.values())


def cost(levels: Sequence[Level]) -> Cost:
    """Fits the cost of a call; callers on the same machine are no cost of the agent's.

    Args:
        levels: Levels of a run that are not void, at least two.
    """
    calls = np.array([level.callers for level in levels], float)
    cores, idle = {}, 0.0
    for part in _PARTS:
        used = np.array([level.cpu.get(part, 0.0) for level in levels])
        slope, start = np.polyfit(calls, used, 1)
        cores[part] = max(0.0, float(slope))
        idle += max(0.0, float(start))
    memory = np.array([sum(level.memory_bytes.get(p, 0.0) for p in _PARTS) for level in levels])
    return Cost(cores, idle, max(0.0, float(np.polyfit(calls, memory, 1)[0])))


def sojourns(
    arrivals_s: Sequence[float] | Floats, work_s: Sequence[float] | Floats, cores: float
) -> Floats:
    """Returns how long each job stays where all share the cores and none takes more than one.

    Args:
        arrivals_s: Shape (n,), rising, in seconds.
        work_s: Shape (n,): seconds of one core that each needs.
        cores: How many there are; a fraction is what others leave of them.
    """
    stay = np.zeros(len(arrivals_s))
    left: dict[int, float] = {}
    now_s, place = 0.0, 0
    while place < len(arrivals_s) or left:
        speed = min(1.0, cores / len(left)) if left else 1.0
        next_s = arrivals_s[place] if place < len(arrivals_s) else math.inf
        first = min(left, key=lambda job: left[job]) if left else None
        ends_s = now_s + left[first] / speed if first is not None else math.inf
        step_s = (min(next_s, ends_s) - now_s) * speed
        for job in left:
            left[job] -= step_s
        now_s = float(min(next_s, ends_s))
        if first is not None and ends_s <= next_s:
            del left[first]
            stay[first] = now_s - arrivals_s[first]
        else:
            left[place] = float(work_s[place])
            place += 1
    return stay


def predicted_p95(
    callers: int, *, period_s: float, p50_s: float, p95_s: float, work_s: float, free: float
) -> float:
    """Returns the 95th percentile of the latency of so many callers, in seconds.

    A turn's latency is lognormal where it is alone; of it a share is work on the cores, and lasts
    longer the more turns are under way.

    Args:
        callers: Each has a turn in every period, at a random instant of it.
        period_s: In seconds.
        p50_s: Median of the latency of a turn that is alone, in seconds.
        p95_s: Its 95th percentile.
        work_s: How much of the median is work, in seconds of one core.
        free: Cores that everything else leaves.
    """
    if free <= 0 or callers * work_s / period_s >= free:
        return math.inf
    rng = np.random.default_rng(_SEED)
    turns = max(40, 2000 // callers)
    at_s = np.sort((np.arange(turns)[:, None] + rng.random((turns, callers))).ravel() * period_s)
    sigma = math.log(max(p95_s / p50_s, 1.0)) / 1.645
    alone_s = rng.lognormal(math.log(p50_s), sigma, len(at_s))
    of_it = alone_s * work_s / p50_s
    return float(np.percentile(alone_s - of_it + sojourns(at_s, of_it, free), 95))


def erlang_b(load: float, slots: int) -> float:
    """Returns the share of Poisson arrivals that find all slots taken, whatever their lengths."""
    inverse = 1.0
    for taken in range(1, slots + 1):
        inverse = 1.0 + inverse * taken / load
        if math.isinf(inverse):
            return 0.0
    return 1.0 / inverse


def slots_for(load: float, refused: float) -> int:
    """Returns how many slots refuse no more than this share of calls."""
    blocked, slots = 1.0, 0
    while blocked > refused:
        slots += 1
        blocked = load * blocked / (slots + load * blocked)
    return slots


def refused_share(
    load: float, slots: int, *, hours: float = 1.0, surge: float = 1.0, grow_after_s: float = 0.0
) -> float:
    """Simulates calls that come at random and find a free slot or are refused.

    Args:
        load: Mean number of calls at once.
        slots: How many calls the workers take together.
        hours: How long, after one hour to fill up.
        surge: Factor on the rate of arrivals in the measured time.
        grow_after_s: From when on in that time there are as many times more slots, in seconds;
            with 0 there are never more.
    """
    rng = np.random.default_rng(_SEED)
    rate_hz, sigma = load / _CALL_S, math.sqrt(math.log1p(_SPREAD**2))
    mu = math.log(_CALL_S) - sigma**2 / 2
    ends: list[float] = []
    now_s, begin_s, due, refused = 0.0, 3600.0, 0, 0
    while now_s < begin_s + hours * 3600:
        measured = now_s >= begin_s
        now_s += rng.exponential(1 / (rate_hz * (surge if measured else 1.0)))
        while ends and ends[0] <= now_s:
            heapq.heappop(ends)
        grown = grow_after_s > 0 and now_s >= begin_s + grow_after_s
        taken = len(ends) >= slots * (surge if grown else 1.0)
        if not taken:
            heapq.heappush(ends, now_s + rng.lognormal(mu, sigma))
        due, refused = due + measured, refused + (measured and taken)
    return refused / max(due, 1)


def check(
    levels: Sequence[Level],
    config: dict[str, Any],
    of_call: Cost,
    *,
    media: float,
    waiting_s: float,
    cores: float,
) -> tuple[int | None, list[str]]:
    """Predicts each level from the first one and the costs.

    Args:
        levels: Those that are not void, fewest callers first.
        config: Of the run.
        of_call: What a call costs.
        media: Cores of a call's media, which are used all the time.
        waiting_s: Seconds of a turn's latency that wait, and use no core.
        cores: Of the machine.

    Returns:
        The predicted knee, None where it is before the first level; a line for each level.
    """
    limit_s, period_s = float(config["limit_s"]), 60.0 / float(config["rate_per_min"])
    first = levels[0]
    # Not more than what the latency leaves is on the way of a reply; the rest goes beside it.
    work_s = min(max(0.0, of_call.total - media) * period_s, max(0.0, first.p50_s - waiting_s))
    beside = of_call.total - work_s / period_s
    beside += float(np.mean([level.cpu.get("callers", 0.0) / level.callers for level in levels]))
    lines: list[str] = []
    bend: int | None = None
    for level in levels:
        p95_s = predicted_p95(
            level.callers,
            period_s=period_s,
            p50_s=first.p50_s,
            p95_s=first.p95_s,
            work_s=work_s,
            free=cores - of_call.idle - level.callers * beside,
        )
        if p95_s <= limit_s:
            bend = level.callers
        words = "no end" if math.isinf(p95_s) else f"{p95_s:.2f}"
        lines.append(f"| {level.callers} | {level.p95_s:.2f} | {words} |")
    return bend, lines


def fleet(calls: int, per_worker: float, of_call: Cost) -> list[str]:
    """Returns the lines of a fleet's table."""
    slots = slots_for(calls, _REFUSED)
    workers = math.ceil(slots / per_worker)
    rate_hz = calls / _CALL_S
    rows = {
        "calls that come, a second": f"{rate_hz:,.1f}",
        "slots for 0.1 % refused": f"{slots:,}",
        "workers": f"{workers:,}",
        "cores of workers and models": (
            f"{slots * (of_call.cores['worker'] + of_call.cores['model']):,.0f}"
        ),
        "cores of LiveKit servers": f"{slots * of_call.cores['server']:,.1f}",
        "memory, GiB": f"{slots * of_call.memory_bytes / 2**30:,.0f}",
        "HTTP services for the dispatches": f"{math.ceil(rate_hz / _DISPATCHES_HZ)}",
        "lost to a worker that dies, calls": f"{per_worker:g}",
    }
    return [f"| {name} | {value} |" for name, value in rows.items()]


def main() -> None:
    """Prints the check against the measured knee, and the fleets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("load", type=Path)
    parser.add_argument("--echo", type=Path, help="the same machine, with --echo-agent")
    parser.add_argument(
        "--waiting",
        type=float,
        default=0.0,
        help="seconds of a turn that wait: the silence that ends it, a model that runs elsewhere",
    )
    arguments = parser.parse_args()
    run = Run.load(arguments.load)
    levels = [level for level in run.levels if not level.void]
    if len(levels) < 2:
        raise SystemExit("the run has no two levels that are not void: use a longer --ramp")
    host: dict[str, Any] = dict(run.header.host)
    config: dict[str, Any] = dict(run.header.config)
    of_call, cores = cost(levels), int(host["cores"])
    media = 0.0
    if arguments.echo is not None:
        media = cost([level for level in Run.load(arguments.echo).levels if not level.void]).total
    print(
        "cores a call: "
        + ", ".join(f"{part} {used:.3f}" for part, used in of_call.cores.items())
        + f"; media alone {media:.3f}; memory a call {of_call.memory_bytes / 2**20:.0f} MiB"
    )
    bend, lines = check(
        levels,
        config,
        of_call,
        media=min(media, of_call.total),
        waiting_s=arguments.waiting,
        cores=cores,
    )
    measured = knee(run.levels, float(config["limit_s"])).within
    print(
        "\n| callers | p95 measured, s | p95 predicted, s |\n| --- | --- | --- |", *lines, sep="\n"
    )
    print(f"\nknee measured: {measured.callers if measured else 'none'}; predicted: {bend}")
    each = (measured.callers if measured else 1) / int(config["workers"])
    for calls in (1_000, 100_000):
        print(
            f"\n{calls:,} calls at once\n\n| what | how much |\n| --- | --- |",
            *fleet(calls, each, of_call),
            sep="\n",
        )
    slots = slots_for(1_000, _REFUSED)
    print(
        f"\n1,000 calls, {slots} slots, refused: by Erlang's formula {erlang_b(1000, slots):.2%}, "
        f"simulated {refused_share(1000, slots, hours=20):.2%}"
    )
    for headroom in (0.95, 0.8, 0.6):
        room = math.ceil(1000 / headroom)
        share = refused_share(1000, room, hours=1 / 6, surge=_SURGE, grow_after_s=_WORKER_START_S)
        print(
            f"twice as many calls come at once, {headroom:.0%} of the slots taken before, and new "
            f"workers after {_WORKER_START_S:g} s: refused in 10 minutes {share:.1%}"
        )


if __name__ == "__main__":
    main()
