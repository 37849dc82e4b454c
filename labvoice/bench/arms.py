"""Arms: the configurations that a run measures side by side."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from labvoice.dispatch import StrategyName
from labvoice.errors import UsageError
from labvoice.settings import Mode
from labvoice.stack.workers.worker import AGENT_PROGRAM

SEED: Final = 20261
_LONGEST_DELAY_S: Final = 5.0  # as labvoice.settings.Settings.min_endpointing_delay_s has it


@dataclass(frozen=True)
class Arm:
    """One configuration of a run.

    Attributes:
        name: As given to `--arms`; the first arm is the base of the ratios.
        strategy: When the agent is dispatched.
        agent_name: Name of the agent; the lab's own when None. An arm with a name of its own
            gets a worker of its own under that name.
        program: Module that this worker runs.
        settings: Settings by field name that this worker alone gets.
        mode: How the agent uses Letta; it gets an agent there with nothing in its memory. None: no
            memory.
        columns: Further columns in the frame, such as what sets the arm apart.
    """

    name: str
    strategy: StrategyName = "sequential"
    agent_name: str | None = None
    program: str = AGENT_PROGRAM
    settings: Mapping[str, Any] = field(default_factory=dict)
    mode: Mode | None = None
    columns: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


DEFAULT: Final = Arm("default")

_STOCK_ARMS: Final = tuple(
    Arm(
        name,
        agent_name=f"{name}-agent",
        program=f"labvoice.bench.{name.replace('-', '_')}_agent",
        columns={
            "executor": "process",
            "min_endpointing_delay_s": None,
            "max_endpointing_delay_s": None,
            "baseline": True,
        },
    )
    for name in ("stock", "stock-naive")
)
"""livekit-agents' defaults, with the models loaded before a job comes, and when it comes."""

CONNECT_ARMS: Final = (
    *_STOCK_ARMS,
    Arm("sequential"),
    Arm("concurrent", "concurrent"),
    Arm("token", "token"),
    Arm("ahead", "ahead"),
    Arm("automatic", "automatic", agent_name=""),
    Arm("process", agent_name="process-agent", settings={"executor": "process"}),
    Arm("thread", agent_name="thread-agent", settings={"executor": "thread"}),
)
"""What `labvoice bench connect --arms` knows."""


TURN_ARMS: Final = (
    *_STOCK_ARMS,
    Arm("labvoice"),
    Arm("hybrid", mode="hybrid"),
    Arm("letta", mode="letta"),
    Arm("direct", mode="direct"),
    # A port where nothing listens; what this worker cannot write, the others do.
    Arm(
        "hybrid-down",
        agent_name="hybrid-down-agent",
        settings={"letta_base_url": "http://127.0.0.1:9", "letta_embedded": False},
        mode="hybrid",
    ),
)
"""What `labvoice bench turns --arms` knows."""


def endpointing_arms(delays: str | Sequence[str], longest_s: float = 0.0) -> list[Arm]:
    """Returns an arm for each silence after which a turn may end; its worker has that setting.

    Args:
        delays: In seconds; a list, or one text with commas.
        longest_s: Silence after which a turn ends in any case, in seconds; never below the arm's.

    Raises:
        UsageError: One is no number of seconds from 0 to 5, is given twice, or none is given.
    """
    wanted = delays.split(",") if isinstance(delays, str) else delays
    arms: dict[str, Arm] = {}
    for name in filter(None, (each.strip() for each in wanted)):
        try:
            delay_s = float(name)
        except ValueError:
            delay_s = math.nan
        if not 0 <= delay_s <= _LONGEST_DELAY_S:
            raise UsageError(f"{name!r} is no silence in seconds", "such as `--arms 0.2,0.4,0.6`")
        if name in arms:
            raise UsageError(f"the arm {name} is named twice", "name each arm once")
        settings = {
            "min_endpointing_delay_s": delay_s,
            "max_endpointing_delay_s": max(delay_s, longest_s),
        }
        arms[name] = Arm(name, agent_name=f"endpointing-{name}", settings=settings)
    if not arms:
        raise UsageError("no silence is given", "such as `--arms 0.2,0.4,0.6`")
    return list(arms.values())


def choose(names: str | Sequence[str], known: Sequence[Arm]) -> list[Arm]:
    """Returns the arms of these names, in the order given.

    Args:
        names: A list, or one text with commas; empty for the only arm of a plain run.
        known: What there is to choose from.

    Raises:
        UsageError: A name is unknown or given twice.
    """
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    wanted = [name for name in wanted if name]
    by_name = {arm.name: arm for arm in known}
    for name in wanted:
        if name not in by_name:
            raise UsageError(f"there is no arm {name!r}", f"choose from {', '.join(by_name)}")
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"an arm is named twice: {', '.join(wanted)}", "name each arm once")
    return [by_name[name] for name in wanted] or [DEFAULT]


def interleave(arms: Sequence[Arm], rounds: int, seed: int = SEED) -> Iterator[tuple[int, Arm]]:
    """Yields (round, arm): every arm once a round, each round in an order of its own.

    The order is the same in every run of one seed, and no arm profits from always following the
    same other.
    """
    shuffle = random.Random(seed)  # noqa: S311  # an order, no secret
    for number in range(rounds):
        yield from ((number, arm) for arm in shuffle.sample(arms, len(arms)))
