"""Runs the benches on a cluster, breaks parts of it under calls, and prints both as tables.

`python -m benchmarks.cluster [--trials N] [FAULT…]`: two LiveKit servers on one Redis, two workers.
Without a fault named it first runs the benches of one server, small, and then all faults. For each
trial of a fault three dispatches are confirmed, one of them to a room with a caller; then the part
is broken, somebody else calls a new room at once, and the first caller's room is watched. An agent
counts as there while its heartbeats reach the caller. Exit code 1 if an attempt of a bench failed,
or a confirmed dispatch was lost or doubled at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from livekit import api, rtc

from labvoice.bench.base import RunKeywords
from labvoice.caller.connection import connect_room
from labvoice.dispatch import rooms
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import LabvoiceError
from labvoice.lab import Lab
from labvoice.protocol.metadata import ATTRIBUTE_HEARTBEAT
from labvoice.runs.run import Run
from labvoice.settings import load_settings

_ROOMS: Final = 3
_GAP_S: Final = 2.0
"""Five heartbeats."""
_WATCHED_S: Final = 30.0
"""How long a room is watched after a fault: LiveKit notices a killed process after 21 s."""
_LONGEST_S: Final = 90.0
_TWO_HEARTBEATS_S: Final = 1.5


@dataclass
class Caller:
    """A caller who keeps what reaches it."""

    room: rtc.Room = field(default_factory=rtc.Room)
    heartbeats: list[tuple[float, str]] = field(default_factory=list)
    states: list[tuple[float, str]] = field(default_factory=list)

    async def join(self, lab: Lab, name: str) -> None:
        """Connects through the lab's address."""

        def on_attributes(changed: dict[str, str], participant: Any) -> None:
            if ATTRIBUTE_HEARTBEAT in changed:
                self.heartbeats.append((time.monotonic(), participant.identity))

        def became(state: str) -> Callable[..., None]:
            return lambda *_: self.states.append((time.monotonic(), state))

        self.room.on("participant_attributes_changed", on_attributes)
        self.room.on("reconnecting", became("reconnecting"))
        self.room.on("reconnected", became("reconnected"))
        self.room.on("disconnected", became("disconnected"))
        settings = lab.settings
        assert settings.livekit_url
        assert settings.livekit_api_key
        assert settings.livekit_api_secret
        token = caller_token(settings.livekit_api_key, settings.livekit_api_secret, name, "caller")
        await connect_room(self.room, settings.livekit_url, token)

    @property
    def hears(self) -> bool:
        """Whether an agent is there now."""
        return bool(self.heartbeats) and time.monotonic() - self.heartbeats[-1][0] < _GAP_S

    def longest_gap_s(self, since_s: float) -> float:
        """The longest time without a heartbeat since an instant; until now where none came."""
        times = [since_s, *(at_s for at_s, _ in self.heartbeats if at_s > since_s)]
        return max(
            later - earlier
            for earlier, later in zip(times, [*times[1:], time.monotonic()], strict=True)
        )


@dataclass
class Seen:
    """What one trial showed.

    Attributes:
        kept: In how many rooms one agent was at the end.
        doubled: In how many there were several.
        late_s: When the last agent was back, in seconds since the fault; 0 where none was missing
            at the end of the time for which all are watched.
    """

    caller: str
    gap_s: float
    agent: str
    kept: int
    doubled: int
    late_s: float
    new_call: str


async def live_agents(lab: Lab, room: str) -> set[str]:
    """The agents of a room whose heartbeat goes on: a dead node's are listed for a while."""

    async def look() -> dict[str, str]:
        there = await rooms.participants(lab.dispatcher.api, room)
        return {
            each.identity: each.attributes.get(ATTRIBUTE_HEARTBEAT, "")
            for each in there
            if rooms.is_agent(each)
        }

    before = await look()
    await asyncio.sleep(_TWO_HEARTBEATS_S)
    return {each for each, beat in (await look()).items() if before.get(each) != beat}


async def _kill_node(lab: Lab, room: str) -> None:
    lab.faults.kill_livekit(await lab.cluster.node_of(room))


async def _kill_other_node(lab: Lab, room: str) -> None:
    its = await lab.cluster.node_of(room)
    lab.faults.kill_livekit(next(node for node in lab.cluster.nodes if node is not its))


async def _restart_redis(lab: Lab, _: str) -> None:
    await lab.cluster.redis.restart()


async def _kill_redis(lab: Lab, _: str) -> None:
    redis = lab.cluster.redis.process
    assert redis is not None
    os.kill(redis.pid, signal.SIGKILL)
    await redis.wait()
    await lab.cluster.redis.restart()


FAULTS: Final[dict[str, Callable[[Lab, str], Awaitable[None]]]] = {
    "the call's node is killed": _kill_node,
    "the other node is killed": _kill_other_node,
    "Redis is restarted": _restart_redis,
    "Redis is killed and started": _kill_redis,
}


async def trial(lab: Lab, fault: str, watched_s: float = _WATCHED_S) -> Seen:
    """Breaks one part under one call and two other dispatches, and watches for a while."""
    names = [f"{secrets.token_hex(3)}-{number}" for number in range(_ROOMS)]
    caller = Caller()
    await caller.join(lab, names[0])
    try:
        for name in names:
            await lab.dispatch(name, timeout_s=30)
        async with asyncio.timeout(30):
            while not caller.hears:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        first = caller.heartbeats[-1][1]
        began_s = time.monotonic()
        await FAULTS[fault](lab, names[0])
        new_call = await _new_call(lab)
        while time.monotonic() - began_s < watched_s or (  # noqa: ASYNC110
            not caller.hears and time.monotonic() - began_s < _LONGEST_S
        ):
            await asyncio.sleep(0.1)
        gap_s = caller.longest_gap_s(began_s)
        there = [await live_agents(lab, name) for name in names]
        late_s = 0.0
        while not all(there) and time.monotonic() - began_s < _LONGEST_S:
            there = [await live_agents(lab, name) for name in names]
            late_s = time.monotonic() - began_s
        states = [state for at_s, state in caller.states if at_s > began_s]
        same = caller.hears and caller.heartbeats[-1][1] == first
        return Seen(
            ", ".join(states) or "stays connected",
            gap_s if gap_s >= _GAP_S else 0.0,
            "the same" if same else "another" if caller.hears else "**none**",
            sum(len(each) == 1 for each in there),
            sum(len(each) > 1 for each in there),
            late_s,
            new_call,
        )
    finally:
        await caller.room.disconnect()
        for node in lab.cluster.nodes:
            if node.process is not None and not node.process.running:
                await node.restart()
        for name in names:
            await rooms.unless_gone(
                lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=name))
            )


async def _new_call(lab: Lab) -> str:
    began_s = time.monotonic()
    try:
        async with lab.call(timeout_s=30):
            return f"{time.monotonic() - began_s:.1f} s"
    except LabvoiceError as error:
        return f"**{type(error).__name__}** after {time.monotonic() - began_s:.1f} s"


async def benches(lab: Lab, folder: Path) -> list[Run]:
    """Runs the benches whose calls meet LiveKit's servers, each with few trials."""
    arms = "sequential,concurrent,token,ahead"

    def options(kind: str) -> RunKeywords:
        return {"out": folder / f"{kind}.jsonl", "progress": _tell, "warmup": 0}

    return [
        await lab.bench.connect(1, arms=arms, **options("connect")),
        await lab.bench.turns(2, **options("turns")),
        await lab.bench.burst(20, 1, **options("burst")),
        await lab.bench.failover(1, **options("failover")),
    ]


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


async def main(faults: list[str], trials: int) -> int:
    """Prints the tables."""
    bad = 0
    # An agent in a room without a caller stays.
    settings = load_settings(llm="paced", max_jobs=8, idle_timeout_s=600.0)
    async with Lab(nodes=2, workers=2, letta=False, settings=settings, progress=_tell) as lab:
        if not faults:
            with tempfile.TemporaryDirectory() as folder:
                runs = await benches(lab, Path(folder))
            print("| bench | attempts | failed |\n| --- | --- | --- |")
            for run in runs:
                outcomes = run.outcomes["outcome"]
                failed = int((outcomes != "ok").sum())
                bad += failed
                print(f"| {run.header.kind} | {len(outcomes)} | {failed} |", flush=True)
            print()
        return int(bad + await break_all(lab, faults or list(FAULTS), trials) > 0)


async def break_all(lab: Lab, faults: list[str], trials: int) -> int:
    """Prints the table of faults; returns in how many trials a dispatch was lost or doubled."""
    head = ("fault", "the caller", "without an agent", "agent", "dispatches kept", "doubled")
    print(f"| {' | '.join(head)} | new call |")
    print("| --- " * (len(head) + 1) + "|", flush=True)
    bad = 0
    for fault in faults:
        for _ in range(trials):
            await lab.pool.wait_idle(150)
            seen = await trial(lab, fault)
            bad += seen.kept < _ROOMS
            cells = (
                fault,
                seen.caller,
                f"{seen.gap_s:.1f} s",
                seen.agent,
                f"{seen.kept} of {_ROOMS}" + (f" after {seen.late_s:.0f} s" if seen.late_s else ""),
                str(seen.doubled),
                seen.new_call,
            )
            print(f"| {' | '.join(cells)} |", flush=True)
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS], metavar="FAULT")
    parser.add_argument("--trials", type=int, default=1)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.faults, given.trials)))
