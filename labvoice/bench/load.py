"""The load bench: callers on several processes or machines talk at once, level after level."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import psutil
from pydantic import SecretStr

from labvoice.bench.arms import Arm
from labvoice.bench.base import (
    RunOptions,
    columns,
    connect_and_greet,
    ending_facts,
    host_facts,
    start_workers,
    trial,
    wait_idle,
)
from labvoice.bench.calibrate import tone
from labvoice.bench.turns import default_utterances, said_in, take_turn
from labvoice.caller.call import Call
from labvoice.caller.clock import ClockOffset
from labvoice.caller.conversation import GREETING_TIMEOUT_S
from labvoice.caller.microphone import SAMPLE_RATE_HZ
from labvoice.caller.turns import Turn
from labvoice.dispatch import Dispatcher
from labvoice.errors import LabvoiceError, SettingsError, UsageError
from labvoice.lab import import_for_calls
from labvoice.protocol.vocabulary import Mark
from labvoice.runs import host
from labvoice.runs.lines import LINE, MarkLine, NoteLine, OutcomeLine, StageLine, TrialLine
from labvoice.runs.load import KIND, Level, levels_of
from labvoice.runs.run import Run, RunWriter
from labvoice.runs.statistics import percentile
from labvoice.speech.utterances import Utterance
from labvoice.stack.processes import memory_of
from labvoice.targets.target import Target

if TYPE_CHECKING:
    from distributed import Client as DaskClient

    from labvoice.lab import Lab

_ECHO_NAME: Final = "echo-agent"
_ECHO_CALLS: Final = 50
"""Calls that one echo worker is given: half of what its load function takes."""
_LEAD_S: Final = 2.0
"""From the submission of a level to its first intended start: the Dask workers have it by then."""
_SLACK_S: Final = 120.0
"""How much longer than planned a level may take: joins and replies have time-outs of their own."""
_CLOCK_ROUNDS: Final = 7
_CONNECT_TIMEOUT_S: Final = 15.0
_LAG_EVERY_S: Final = 0.02
_SAMPLE_EVERY_S: Final = 0.5
_POLL_S: Final = 0.1


class Planned(NamedTuple):
    """What one caller of a level is to do, in seconds since the level's begin.

    Attributes:
        click_s: Intended start of the call.
        turns_s: Intended start of each utterance.
    """

    click_s: float
    turns_s: tuple[float, ...]


def schedule(callers: int, rate_per_min: float, seconds: float) -> list[Planned]:
    """Plans a level: an open loop, whose starts do not wait for what was before.

    The callers are spread evenly over one period of their turns, so that the level has a constant
    rate of `callers * rate_per_min` turns a minute.

    Args:
        callers: How many call at once.
        rate_per_min: Turns a minute of each caller.
        seconds: How long each caller talks.

    Raises:
        UsageError: A number is out of range, or the time is too short for one turn.
    """
    if callers < 1 or rate_per_min <= 0 or seconds <= 0:
        raise UsageError("a load needs a caller, a rate and a time", "such as `--callers 4`")
    every_s = 60.0 / rate_per_min
    turns = math.floor(seconds / every_s + 1e-9)
    if turns < 1:
        raise UsageError(
            f"{seconds:g} s are too short for one turn at {rate_per_min:g} turns a minute",
            f"`--for {math.ceil(every_s)}` or more, or a higher rate",
        )
    starts = [number * every_s / callers for number in range(callers)]
    return [
        Planned(start_s, tuple(start_s + every_s * (turn + 1) for turn in range(turns)))
        for start_s in starts
    ]


def ramp(text: str) -> list[int]:
    """Reads the levels of a ramp: `1..16` doubles up to 16, `4,5,6` are these.

    Raises:
        UsageError: It is neither.
    """
    wrong = UsageError(f"{text!r} is no ramp", "such as `1..16` or `4,5,6,7`")
    first, dots, last = text.partition("..")
    try:
        if not dots:
            levels = sorted({int(each) for each in text.split(",")})
        else:
            low, high = int(first), int(last)
            if not 1 <= low <= high:
                raise wrong
            levels = [low]
            while levels[-1] < high:
                levels.append(min(2 * levels[-1], high))
    except ValueError:
        raise wrong from None
    if levels[0] < 1:
        raise wrong
    return levels


@dataclass(frozen=True)
class _Agent:
    """Whom the callers call, and where."""

    url: str
    api_key: str
    api_secret: SecretStr
    name: str
    greets: bool | None
    greeting_timeout_s: float


@dataclass(frozen=True)
class _Order:
    """What one Dask worker does in a level; `begin_s` is on its own monotonic clock."""

    agent: _Agent
    arm: str
    warmup: bool
    begin_s: float
    callers: Sequence[tuple[int, Planned]]
    utterances: Sequence[Utterance]


async def load(
    lab: Lab,
    levels: Sequence[int],
    rate_per_min: float,
    seconds: float,
    limit_s: float,
    options: RunOptions,
    *,
    echo: bool = False,
    agent: Target | None = None,
    client: DaskClient | str | None = None,
) -> Run:
    """Measures levels of load; see :meth:`labvoice.bench.menu.Bench.load`."""
    if not levels or list(levels) != sorted(set(levels)):
        raise UsageError("the levels of a ramp rise", "such as `[1, 2, 4]`")
    plans = {callers: schedule(callers, rate_per_min, seconds) for callers in levels}
    if options.links or options.conditions:
        raise UsageError("callers under load have plain links and voices", "leave them out")
    path = options.path(KIND)
    called, workers = await _start_agent(lab, max(levels), options, echo=echo, agent=agent)
    utterances = (
        [Utterance("", tone(), SAMPLE_RATE_HZ, "tone")]
        if echo
        else await asyncio.to_thread(default_utterances, lab.settings, options.progress)
    )
    facts = await host_facts(lab)
    async with _dask(client, max(levels), options) as (dask, local_pids):
        offsets = await _offsets(dask)
        config = {
            "command": options.command,
            "callers": list(levels),
            "rate_per_min": rate_per_min,
            "seconds": seconds,
            "limit_s": limit_s,
            "warmup": options.warmup,
            "agent": "echo" if echo else str(agent or called.name),
            "workers": workers,
            "dask_workers": len(offsets),
        }
        about = columns(lab.settings) if not echo and agent is None else {}
        table = {_arm(callers): {**about, "callers": callers} for callers in levels}
        with RunWriter(
            path, kind=KIND, loop="open", config=config, arms=table, host_facts=facts
        ) as run:
            level = _LevelRun(lab, run, dask, offsets, called, utterances, local_pids)
            if options.warmup:
                first = schedule(len(offsets), rate_per_min, 60.0 / rate_per_min)
                await level.happen(_arm(levels[0]), first, warmup=True)
            for callers in levels:
                await wait_idle(lab, options.progress)
                await level.happen(_arm(callers), plans[callers])
                made = levels_of(Run.load(path))[-1]
                options.progress(_words(made))
                if made.void or not made.within(limit_s):
                    break
    return Run.load(path)


def _arm(callers: int) -> str:
    return f"{callers} callers" if callers > 1 else "1 caller"


def _words(level: Level) -> str:
    lost = f"{level.lost} of {level.turns} turns lost" if level.lost else f"{level.turns} turns"
    void = f"; void: the callers were late by {level.late_s * 1e3:.0f} ms" if level.void else ""
    return f"load {level.arm}: p50 {level.p50_s:.2f} s, p95 {level.p95_s:.2f} s, {lost}{void}"


async def _start_agent(
    lab: Lab, most: int, options: RunOptions, *, echo: bool, agent: Target | None
) -> tuple[_Agent, int]:
    """Starts the agent's workers where they do not run yet; returns it, and how many they are."""
    settings, timeout_s = lab.settings, GREETING_TIMEOUT_S
    if agent is not None:
        if echo:
            raise UsageError("both an agent and echo are given", "leave one of them out")
        if agent.kind == "bot":
            raise UsageError("a bot is not dispatched", "name an agent with a worker")
        target = await lab.add_target(agent)
        if not target.name:
            raise UsageError(f"{target}, so none is asked for", "name an agent with a name")
        server = target.server
        where = (server.url, server.api_key, server.api_secret)
        return _Agent(*where, target.name, None, agent.greeting_timeout_s), 1
    name = _ECHO_NAME if echo else settings.agent_name
    if echo:
        arm = Arm(
            "echo",
            agent_name=name,
            program="labvoice.agent.echo",
            settings={"max_jobs": 64, "greeting": ""},
        )
        await start_workers(lab, [arm], options.progress, -(-most // _ECHO_CALLS))
    elif not any(worker.agent_name == name for worker in lab.pool.workers):
        options.progress("worker: starting")
        await lab.add_workers()
    workers = [worker for worker in lab.pool.workers if worker.agent_name == name]
    greets = any(worker.settings.greeting for worker in workers)
    assert settings.livekit_url
    assert settings.livekit_api_key
    assert settings.livekit_api_secret
    where = (settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret)
    return _Agent(*where, name, greets, timeout_s), len(workers)


# -- Dask --------------------------------------------------------------------------------------


@asynccontextmanager
async def _dask(
    given: DaskClient | str | None, most: int, options: RunOptions
) -> AsyncIterator[tuple[DaskClient, list[int]]]:
    """Yields a Dask client, and the process ids of its workers where they were started here."""
    try:
        from distributed import Client as DaskClient
        from distributed import LocalCluster
    except ImportError:
        raise SettingsError(
            "Dask, which spreads the callers, is not installed", 'pip install "labvoice[scale]"'
        ) from None
    if isinstance(given, DaskClient):
        yield given, []
    elif given is not None:
        try:
            client = await DaskClient(given, asynchronous=True, timeout=_CONNECT_TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {given}: {error}", "such as `tcp://10.0.0.5:8786`"
            ) from None
        async with client:
            yield client, []
    else:
        count = min(most, host.cores())
        options.progress(f"Dask: starting {count} workers on this machine")
        async with (
            LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                worker_dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                memory_limit=None,
                asynchronous=True,
            ) as cluster,
            DaskClient(cluster, asynchronous=True) as client,
        ):
            yield client, list((await client.run(os.getpid)).values())


async def _ask(client: DaskClient, method: Any, *arguments: Any, **named: Any) -> Any:
    """Calls a method of a Dask client, or of its future, be the client asynchronous or not."""
    if client.asynchronous:
        return await method(*arguments, **named)
    return await asyncio.to_thread(method, *arguments, **named)


async def _each(client: DaskClient, function: Any, address: str) -> Any:
    """Runs a function on one Dask worker."""
    return (await _ask(client, client.run, function, workers=[address]))[address]


async def _offsets(client: DaskClient) -> dict[str, ClockOffset]:
    """Measures the clock of each Dask worker against this one; the shortest round trip counts.

    Raises:
        UsageError: There is no Dask worker.
        LabvoiceError: One cannot run the callers.
    """
    addresses = list(await _ask(client, client.nthreads))
    if not addresses:
        raise UsageError("the Dask cluster has no worker", "start one: `dask worker ADDRESS`")
    found: dict[str, ClockOffset] = {}
    for address in addresses:
        try:
            await _each(client, _ready, address)  # imports what a call needs
            for _ in range(_CLOCK_ROUNDS):
                asked_s = time.monotonic()
                there_s = await _each(client, time.monotonic, address)
                half_s = (time.monotonic() - asked_s) / 2
                if address not in found or half_s < found[address].uncertainty_s:
                    found[address] = ClockOffset(there_s - asked_s - half_s, half_s)
        except (ImportError, AttributeError) as error:
            raise LabvoiceError(
                f"the Dask worker at {address} cannot run callers: {error}",
                "install the same labvoice[scale] there",
            ) from None
    return found


def _ready() -> None:
    """Imports on a Dask worker what would otherwise be imported in the first call."""
    import_for_calls()


class _LevelRun:
    """Makes levels: hands out the callers, follows the processes, and joins what was recorded."""

    def __init__(
        self,
        lab: Lab,
        run: RunWriter,
        client: DaskClient,
        offsets: Mapping[str, ClockOffset],
        agent: _Agent,
        utterances: Sequence[Utterance],
        local_pids: Sequence[int],
    ) -> None:
        self._lab, self._run, self._client = lab, run, client
        self._offsets, self._agent = offsets, agent
        self._utterances, self._local_pids = utterances, local_pids
        self._next = 0

    async def happen(self, arm: str, plan: Sequence[Planned], *, warmup: bool = False) -> None:
        """Makes one level, and writes its trials.

        Raises:
            LabvoiceError: A Dask worker failed, or the level did not end in time.
        """
        numbered = list(enumerate(plan, self._next))
        self._next += len(plan)
        begin_s = time.monotonic() + _LEAD_S
        lasts_s = _LEAD_S + max(planned.turns_s[-1] for planned in plan)
        addresses = list(self._offsets)
        futures: dict[str, Any] = {}
        for place, address in enumerate(addresses):
            if not (mine := numbered[place :: len(addresses)]):
                continue
            order = _Order(
                self._agent,
                arm,
                warmup,
                begin_s + self._offsets[address].offset_s,
                mine,
                self._utterances,
            )
            futures[address] = self._client.submit(
                call_out, order, workers=[address], allow_other_workers=False, pure=False
            )
        usage = _Usage(self._parts())
        following = asyncio.create_task(usage.follow(lasts_s / 2))
        try:
            texts = await self._results(futures, lasts_s + _SLACK_S)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        for address, text in texts.items():
            self._join(text, address)
        self._run.note(numbered[0][0], None, **usage.facts())

    def _parts(self) -> dict[str, list[int]]:
        """Returns the processes of each part that runs here, by process id."""
        found: dict[str, list[int]] = {
            "worker": [worker.process.pid for worker in self._lab.pool.workers]
        }
        found["worker"] += [
            target.worker.process.pid for target in self._lab.targets if target.worker is not None
        ]
        for part in self._lab.parts():
            if part.pid is not None and part.name == "LiveKit server":
                found["server"] = [part.pid]
            if part.pid is not None and part.name.startswith("model server"):
                found["model"] = [part.pid]
        found["callers"] = list(self._local_pids)
        return {name: pids for name, pids in found.items() if pids}

    async def _results(self, futures: Mapping[str, Any], timeout_s: float) -> dict[str, str]:
        until_s = time.monotonic() + timeout_s
        while not all(future.done() for future in futures.values()):
            if time.monotonic() > until_s:
                raise LabvoiceError(
                    f"a Dask worker has not ended its calls after {timeout_s:.0f} s",
                    "the log of the Dask worker tells why",
                )
            await asyncio.sleep(_POLL_S)
        texts: dict[str, str] = {}
        for address, future in futures.items():
            try:
                texts[address] = await _ask(self._client, future.result)
            except Exception as error:
                raise LabvoiceError(
                    f"the callers on the Dask worker at {address} failed: "
                    f"{type(error).__name__}: {error}",
                    "the log of the Dask worker tells more",
                ) from error
        return texts

    def _join(self, text: str, address: str) -> None:
        """Writes what a Dask worker recorded, its instants moved to this clock."""
        run, offset = self._run, self._offsets[address]
        for line in map(LINE.validate_json, text.splitlines()):
            match line:
                case TrialLine():
                    run.trial(line.trial, line.room, line.arm, line.warmup, unit=line.unit)
                    run.note(
                        line.trial,
                        dask_host=urlsplit(address).hostname,
                        dask_worker=address,
                        dask_offset_s=offset.offset_s,
                        dask_uncertainty_s=offset.uncertainty_s,
                    )
                case MarkLine():
                    mark = Mark(
                        line.mark, line.t_s - offset.offset_s, line.clock, line.uncertainty_s
                    )
                    run.mark(line.trial, mark, turn=line.turn)
                case StageLine():
                    run.stage(
                        line.trial,
                        line.stage,
                        line.duration_s,
                        turn=line.turn,
                        start_s=None if line.start_s is None else line.start_s - offset.offset_s,
                        source=line.source,
                    )
                case NoteLine():
                    run.note(line.trial, line.turn, **line.facts)
                case OutcomeLine():
                    run.outcome(line.trial, line.outcome, turn=line.turn, detail=line.detail)


class _Usage:
    """Processor time and memory of the parts that run here, their child processes included.

    Args:
        roots: Process ids of each part.
    """

    def __init__(self, roots: Mapping[str, Sequence[int]]) -> None:
        self._roots = roots
        self._seen: dict[tuple[int, float], float] = {}
        self._used_s = dict.fromkeys(roots, 0.0)
        self._memory: dict[str, int] = {}
        self._begun_s = self._ended_s = time.monotonic()

    async def follow(self, memory_after_s: float) -> None:
        """Samples until it is cancelled; a process that ends between two samples loses one."""
        await asyncio.to_thread(self._sample, first=True)
        self._begun_s = self._ended_s = time.monotonic()
        while True:
            await asyncio.sleep(_SAMPLE_EVERY_S)
            await asyncio.to_thread(self._sample)
            self._ended_s = time.monotonic()
            if not self._memory and self._ended_s - self._begun_s > memory_after_s:
                self._memory = await asyncio.to_thread(
                    lambda: {name: sum(map(memory_of, pids)) for name, pids in self._roots.items()}
                )

    def _sample(self, *, first: bool = False) -> None:
        for name, pids in self._roots.items():
            for pid in pids:
                with contextlib.suppress(psutil.Error):
                    root = psutil.Process(pid)
                    for process in [root, *root.children(recursive=True)]:
                        self._count(name, process, first)

    def _count(self, name: str, process: psutil.Process, first: bool) -> None:
        with contextlib.suppress(psutil.Error):
            key, times = (process.pid, process.create_time()), process.cpu_times()
            used_s = times.user + times.system
            self._used_s[name] += used_s - self._seen.get(key, used_s if first else 0.0)
            self._seen[key] = used_s

    def facts(self) -> dict[str, float]:
        """Returns the mean number of cores that each part used, and its memory in bytes."""
        lasted_s = max(self._ended_s - self._begun_s, _SAMPLE_EVERY_S)
        return {
            **{f"cpu_{name}": used_s / lasted_s for name, used_s in self._used_s.items()},
            **{f"memory_bytes_{name}": float(size) for name, size in self._memory.items()},
        }


# -- on a Dask worker ----------------------------------------------------------------------------


def call_out(order: _Order) -> str:
    """Makes the calls of one Dask worker; returns the lines of what it recorded."""
    with tempfile.TemporaryDirectory(prefix="labvoice-callers-") as folder:
        path = Path(folder) / "callers.jsonl"
        asyncio.run(_calls(order, path))
        lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[1:-1])  # without the run's own first and last line


async def _calls(order: _Order, path: Path) -> None:
    agent = order.agent
    lags: list[float] = []
    async with Dispatcher(agent.url, agent.api_key, agent.api_secret) as dispatcher:
        with RunWriter(path, kind=KIND, loop="open", arms={order.arm: {}}, host_facts={}) as run:
            watching = asyncio.create_task(_watch_loop(lags))
            try:
                async with asyncio.TaskGroup() as group:
                    for number, planned in order.callers:
                        group.create_task(_caller(run, dispatcher, order, number, planned))
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            for number, _ in order.callers:
                run.note(number, loop_lag_s=percentile(lags, 99) if lags else 0.0)


async def _watch_loop(lags: list[float]) -> None:
    """Notes how much later than asked for the event loop comes back, in seconds."""
    while True:
        due_s = time.monotonic() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        lags.append(max(0.0, time.monotonic() - due_s))


async def _caller(
    run: RunWriter, dispatcher: Dispatcher, order: _Order, number: int, planned: Planned
) -> None:
    """One caller of a level; what it measures counts from the intended starts."""
    agent, click_s = order.agent, order.begin_s + planned.click_s
    late_s = 0.0

    def on_mark(mark: Mark) -> None:
        this.mark(dataclasses.replace(mark, at_s=click_s) if mark.name == "click" else mark)

    def on_turn_mark(turn: Turn, mark: Mark) -> None:
        intended = mark.name in ("user_speech_start", "user_speech_end")
        at_s = mark.at_s - late_s if intended else mark.at_s
        run.mark(number, dataclasses.replace(mark, at_s=at_s), turn=turn.number)

    call = Call(
        url=agent.url,
        api_key=agent.api_key,
        api_secret=agent.api_secret,
        dispatcher=dispatcher,
        room=f"load-{secrets.token_hex(6)}",
        identity=f"caller-{secrets.token_hex(4)}",
        agent_name=agent.name,
        greets=agent.greets,
        greeting_timeout_s=agent.greeting_timeout_s,
        on_mark=on_mark,
    )
    said = said_in(order.utterances, number, len(planned.turns_s))
    async with trial(
        run,
        number,
        call.room_name,
        order.arm,
        round_number=0,
        warmup=order.warmup,
        said=[utterance.text for utterance in said],
    ) as this:
        call.on_turn_mark = on_turn_mark
        try:
            await _until(click_s)
            this.note(caller_late_s=time.monotonic() - click_s)
            await connect_and_greet(this, call)
            for turn, (after_s, utterance) in enumerate(zip(planned.turns_s, said, strict=True)):
                due_s = order.begin_s + after_s
                waited = await _until(due_s)
                late_s = max(0.0, time.monotonic() - due_s)
                # One that still heard the last reply is late for the agent's sake, not its own.
                this.note(turn, late_s=late_s, caller_late_s=late_s if waited else 0.0)
                await take_turn(this, call, utterance)
        finally:
            await call.end()
            this.note(**ending_facts(call))


async def _until(at_s: float) -> bool:
    """Sleeps until a monotonic instant; returns whether there was anything to wait for."""
    wait_s = at_s - time.monotonic()
    if wait_s > 0:
        await asyncio.sleep(wait_s)
    return wait_s > 0
