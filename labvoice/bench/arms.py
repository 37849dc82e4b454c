"""Arms: the configurations that a run measures side by side."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from labvoice.choices import Mode
from labvoice.dispatch import StrategyName
from labvoice.errors import UsageError
from labvoice.link.impairment import LinkProfile
from labvoice.speech.conditions import Conditions
from labvoice.stack.workers.worker import AGENT_PROGRAM
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target

Arms = str | Sequence["str | Arm"] | Mapping[str, Target | str]
"""The arms of a run: names of built-in ones, as a list or with commas; or agents by the names that
their arms shall have, each a :class:`labvoice.Target` or AGENT as the command line takes it."""

SEED: Final = 20261
_LONGEST_DELAY_S: Final = 5.0  # as labvoice.settings.Settings.min_endpointing_delay_s has it


@dataclass(frozen=True)
class Arm:
    """One configuration of a run.

    Attributes:
        name: As given to `--arms`; the first arm is the base of the ratios.
        agent_name: Name of the agent; the lab's own when None. An arm with a name of its own
            gets a worker of its own under that name.
        program: Module that this worker runs.
        settings: Settings by field name that this worker alone gets.
        mode: How the agent uses Letta; it gets an agent there with nothing in its memory. None: no
            memory.
        columns: Further columns in the frame, such as what sets the arm apart.
        target: The agent that the arm measures, in place of `agent_name`, `program`, `settings`.
        link: The link of its callers' media; none where not given.
        conditions: How its callers sound, and what is around them; as they are where not given.
    """

    name: str
    strategy: StrategyName = "sequential"
    agent_name: str | TargetAgent | None = None
    program: str = AGENT_PROGRAM
    settings: Mapping[str, Any] = field(default_factory=dict)
    mode: Mode | None = None
    columns: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    target: Target | None = None
    link: LinkProfile | None = None
    conditions: Conditions | None = None


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
            "turn_detector": None,
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


def _own(name: str, **settings: Any) -> Arm:
    """An arm with a worker of its own and these settings."""
    return Arm(name, agent_name=f"{name}-agent", settings=settings)


INTERRUPT_ARMS: Final = (
    *_STOCK_ARMS,
    Arm("labvoice"),
    _own("duration-0.2", interruption_min_duration_s=0.2),
    _own("duration-1.0", interruption_min_duration_s=1.0),
    _own("words-2", interruption_min_words=2),
    _own("no-resume", resume_false_interruption=False),
    _own("silence-alone", turn_detector="vad"),
    _own("v1-mini", turn_detector="v1-mini"),
    _own("off", interruption_mode="off"),
)
"""What `labvoice bench interrupt --arms` knows: settings of the own agent. `silence-alone` and
`v1-mini` end turns in another way; `off` is never interrupted, the end of the scale."""


_DETECTORS: Final = ("v1-mini", "smart-turn", "either", "silence", "both", "dynamic")
_TURN_ENDS_HINT: Final = (
    "seconds of silence (0.4), or DETECTOR[@THRESHOLD][:MIN_DELAY[:MAX_DELAY]] with one of "
    f"{', '.join(_DETECTORS)}, such as `--arms silence:0.6,v1-mini@0.5,smart-turn:0.3:1.5`"
)


def endpointing_arms(given: str | Sequence[str], longest_s: float = 0.0) -> list[Arm]:
    """Returns an arm for each way to end a turn; its worker has these settings.

    Args:
        given: Each a silence in seconds, for LiveKit's own detector, or
            `DETECTOR[@THRESHOLD][:MIN_DELAY[:MAX_DELAY]]`; a list, or one text with commas.
        longest_s: Silence after which a turn ends in any case, in seconds; never below the arm's.

    Raises:
        UsageError: One cannot be read, is given twice, or none is given.
    """
    wanted = given.split(",") if isinstance(given, str) else given
    arms: dict[str, Arm] = {}
    for name in filter(None, (each.strip() for each in wanted)):
        if name in arms:
            raise UsageError(f"the arm {name} is named twice", "name each arm once")
        worker = f"endpointing-{name.replace('@', '-at-').replace(':', '-for-')}"
        settings = _turn_end(name, longest_s)
        about = ("turn_detector", "turn_detector_threshold", "endpointing_mode")
        columns = {each: settings[each] for each in about if each in settings}
        arms[name] = Arm(name, agent_name=worker, settings=settings, columns=columns)
    if not arms:
        raise UsageError("no end of a turn is named", _TURN_ENDS_HINT)
    return list(arms.values())


def _turn_end(name: str, longest_s: float) -> dict[str, Any]:
    """The settings that an arm's name means."""
    first, *rest = name.split(":")
    detector, at, threshold = first.partition("@")
    if detector not in _DETECTORS:
        detector, rest = "v1-mini", [first, *rest]
    settings: dict[str, Any] = {"turn_detector": "vad" if detector == "silence" else detector}
    if detector == "dynamic":
        settings = {"turn_detector": "v1-mini", "endpointing_mode": "dynamic"}
    if at and first.startswith(detector):
        if detector not in ("v1-mini", "smart-turn"):
            raise UsageError(f"{name!r}: {detector} has no threshold", _TURN_ENDS_HINT)
        settings["turn_detector_threshold"] = _number(name, threshold, 1.0)
    if len(rest) > 2:
        raise UsageError(f"{name!r} has more than two delays", _TURN_ENDS_HINT)
    delays = [_number(name, text, _LONGEST_DELAY_S) for text in rest]
    if delays:
        longest = delays[1] if len(delays) > 1 else longest_s
        settings["min_endpointing_delay_s"] = delays[0]
        settings["max_endpointing_delay_s"] = max(delays[0], longest)
    return settings


def _number(name: str, text: str, largest: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= largest:
        raise UsageError(
            f"{name!r} names no end of a turn: {text!r} is no number from 0 to {largest:g}",
            _TURN_ENDS_HINT,
        )
    return value


def choose_endpointing(given: Arms, longest_s: float = 0.0) -> list[Arm]:
    """Returns the arms of the endpointing benchmark: ends of a turn, agents, or both.

    Args:
        given: What :func:`endpointing_arms` takes, as a list or with commas, and agents' arms.
        longest_s: As for :func:`endpointing_arms`.

    Raises:
        UsageError: As :func:`endpointing_arms` and :func:`target_arms`.
    """
    if isinstance(given, Mapping):
        return target_arms(given)
    if isinstance(given, str):
        return endpointing_arms(given, longest_s)
    agents = [each for each in given if isinstance(each, Arm)]
    silences = [each for each in given if isinstance(each, str)]
    return [*(endpointing_arms(silences, longest_s) if silences or not agents else []), *agents]


def target_arms(targets: Mapping[str, Target | str]) -> list[Arm]:
    """Returns an arm for each agent.

    Raises:
        UsageError: An agent or an arm's name cannot be used.
    """
    arms = []
    for name, given in targets.items():
        target = Target.parse(given) if isinstance(given, str) else given
        if not re.fullmatch(r"[\w.+-]+", name):
            raise UsageError(
                f"{name!r} cannot be the name of an arm", "use letters, digits and . _ + -"
            )
        columns = {"agent": str(target)}
        arms.append(Arm(name, columns=columns, target=target, link=target.link))
    return arms


def with_links(arms: Sequence[Arm], links: Sequence[str]) -> list[Arm]:
    """Returns the arms with the links of their callers' media.

    Args:
        links: Each a link for all arms, as :meth:`LinkProfile.parse` reads it, or `ARM:LINK`.

    Raises:
        UsageError: One cannot be read, or names no arm.
    """
    found = {arm.name: arm for arm in arms}
    for text in links:
        name, colon, rest = text.partition(":")
        if colon and name not in found:
            raise UsageError(f"--link: there is no arm {name!r}", f"one of {', '.join(found)}")
        profile = LinkProfile.parse(rest if colon else text)
        for each in [name] if colon else list(found):
            found[each] = dataclasses.replace(found[each], link=profile)
    return list(found.values())


def with_conditions(arms: Sequence[Arm], conditions: Mapping[str, Conditions]) -> list[Arm]:
    """Returns the arms with how their callers sound.

    Args:
        conditions: By the arms' names; under the empty name for every other arm.

    Raises:
        UsageError: A name is of no arm.
    """
    names = [arm.name for arm in arms]
    if unknown := set(conditions) - {"", *names}:
        raise UsageError(
            f"there is no arm {unknown.pop()!r} whose caller could sound so",
            f"one of {', '.join(names)}",
        )
    usual = conditions.get("")
    return [
        dataclasses.replace(arm, conditions=conditions.get(arm.name, usual or arm.conditions))
        for arm in arms
    ]


def choose(given: Arms, known: Sequence[Arm]) -> list[Arm]:
    """Returns the arms that are meant, in the order given.

    Args:
        given: Names or agents; empty for the only arm of a plain run.
        known: The built-in arms.

    Raises:
        UsageError: A name is unknown or given twice, or an agent is invalid.
    """
    if isinstance(given, Mapping):
        return target_arms(given) or [DEFAULT]
    wanted = given.split(",") if isinstance(given, str) else given
    by_name = {arm.name: arm for arm in known}
    arms: dict[str, Arm] = {}
    for each in wanted:
        name = each.name if isinstance(each, Arm) else each.strip()
        if not name:
            continue
        if not isinstance(each, Arm) and name not in by_name:
            raise UsageError(
                f"there is no arm {name!r}",
                f"choose from {', '.join(by_name)}; an agent of yours is `--arm {name}=AGENT`",
            )
        if name in arms:
            raise UsageError(f"the arm {name} is named twice", "name each arm once")
        arms[name] = each if isinstance(each, Arm) else by_name[name]
    return list(arms.values()) or [DEFAULT]


def interleave(arms: Sequence[Arm], rounds: int, seed: int = SEED) -> Iterator[tuple[int, Arm]]:
    """Yields (round, arm): every arm once a round, each round in an order of its own.

    The order is the same in every run of one seed, and no arm profits from always following the
    same other.
    """
    shuffle = random.Random(seed)  # noqa: S311  # an order, no secret
    for number in range(rounds):
        yield from ((number, arm) for arm in shuffle.sample(arms, len(arms)))
