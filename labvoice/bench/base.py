"""Benchmarks: trials through real calls, closed loop, every mark recorded as it happens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from labvoice.bench.arms import (
    CONNECT_ARMS,
    TURN_ARMS,
    Arm,
    choose,
    endpointing_arms,
    interleave,
)
from labvoice.bench.burst import BURST_ARMS, burst
from labvoice.bench.memory import (
    LettaSource,
    memories_of,
    record_memory,
    wait_for_memory,
)
from labvoice.caller.call import Call
from labvoice.caller.turns import Turn
from labvoice.dispatch import Dispatcher, Strategy
from labvoice.errors import (
    DispatchError,
    LabvoiceError,
    NoReplyError,
    StageTimeoutError,
    UsageError,
)
from labvoice.protocol.metadata import JobMetadata
from labvoice.protocol.vocabulary import WORKER_CONNECTION_MARKS
from labvoice.runs import host
from labvoice.runs.run import Run, RunWriter
from labvoice.settings import Settings
from labvoice.speech.utterances import (
    DEFAULT_UTTERANCES,
    Utterance,
    human_utterances,
    synthesize_all,
)
from labvoice.stack.workers.pool import Pool


class CallSource(LettaSource, Protocol):
    """What a benchmark needs of a lab."""

    settings: Settings

    @property
    def server_version(self) -> str | None:
        """Version of the LiveKit server, where it is known."""

    @property
    def supervised(self) -> bool:
        """Whether lost agents are replaced."""

    @property
    def dispatcher(self) -> Dispatcher:
        """Dispatches through the lab's server."""

    @property
    def pool(self) -> Pool:
        """The workers."""

    async def add_workers(
        self, count: int = 1, *, agent_name: str | None, program: str, **overrides: Any
    ) -> None:
        """Starts more workers."""

    def new_call(
        self,
        *,
        agent_name: str | None = None,
        metadata: JobMetadata | None = None,
        strategy: Strategy = "sequential",
        on_mark: Callable[[str, float, str, float], None] | None = None,
    ) -> Call:
        """Prepares a call in a fresh room."""

    async def end_call(self, call: Call) -> None:
        """Hangs up and removes the room."""

    async def wait_idle(self) -> None:
        """Returns when the workers are idle and warm again."""


_OUTCOMES_OF_WAITS: Final = {
    "agent_visible": "join_timeout",
    "agent_audio_subscribed": "join_timeout",
    "agent_listening": "join_timeout",
    "greeting_heard": "no_reply",
}


def outcome_of(error: LabvoiceError) -> str:
    """Returns the outcome that an error of a call stands for."""
    if isinstance(error, DispatchError):
        return error.outcome
    if isinstance(error, NoReplyError):
        return "no_reply"
    if isinstance(error, StageTimeoutError):
        return _OUTCOMES_OF_WAITS.get(error.stage, "error")
    return "error"


class Bench:
    """The benchmarks of a lab; each returns the recorded :class:`labvoice.runs.run.Run`."""

    def __init__(self, source: CallSource) -> None:
        self._source = source

    async def connect(
        self,
        trials: int = 10,
        *,
        warmup: int = 1,
        arms: str | Sequence[str] = "",
        out: Path | None = None,
        command: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Measures connections: fresh room, dispatch, join, greeting; one after the other.

        Args:
            trials: How many count, of each arm.
            warmup: How many go before, of each arm; they are recorded and flagged.
            arms: Names of :data:`labvoice.bench.arms.CONNECT_ARMS` to measure side by side, as
                a list or with commas; the lab as it is when not given.
            out: The run file; one in `runs/` named by the time when not given.
            command: The command line to show as the way to reproduce the run.
            progress: Told a line for every trial.

        Raises:
            UsageError: A number makes no sense.
            RunFileError: The run file exists already.
        """
        chosen = choose(arms, CONNECT_ARMS)
        return await self._run("connect", trials, warmup, out, command, progress, chosen, [], 0)

    async def turns(
        self,
        trials: int = 5,
        *,
        turns: int = 1,
        warmup: int = 1,
        arms: str | Sequence[str] = "",
        utterances: Sequence[Utterance] | None = None,
        out: Path | None = None,
        command: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Measures turns: in each trial one call, in each call some turns.

        Args:
            trials: How many calls count.
            turns: How many turns in each call.
            warmup: How many calls go before; they are recorded and flagged.
            arms: As for :meth:`connect`, of :data:`labvoice.bench.arms.TURN_ARMS`.
            utterances: What the caller says, in rotation; human recordings and synthesised
                questions when not given.
            out: As for :meth:`connect`.
            command: As for :meth:`connect`.
            progress: As for :meth:`connect`.

        Raises:
            UsageError: A number makes no sense.
            RunFileError: The run file exists already.
            WeightsError: The caller's voice could not be obtained.
        """
        if turns < 1:
            raise UsageError("a call needs at least one turn", "pass `--turns 1` or more")
        if utterances is not None and not utterances:
            raise UsageError(
                "the list of utterances is empty", "give one, or leave `utterances` out"
            )
        chosen = choose(arms, TURN_ARMS)
        if utterances is None:
            utterances = await asyncio.to_thread(
                _default_utterances, self._source.settings, progress
            )
        return await self._run(
            "turns", trials, warmup, out, command, progress, chosen, utterances, turns
        )

    async def endpointing(
        self,
        trials: int = 16,
        *,
        arms: str | Sequence[str] = "0.2,0.3,0.4,0.6",
        warmup: int = 1,
        out: Path | None = None,
        command: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Measures turns with several silences before the end of a turn, side by side.

        Too short a silence splits turns in two, too long a one answers late: each arm's
        `voice_to_voice` stands beside its count of split turns.

        Args:
            trials: How many calls of one turn count, of each arm.
            arms: The silences, in seconds, as a list or with commas.
            warmup: As for :meth:`turns`.
            out: As for :meth:`connect`.
            command: As for :meth:`connect`.
            progress: As for :meth:`connect`.

        Raises:
            UsageError: A number makes no sense.
            RunFileError: The run file exists already.
            WeightsError: The caller's voice could not be obtained.
        """
        chosen = endpointing_arms(arms, self._source.settings.max_endpointing_delay_s)
        said = await asyncio.to_thread(_default_utterances, self._source.settings, progress)
        return await self._run(
            "endpointing", trials, warmup, out, command, progress, chosen, said, 1
        )

    async def calibrate(
        self,
        trials: int = 10,
        *,
        out: Path | None = None,
        command: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Measures the instrument's own error; see :mod:`labvoice.bench.calibrate`."""
        # Here, for that module is built upon this one.
        from labvoice.bench.calibrate import calibrate

        return await calibrate(self._source, trials, out=out, command=command, progress=progress)

    async def burst(
        self,
        rooms: int = 50,
        *,
        workers: int = 2,
        arms: str | Sequence[str] = "plain,confirmed",
        out: Path | None = None,
        command: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Measures bursts: many rooms ask for an agent at once; each must get exactly one.

        The agents join and do nothing, for it is the dispatch that is measured.

        Args:
            rooms: How many, for each arm.
            workers: How many workers share them.
            arms: Names of :data:`labvoice.bench.burst.BURST_ARMS`, as for :meth:`connect`.
            out: As for :meth:`connect`.
            command: As for :meth:`connect`.
            progress: As for :meth:`connect`.

        Raises:
            UsageError: A number makes no sense.
            RunFileError: The run file exists already.
        """
        if rooms < 1 or workers < 1:
            raise UsageError("a burst needs a room and a worker", "pass `--rooms 1` or more")
        chosen = choose(arms, BURST_ARMS)
        await self._start_workers(chosen, progress, workers)
        facts = await asyncio.to_thread(host.facts, self._source.server_version)
        path = out or run_path("burst")
        config = {"command": command, "rooms": rooms, "workers": workers}
        table = {arm.name: dict(arm.columns) for arm in chosen}
        with RunWriter(
            path, kind="burst", loop="open", config=config, arms=table, host_facts=facts
        ) as run:
            for number, arm in enumerate(chosen):
                await burst(run, self._source, arm, number * rooms, rooms, progress)
        return Run.load(path)

    async def failover(
        self,
        trials: int = 10,
        *,
        kills: str = "job,worker,hang",
        out: Path | None = None,
        command: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Kills agents in their calls; see :func:`labvoice.bench.failover.failover`."""
        # Here, for that module is built upon this one.
        from labvoice.bench.failover import failover, parse_kills

        return await failover(
            self._source,
            trials,
            kills=parse_kills(kills),
            out=out,
            command=command,
            progress=progress,
        )

    def record(self, call: Call, out: Path | None = None) -> Run:
        """Writes a call that is over, or under way, as a run of one trial, and loads it.

        Args:
            call: The call.
            out: As for :meth:`connect`.

        Raises:
            RunFileError: The run file exists already.
        """
        path = out or run_path("call")
        arms = {"default": {**columns(self._source.settings), "strategy": call.strategy}}
        with RunWriter(path, kind="call", arms=arms) as run:
            run.trial(0, call.room_name, "default")
            for mark, at_s in call.marks.items():
                clock: Literal["caller", "worker"] = (
                    "worker" if mark in WORKER_CONNECTION_MARKS else "caller"
                )
                error_s = call.offset.uncertainty_s if clock == "worker" and call.offset else 0.0
                run.mark(0, mark, at_s, clock=clock, uncertainty_s=error_s)
            record_memory(run, 0, call)
            run.outcome(0, "ok" if "agent_listening" in call.marks else "error")
            for turn in call.turns:
                for mark, at_s in turn.marks.items():
                    run.mark(0, mark, at_s, turn=turn.number)
                record_turn(run, 0, turn)
        return Run.load(path)

    async def _run(
        self,
        kind: str,
        trials: int,
        warmup: int,
        out: Path | None,
        command: str,
        progress: Callable[[str], None],
        arms: Sequence[Arm],
        utterances: Sequence[Utterance],
        turns: int,
    ) -> Run:
        if trials < 1 or warmup < 0:
            raise UsageError("a run needs at least one trial", "pass `--trials 1` or more")
        settings = self._source.settings
        path = out or run_path(kind)
        config = {
            "command": command,
            "trials": trials,
            "warmup": warmup,
            "turns_per_trial": turns,
            "agent_name": settings.agent_name,
        }
        # Every arm says the same, so each has a round of its own through the utterances.
        said = {arm.name: itertools.cycle(utterances) for arm in arms}
        await self._start_workers(arms, progress)
        facts = await asyncio.to_thread(host.facts, self._source.server_version)
        table = {arm.name: arm_columns(settings, arm) for arm in arms}
        rounds = warmup + trials
        async with memories_of(self._source, arms, progress) as memories:
            with RunWriter(path, kind=kind, config=config, arms=table, host_facts=facts) as run:
                for trial, (number, arm) in enumerate(interleave(arms, rounds)):
                    try:
                        await self._source.wait_idle()
                    except StageTimeoutError as error:  # the trial shows what that does to it
                        progress(f"warning: {error.observed}")
                    memory, warm = memories.get(arm.name), number < warmup
                    words = await self._trial(run, trial, arm, warm, said[arm.name], turns, memory)
                    name = f" {arm.name}" if len(arms) > 1 else ""
                    progress(f"{kind}{name} {number + 1}/{rounds}: {words}")
        return Run.load(path)

    async def _start_workers(
        self, arms: Sequence[Arm], progress: Callable[[str], None], count: int = 1
    ) -> None:
        """Starts the workers of those arms that need one of their own and have none yet."""
        for arm in arms:
            running = {worker.agent_name for worker in self._source.pool.workers}
            if arm.agent_name is not None and arm.agent_name not in running:
                progress(f"worker of {arm.name}: starting")
                await self._source.add_workers(
                    count, agent_name=arm.agent_name, program=arm.program, **arm.settings
                )

    async def _trial(
        self,
        run: RunWriter,
        trial: int,
        arm: Arm,
        warmup: bool,
        said: itertools.cycle[Utterance],
        turns: int,
        metadata: JobMetadata | None,
    ) -> str:
        call = self._source.new_call(
            agent_name=arm.agent_name,
            metadata=metadata,
            strategy=arm.strategy,
            on_mark=lambda name, at_s, clock, error_s: run.mark(
                trial,
                name,
                at_s,
                clock="worker" if clock == "worker" else "caller",
                uncertainty_s=error_s,
            ),
        )
        call.on_turn_mark = lambda turn, name, at_s: run.mark(trial, name, at_s, turn=turn.number)
        run.trial(trial, call.room_name, arm.name, warmup)
        connected = False
        try:
            await call.connect()
            await call.hear_greeting()
            connected = True
            run.note(trial, **_connection_facts(call))
            run.outcome(trial, "ok")
            for _ in range(turns):
                await self._turn(run, trial, call, next(said))
            await wait_for_memory(call)
            record_memory(run, trial, call)
        except LabvoiceError as error:
            if not connected:
                run.outcome(trial, outcome_of(error), detail=error.observed)
            return error.observed
        finally:
            await self._source.end_call(call)
        if not turns:
            return f"listening after {_ms(call.marks, 'click', 'agent_listening')}"
        return "voice to voice " + ", ".join(
            "none" if turn.voice_to_voice_s is None else f"{turn.voice_to_voice_s * 1000:.0f} ms"
            for turn in call.turns
        )

    async def _turn(self, run: RunWriter, trial: int, call: Call, utterance: Utterance) -> None:
        number = len(call.turns)
        run.note(trial, number, said=utterance.text)  # a turn that is cut off is one that failed
        try:
            await call.say(utterance)
            await call.hear()
        finally:
            if len(call.turns) > number:
                record_turn(run, trial, call.turns[number])


def _default_utterances(settings: Settings, progress: Callable[[str], None]) -> list[Utterance]:
    """Human recordings and synthesised questions in turn."""
    pairs = itertools.zip_longest(
        human_utterances(settings, progress),
        synthesize_all(DEFAULT_UTTERANCES, settings, progress),
    )
    return [utterance for pair in pairs for utterance in pair if utterance is not None]


def record_turn(run: RunWriter, trial: int, turn: Turn) -> None:
    """Records LiveKit's figures of a turn, its texts and its outcome; its marks are there."""
    for stage, duration_s in turn.metrics.items():
        if stage != "memory_sync":  # it comes later
            run.stage(trial, stage, duration_s, turn=turn.number)
    run.note(
        trial,
        turn.number,
        said=turn.said,
        transcript=turn.transcript,
        reply=turn.reply,
        wer=turn.word_error_rate,
        user_messages=turn.user_messages,
        notice=turn.notice,
    )
    run.outcome(trial, turn.outcome, turn=turn.number)


def run_path(kind: str) -> Path:
    """Returns a run file's path, named by the time."""
    return Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{kind}.jsonl"


def columns(settings: Settings) -> dict[str, Any]:
    """Returns the configuration's columns in the frame."""
    return {
        "llm": settings.resolved_llm,
        "llm_model": settings.llm_model,
        "stt": "deepgram" if settings.deepgram_api_key else f"moonshine-{settings.stt}",
        "executor": settings.executor,
        "min_endpointing_delay_s": settings.min_endpointing_delay_s,
        "max_endpointing_delay_s": settings.max_endpointing_delay_s,
    }


def arm_columns(settings: Settings, arm: Arm) -> dict[str, Any]:
    """Returns an arm's columns in the frame."""
    own = settings.model_copy(update=dict(arm.settings))
    return {**columns(own), "strategy": arm.strategy, **arm.columns}


def _connection_facts(call: Call) -> dict[str, Any]:
    assert call.dispatch is not None
    clock = (
        {}
        if call.offset is None
        else {
            "clock_offset_s": call.offset.offset_s,
            "clock_uncertainty_s": call.offset.uncertainty_s,
        }
    )
    return {
        "dispatch_id": call.dispatch.dispatch_id,
        "room_existed": call.dispatch.room_existed,
        "attempts": call.dispatch.attempts,
        "greeting": call.greeting,
        "notice": call.notice,
        **clock,
        **call.worker,
    }


def _ms(marks: dict[str, float], start: str, end: str) -> str:
    return f"{(marks[end] - marks[start]) * 1000:.0f} ms"
