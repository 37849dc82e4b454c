"""The burst bench: many rooms request an agent at once; counts rooms with one, none or two."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Unpack

from livekit import api

from labvoice.bench.arms import Arm, choose, interleave
from labvoice.bench.base import (
    INFRASTRUCTURE_ERRORS,
    RunKeywords,
    Trial,
    dispatched_target,
    start_workers,
    trial,
    wait_idle,
    with_warmup,
)
from labvoice.bench.facts import host_facts
from labvoice.concurrency import cancel, poll
from labvoice.dispatch import Dispatcher
from labvoice.dispatch.agents import is_active
from labvoice.dispatch.rooms import is_agent, participants
from labvoice.errors import (
    AgentLostError,
    DuplicateAgentError,
    LabvoiceError,
    NoWorkerError,
    UsageError,
)
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.run import Run, RunWriter
from labvoice.targets.target import Target

if TYPE_CHECKING:
    from labvoice.lab import Lab

_AGENT_NAME: Final = "noop-agent"
BURST_ARMS: Final = tuple(
    Arm(
        name,
        agent_name=_AGENT_NAME,
        program="labvoice.agent.noop",
        settings={"max_jobs": 64},  # capacity is not what is measured
    )
    for name in ("plain", "confirmed")
)
"""`plain` is the server's CreateDispatch and nothing more; `confirmed` is labvoice's dispatch."""

_POLL_S: Final = 0.1


async def burst(
    lab: Lab,
    rooms: int = 50,
    trials: int = 5,
    *,
    workers: int = 2,
    arms: str | Sequence[str] = "plain,confirmed",
    agent: Target | None = None,
    **given: Unpack[RunKeywords],
) -> Run:
    """Measures bursts: many rooms ask for an agent at once; each must get exactly one.

    The agents join and do nothing, for it is the dispatch that is measured.

    Args:
        rooms: How many rooms ask at once in each burst.
        trials: How many bursts count, of each arm; one burst is one event, and the unit of
            resampling.
        workers: How many workers share them.
        arms: Names of :data:`labvoice.bench.burst.BURST_ARMS`, as for
            :meth:`labvoice.bench.menu.Bench.connect`.
        agent: The agent that is dispatched, by its one worker; one of `workers` that joins and
            does nothing when not given.
    """
    options = with_warmup(given)
    rounds = options.rounds(trials)
    if rooms < 1 or workers < 1:
        raise UsageError("a burst needs a room and a worker", "pass `--rooms 1` or more")
    if options.links or options.conditions:
        raise UsageError(
            "the rooms of a burst have no callers, and no media that a link could carry",
            "leave links and sounds out; `bench load` has callers who talk at once",
        )
    chosen = choose(arms, BURST_ARMS)
    path = options.path("burst")
    if agent is not None:
        called = await dispatched_target(lab, agent)
        chosen = [dataclasses.replace(arm, agent_name=called.name) for arm in chosen]
    else:
        await start_workers(lab, chosen, options.progress, workers)
    facts = await host_facts(lab)
    config = {
        **options.told,
        "rooms": rooms,
        "trials": trials,
        "seed": options.seed,
        "workers": workers if agent is None else 1,
        "agent": str(agent) if agent is not None else _AGENT_NAME,
    }
    table = {arm.name: dict(arm.columns) for arm in chosen}
    with RunWriter(
        path, kind="burst", loop="open", config=config, arms=table, host_facts=facts
    ) as run:
        for number, (this_round, arm) in enumerate(interleave(chosen, rounds, options.seed)):
            await wait_idle(lab, options.progress)
            event = BurstEvent(run, lab.dispatcher, arm, this_round, this_round < options.warmup)
            words = await event.happen(number * rooms, rooms)
            options.progress(f"burst {arm.name} {this_round + 1}/{rounds}: {words}")
    return Run.load(path)


class BurstEvent:
    """One burst: its rooms ask in one moment, are watched alike, and are counted together.

    Args:
        round_number: From 0.
        wait_s: How long either arm's agents are waited for, in seconds.
        late_s: How long a second agent is waited for at the end, in seconds: a job reaches the
            list of its dispatch up to 5 s after its assignment, and only then a withdrawn dispatch
            ends it.
        resumes_s: How long the server is asked again, in seconds, that does not answer or no longer
            lists an agent: that may be connecting anew, as the SDK does on a busy machine.
    """

    def __init__(
        self,
        run: RunWriter,
        dispatcher: Dispatcher,
        arm: Arm,
        round_number: int,
        warmup: bool,
        *,
        wait_s: float = 30.0,
        late_s: float = 6.0,
        resumes_s: float = 5.0,
    ) -> None:
        self._run, self._dispatcher, self._arm = run, dispatcher, arm
        self._round, self._warmup = round_number, warmup
        self._wait_s, self._late_s, self._resumes_s = wait_s, late_s, resumes_s
        self._name = str(arm.agent_name)
        self._settled = asyncio.Event()
        self._left = 0
        self._agents: dict[str, int | None] = {}
        self._came: dict[str, str] = {}
        self._click_s = 0.0

    async def happen(self, first_trial: int, rooms: int) -> str:
        """Dispatches to a number of new rooms; returns the result as text."""
        names = [f"burst-{self._arm.name}-{secrets.token_hex(4)}" for _ in range(rooms)]
        self._left = rooms
        self._click_s = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for number, name in enumerate(names, first_trial):
                    group.create_task(self._one_room(number, name))
        finally:
            await asyncio.gather(*(self._remove(name) for name in names))
        counts = [self._agents.get(name) for name in names]
        more = sum(count is not None and count > 1 for count in counts)
        unknown = counts.count(None)
        return (
            f"{counts.count(1)} of {rooms} rooms have one agent, {counts.count(0)} none, "
            f"{more} more than one" + (f"; of {unknown} it is not known" if unknown else "")
        )

    async def _one_room(self, number: int, room: str) -> None:
        async with trial(
            self._run,
            number,
            room,
            self._arm.name,
            round_number=self._round,
            warmup=self._warmup,
            unit=f"{self._arm.name} {self._round}",
        ) as this:
            this.mark(Mark("click", self._click_s))
            failure: Exception | None = None
            try:
                await self._ask_and_watch(this, room)
            except (LabvoiceError, *INFRASTRUCTURE_ERRORS) as error:
                failure = error
            finally:
                self._left -= 1
                if not self._left:
                    self._settled.set()
            await self._settled.wait()
            await asyncio.sleep(self._late_s)
            count = self._agents[room] = await self._count(this, room)
            if count > 1:
                raise DuplicateAgentError(f"{count} agents are in the room")
            if failure is not None:
                raise failure
            if count == 0:
                agent = self._came[room]
                why = await self._dispatcher.why_ended("", agent) or "nothing says why"
                raise AgentLostError(f"{agent} left again: {why}")

    async def _ask_and_watch(self, this: Trial, room: str) -> None:
        """Asks as the arm does, and watches the room in the same way for every arm."""
        watching = asyncio.create_task(self._watch(this, room))
        try:
            await (self._confirmed if self._arm.name == "confirmed" else self._plain)(this, room)
            await watching
        finally:
            await cancel(watching)

    async def _plain(self, this: Trial, room: str) -> None:
        this.mark(Mark("dispatch_requested", time.monotonic()))
        await self._dispatcher.api.agent_dispatch.create_dispatch(
            api.CreateAgentDispatchRequest(agent_name=self._name, room=room)
        )
        this.mark(Mark("dispatch_acknowledged", time.monotonic()))

    async def _confirmed(self, this: Trial, room: str) -> None:
        done = await self._dispatcher.dispatch(
            room, self._name, timeout_s=self._wait_s, on_mark=this.mark
        )
        this.note(attempts=done.attempts, dispatch_id=done.dispatch_id)

    async def _watch(self, this: Trial, room: str) -> None:
        """Marks when an agent is visible.

        Raises:
            NoWorkerError: None is within the time that either arm has.
        """

        async def there() -> list[str]:
            with contextlib.suppress(*INFRASTRUCTURE_ERRORS):  # the next request may be answered
                return await self._present(room)
            return []

        await asyncio.sleep(_POLL_S)
        if not (agents := await poll(there, self._wait_s, _POLL_S)):
            raise NoWorkerError(
                f"no agent came within {self._wait_s:g} s, whatever the server answered",
                "the server's log tells whether a worker was asked",
            )
        self._came[room] = agents[0]
        this.mark(Mark("agent_visible", time.monotonic()))

    async def _count(self, this: Trial, room: str) -> int:
        """Counts the agents, and asks again where one that came is not listed.

        Raises:
            LabvoiceError: The server gave no answer.
        """
        until = time.monotonic() + self._resumes_s
        count: int | None = None
        while True:
            before = count
            with contextlib.suppress(*INFRASTRUCTURE_ERRORS):
                count = len(await self._present(room))
            if count and before == 0:
                this.note(resumed=True)
            if count or (count == 0 and room not in self._came):
                return count
            if time.monotonic() > until:
                break
            await asyncio.sleep(_POLL_S)
        if count is None:
            raise LabvoiceError("the server did not say who is in the room", "repeat the run")
        return count

    async def _present(self, room: str) -> list[str]:
        there = await participants(self._dispatcher.api, room)
        return [each.identity for each in there if is_agent(each) and is_active(each)]

    async def _remove(self, room: str) -> None:
        with contextlib.suppress(*INFRASTRUCTURE_ERRORS):
            await self._dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room))
