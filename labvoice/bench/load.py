"""The load bench: callers on several processes or machines talk at once, level after level."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import urlsplit

from labvoice.bench.arms import Arm
from labvoice.bench.base import (
    RunKeywords,
    RunOptions,
    dispatched_target,
    keep_sound,
    start_workers,
    surrounded,
    trial,
    wait_idle,
    with_warmup,
)
from labvoice.bench.calibrate import tone
from labvoice.bench.callers import Agent, Order, Planned, Sounds, call_out, sounds_of, text_of
from labvoice.bench.cluster import ask, measure_offsets, open_client
from labvoice.bench.facts import columns, host_facts, surroundings
from labvoice.bench.turns import default_utterances
from labvoice.caller.clock import ClockOffset
from labvoice.caller.conversation import GREETING_TIMEOUT_S
from labvoice.caller.microphone import SAMPLE_RATE_HZ
from labvoice.concurrency import poll
from labvoice.errors import LabvoiceError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.lines import LINE, MarkLine, NoteLine, OutcomeLine, StageLine, TrialLine
from labvoice.runs.load import KIND, LIMIT_S, Level, levels_of
from labvoice.runs.run import Run, RunWriter
from labvoice.speech.utterances import Utterance
from labvoice.stack.usage import Usage
from labvoice.targets.target import Target

if TYPE_CHECKING:
    from distributed import Client as DaskClient

    from labvoice.lab import Lab

_ECHO_NAME: Final = "echo-agent"
ECHO: Final = Arm(
    "echo",
    agent_name=_ECHO_NAME,
    program="labvoice.agent.echo",
    settings={"max_jobs": 20, "greeting": ""},
)
"""Agents that load no model and send back what they hear a second later."""
_ECHO_CALLS: Final = 10
"""Calls that one echo worker is given: half of what its load function takes."""
JOIN_EVERY_S: Final = 1.0
"""Least pause between two joins, in seconds: joins faster than two cores take them are the load,
in place of the turns."""
_WARMUP_PER_MIN: Final = 6.0  # turns a minute at least, or the warm-up takes minutes
_LEAD_S: Final = 2.0
"""From the submission of a level to its first intended start: the Dask workers have it by then."""
_LINK_LEAD_S: Final = 5.0
"""The same where each Dask worker first starts the process of its relays."""
_SLACK_S: Final = 120.0
"""How much longer than planned a level may take: joins and replies have time-outs of their own."""
_RENEWAL_S: Final = 60.0
"""How long a Dask worker that has ended may take to come back, in seconds."""
_POLL_S: Final = 0.5


def schedule(callers: int, rate_per_min: float, seconds: float) -> list[Planned]:
    """Plans a level: an open loop, whose starts do not wait for what was before.

    The callers are spread evenly over one period of their turns, so that the level has a constant
    rate of `callers * rate_per_min` turns a minute. They join no faster than every
    :data:`JOIN_EVERY_S`; where that takes longer than a period, the turns begin so much later.

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
    between_s = every_s / callers
    joins_s = max(between_s, JOIN_EVERY_S)
    wait_s = (callers - 1) * (joins_s - between_s)
    return [
        Planned(
            number * joins_s,
            tuple(wait_s + number * between_s + every_s * (turn + 1) for turn in range(turns)),
        )
        for number in range(callers)
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


async def load(
    lab: Lab,
    callers: int | Sequence[int] = 4,
    *,
    rate: float = 6.0,
    seconds: float = 60.0,
    limit_s: float = LIMIT_S,
    whole: bool = False,
    echo: bool = False,
    agent: Target | None = None,
    client: DaskClient | str | None = None,
    **given: Unpack[RunKeywords],
) -> Run:
    """Measures load: callers on several processes or machines talk at once.

    An open loop: each turn has an intended start, and what delays it counts. The levels of a ramp
    go on until one is over the limit, which is the knee, or void, because the callers themselves
    were late. `run.levels` has the figures, `run.sizing` the sentence.

    Args:
        callers: How many call at once; several numbers, rising, are levels.
        rate: Turns a minute of each caller.
        seconds: How long each caller talks in a level, after the call has begun.
        limit_s: Limit of the 95th percentile of `voice_to_voice`, in seconds.
        whole: Measure all levels, also those beyond the knee.
        echo: Call an agent without models that sends back what it hears a second later: so the
            media path alone is measured.
        agent: The agent to call, by its one worker; the lab's own when not given.
        client: Dask client, or address of the Dask scheduler, on whose workers the callers are;
            processes on this machine when not given. It receives the LiveKit server's key and
            secret, and its workers must reach that server.
        given: Options of the run; `warmup` is whether each Dask worker calls once before.

    Raises:
        UsageError: No Dask scheduler answers.
        SettingsError: Dask is not installed.
        LabvoiceError: A Dask worker failed.
    """
    options = with_warmup(given)
    levels = [callers] if isinstance(callers, int) else list(callers)
    if not levels or levels != sorted(set(levels)):
        raise UsageError("the levels of a ramp rise", "such as `[1, 2, 4]`")
    plans = [schedule(each, rate, seconds) for each in levels]
    path = options.path(KIND)
    duty = f"a turn each {60 / rate:g} s of each caller"
    about = columns(lab.settings) if not echo and agent is None else {}
    arms, around = await surrounded(lab.settings, [level_arm(each) for each in levels], options)
    utterances = (
        [Utterance("", tone(), SAMPLE_RATE_HZ, "tone")]
        if echo
        else await asyncio.to_thread(default_utterances, lab.settings, options.progress)
    )
    sounds = {
        arm.name: Sounds(
            utterances
            if arm.conditions is None
            else await asyncio.to_thread(
                arm.conditions.voiced, utterances, lab.settings, options.progress
            ),
            arm.conditions,
            around.get(arm.name),
        )
        for arm in arms
    }
    called, workers = await _start_agent(lab, max(levels), options, echo=echo, agent=agent)
    facts = await host_facts(lab)
    async with open_client(client, max(levels), options) as (dask, local_pids):
        offsets = await measure_offsets(dask)
        config = {
            **options.told,
            "callers": levels,
            "rate_per_min": rate,
            "seconds": seconds,
            "limit_s": limit_s,
            "agent": "echo" if echo else str(agent or called.name),
            "workers": workers,
            "dask_workers": len(offsets),
        }
        table = {
            arm.name: {**about, **surroundings(arm.link, arm.conditions), **arm.columns}
            for arm in arms
        }
        with RunWriter(
            path, kind=KIND, loop="open", config=config, arms=table, host_facts=facts
        ) as run:
            level = _LevelRun(lab, run, dask, offsets, called, sounds, local_pids, rests=echo)
            if options.warmup:
                brisk = max(rate, _WARMUP_PER_MIN)
                first = schedule(len(offsets), brisk, 60.0 / brisk)
                await level.happen(arms[0], first, warmup=True)
            for plan, arm in zip(plans, arms, strict=True):
                await wait_idle(lab, options.progress)
                if warning := await level.happen(arm, plan):
                    options.progress(f"warning: {warning}")
                made = levels_of(Run.load(path))[-1]
                options.progress(f"{_words(made)}; {duty}")
                if not whole and (made.void or not made.within(limit_s)):
                    break
    return Run.load(path)


def level_arm(callers: int) -> Arm:
    """Returns the arm of a level, which its link and its sounds may be named by."""
    name = f"{callers} callers" if callers > 1 else "1 caller"
    return Arm(name, columns={"callers": callers})


def _words(level: Level) -> str:
    lost = f"{level.lost} of {level.turns} turns lost" if level.lost else f"{level.turns} turns"
    void = f"; void: {level.void_words}" if level.void else ""
    speed = f"p50 {level.p50_s:.2f} s, p95 {level.p95_s:.2f} s"
    if math.isnan(level.p50_s):
        speed = "no turn is left to time"
    return f"load {level.arm}: {speed}, {lost}{void}"


async def _start_agent(
    lab: Lab, most: int, options: RunOptions, *, echo: bool, agent: Target | None
) -> tuple[Agent, int]:
    """Starts the agent's workers where they do not run yet; returns it, and how many they are."""
    settings, timeout_s = lab.settings, GREETING_TIMEOUT_S
    if agent is not None:
        if echo:
            raise UsageError("both an agent and echo are given", "leave one of them out")
        target = await dispatched_target(lab, agent)
        server = target.server
        where = (server.url, server.api_key, server.api_secret)
        return Agent(*where, target.name, None, agent.greeting_timeout_s), 1
    name = _ECHO_NAME if echo else settings.agent_name
    if echo:
        await start_workers(lab, [ECHO], options.progress, -(-most // _ECHO_CALLS))
    elif not any(worker.agent_name == name for worker in lab.pool.workers):
        options.progress("worker: starting")
        await lab.add_workers()
    workers = [worker for worker in lab.pool.workers if worker.agent_name == name]
    greets = any(worker.settings.greeting for worker in workers)
    return Agent(*settings.livekit, name, greets, timeout_s), len(workers)


class _LevelRun:
    """Makes levels: hands out the callers, follows the processes, and joins what was recorded."""

    def __init__(
        self,
        lab: Lab,
        run: RunWriter,
        client: DaskClient,
        offsets: Mapping[str, ClockOffset],
        agent: Agent,
        sounds: Mapping[str, Sounds],
        local_pids: Sequence[int],
        *,
        rests: bool,
    ) -> None:
        self._lab, self._run, self._client = lab, run, client
        self._offsets, self._agent = offsets, agent
        self._sounds, self._local_pids = sounds, local_pids
        self._rests = rests
        self._next = 0
        self._ended = False

    async def happen(self, arm: Arm, plan: Sequence[Planned], *, warmup: bool = False) -> str:
        """Makes one level, and writes its trials; the recordings are encoded after its last call.

        The callers of a Dask worker that ends before them have failed, and the level is void.

        Returns:
            Why calls have no recording; empty where they have one, or are to have none.

        Raises:
            LabvoiceError: A Dask worker failed, or one that was not started here did not end its
                calls in time.
        """
        if self._ended:
            await self._renew()
        numbered = list(enumerate(plan, self._next))
        self._next += len(plan)
        lead_s = _LEAD_S if arm.link is None else _LINK_LEAD_S
        begin_s = time.monotonic() + lead_s
        lasts_s = lead_s + max(planned.turns_s[-1] for planned in plan)
        addresses = list(self._offsets)
        called: dict[str, Any] = {}
        shares: dict[str, list[tuple[int, Planned]]] = {}
        for place, address in enumerate(addresses):
            if not (mine := numbered[place :: len(addresses)]):
                continue
            order = Order(
                self._agent,
                arm.name,
                warmup,
                begin_s + self._offsets[address].offset_s,
                mine,
                self._sounds[arm.name],
                arm.link,
                self._rests,
            )
            shares[address] = mine
            called[address] = self._submit(address, call_out, order)
        texts = {address: self._submit(address, text_of, made) for address, made in called.items()}
        usage = Usage(self._parts())
        following = asyncio.create_task(usage.follow(lasts_s / 2))
        try:
            lines = await self._results(texts, lasts_s + _SLACK_S, "ended its calls")
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        for address, share in shares.items():
            if address in lines:
                self._join(lines[address], address)
            else:
                await self._give_up(share, arm, warmup=warmup)
        self._ended = len(lines) < len(shares)
        called = {address: called[address] for address in lines}
        self._run.note(numbered[0][0], None, **usage.facts())
        return await self._keep_sounds(called, lasts_s * len(plan) + _SLACK_S)

    async def _give_up(
        self, share: Sequence[tuple[int, Planned]], arm: Arm, *, warmup: bool
    ) -> None:
        """Writes the trials of callers whose Dask worker has ended."""
        for number, planned in share:
            said = [""] * len(planned.turns_s)
            async with trial(
                self._run, number, "", arm.name, round_number=0, warmup=warmup, said=said
            ) as this:
                this.note(caller_ended=1)
                raise LabvoiceError("the process of the caller ended", "use more Dask workers")

    async def _renew(self) -> None:
        """Takes the Dask workers that are there now: one that ended comes back elsewhere."""

        async def all_there() -> bool:
            return len(await self._there()) >= len(self._offsets)

        await poll(all_there, _RENEWAL_S, _POLL_S)
        self._offsets = await measure_offsets(self._client)
        if self._local_pids:
            self._local_pids = list((await self._client.run(os.getpid)).values())

    async def _there(self) -> set[str]:
        """Returns the addresses of the Dask workers that run."""
        return set(await ask(self._client, self._client.nthreads))

    def _submit(self, address: str, function: Any, *arguments: Any) -> Any:
        return self._client.submit(
            function, *arguments, workers=[address], allow_other_workers=False, pure=False
        )

    async def _keep_sounds(self, called: Mapping[str, Any], timeout_s: float) -> str:
        """Writes the recordings of calls; returns why one could not be written."""
        format_ = self._lab.settings.recording
        if format_ == "none":
            return ""
        encoding = {
            address: self._submit(address, sounds_of, made, format_)
            for address, made in called.items()
        }
        encoded = await self._results(encoding, timeout_s, "encoded its recordings")
        warning = ""
        for sound in itertools.chain(*encoded.values()):
            failed = await asyncio.to_thread(
                keep_sound, self._run, sound.trial, sound.content, sound.start_s, format_
            )
            warning = warning or failed
        return warning

    def _parts(self) -> dict[str, list[int]]:
        """Returns the processes of each part that runs here, by process id."""
        found: dict[str, list[int]] = {
            "worker": [worker.process.pid for worker in self._lab.pool.workers]
        }
        found["worker"] += [
            target.worker.process.pid for target in self._lab.targets if target.worker is not None
        ]
        for part in self._lab.parts():
            if part.pid is not None and part.name.startswith("LiveKit server"):
                found.setdefault("server", []).append(part.pid)
            if part.pid is not None and part.name.startswith("model server"):
                found["model"] = [part.pid]
        found["callers"] = list(self._local_pids)
        return {name: pids for name, pids in found.items() if pids}

    async def _results(
        self, futures: Mapping[str, Any], timeout_s: float, done: str
    ) -> dict[str, Any]:
        """Waits for futures; those of Dask workers that have ended are left out.

        Dask workers that were started here are restarted where they are not done in time.
        """
        until_s = time.monotonic() + timeout_s
        while waiting := {each for each, future in futures.items() if not future.done()}:
            if not waiting & await self._there():
                break
            if time.monotonic() > until_s:
                if self._local_pids:
                    await self._client.restart_workers(sorted(waiting), raise_for_error=False)
                    break
                raise LabvoiceError(
                    f"a Dask worker has not {done} after {timeout_s:.0f} s",
                    "the log of the Dask worker tells why",
                )
            await asyncio.sleep(_POLL_S)
        found: dict[str, Any] = {}
        for address, future in futures.items():
            if address in waiting:
                continue
            try:
                found[address] = await ask(self._client, future.result)
            except Exception as error:
                raise LabvoiceError(
                    f"the callers on the Dask worker at {address} failed: "
                    f"{type(error).__name__}: {error}",
                    "the log of the Dask worker tells more",
                ) from error
        return found

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
