"""Shared by all benches: options of a run, trials, and the loop over interleaved arms."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

import aiohttp
import numpy as np
from livekit import api, rtc

from labvoice.bench.arms import SEED, Arm, interleave, with_conditions, with_links
from labvoice.bench.facts import (
    arm_columns,
    connection_facts,
    ending_facts,
    gateway_facts,
    host_facts,
    words_of,
)
from labvoice.bench.memory import memories_of
from labvoice.caller.call import Call
from labvoice.caller.recorder import Recording, write_sound
from labvoice.choices import RecordingFormat
from labvoice.dispatch.dispatcher import DISPATCH_TIMEOUT_S
from labvoice.errors import (
    DispatchError,
    LabvoiceError,
    NoReplyError,
    StageTimeoutError,
    UsageError,
)
from labvoice.protocol.metadata import JobMetadata
from labvoice.protocol.vocabulary import Mark
from labvoice.runs import host
from labvoice.runs.run import Run, RunWriter
from labvoice.settings import Settings
from labvoice.speech.conditions import Conditions
from labvoice.speech.utterances import DEFAULT_UTTERANCES, Pcm, synthesize
from labvoice.stack.workers.pool import IDLE_TIMEOUT_S
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target

if TYPE_CHECKING:
    from labvoice.lab import Lab

_OUTCOMES_OF_WAITS: Final = {
    "agent_visible": "join_timeout",
    "agent_audio_subscribed": "join_timeout",
    "agent_listening": "join_timeout",
    "greeting_heard": "no_reply",
}
INFRASTRUCTURE_ERRORS: Final = (
    api.TwirpError,
    aiohttp.ClientError,
    rtc.ConnectError,
    rtc.RpcError,
    TimeoutError,
    OSError,
)
"""What a server under load answers; it ends a trial with the outcome `error`, and not the run."""


class RunKeywords(TypedDict, total=False):
    """The options of a run that a user gives by name; :class:`RunOptions` describes them."""

    out: Path | None
    command: str
    progress: Callable[[str], None]
    warmup: int
    links: Sequence[str]
    conditions: Mapping[str, Conditions]


@dataclass(frozen=True)
class RunOptions:
    """Options of every bench.

    Attributes:
        out: The run file; one in `runs/` named by the time when None.
        command: The command line to show as the way to reproduce the run.
        warmup: How many rounds go before those that count; they are recorded and flagged.
        seed: Seed of the order in which the arms take turns within a round.
        links: Links of the callers' media, as :func:`labvoice.bench.arms.with_links` takes them.
        conditions: How the callers sound, as :func:`labvoice.bench.arms.with_conditions` takes it.
    """

    out: Path | None = None
    command: str = ""
    progress: Callable[[str], None] = lambda _: None
    warmup: int = 0
    seed: int = SEED
    links: Sequence[str] = ()
    conditions: Mapping[str, Conditions] = field(default_factory=dict)

    def path(self, kind: str) -> Path:
        """Returns where the run is written."""
        return self.out or run_path(kind)

    @property
    def told(self) -> dict[str, Any]:
        """What the run's header says of them."""
        links = {"link": "; ".join(self.links)} if self.links else {}
        return {"command": self.command, "warmup": self.warmup, **links}

    def rounds(self, trials: int) -> int:
        """Returns how many rounds there are, warm-up included.

        Raises:
            UsageError: A number is out of range.
        """
        if trials < 1 or self.warmup < 0:
            raise UsageError("a run needs at least one trial", "pass `--trials 1` or more")
        return self.warmup + trials


def with_warmup(given: RunKeywords) -> RunOptions:
    """Returns the options of a run; one round goes before those that count, unless told."""
    given.setdefault("warmup", 1)
    return RunOptions(**given)


def run_path(kind: str) -> Path:
    """Returns a run file's path, named by the time."""
    return Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{kind}.jsonl"


def outcome_of(error: Exception) -> str:
    """Returns the outcome of an error; `error` if the instrument failed."""
    if isinstance(error, DispatchError):
        return error.outcome
    if isinstance(error, NoReplyError):
        return "no_reply"
    if isinstance(error, StageTimeoutError):
        return _OUTCOMES_OF_WAITS.get(error.stage, "error")
    return "error"


class Trial:
    """A trial under way; made by :func:`trial`.

    Attributes:
        words: The result in words, to tell; the error where the trial failed.
        warning: Why it has no recording; empty where it has one, or is to have none.
    """

    def __init__(self, run: RunWriter, number: int, arm: str, turns: int) -> None:
        self.run, self.number, self.arm = run, number, arm
        self.words = self.warning = ""
        self.failed = False
        self._connection: str | None = None
        self._due = list(range(turns))

    def mark(self, mark: Mark) -> None:
        """Records a mark of the connection."""
        self.run.mark(self.number, mark)

    def note(self, turn: int | None = None, **facts: Any) -> None:
        """Records facts that are no time."""
        self.run.note(self.number, turn, **facts)

    def outcome(self, outcome: str, *, turn: int | None = None, detail: str = "") -> None:
        """Records how the connection, or with `turn` a turn, ended."""
        if turn is None:
            self._connection = outcome
        elif turn in self._due:
            self._due.remove(turn)
        self.run.outcome(self.number, outcome, turn=turn, detail=detail)

    def fail(self, outcome: str, detail: str) -> None:
        """Books a failure on what was under way, and on all turns that are now never tried."""
        self.failed, self.words = True, detail
        due = list(self._due)
        if self._connection is None:
            self.outcome(outcome, detail=detail)
        elif due:
            self.outcome(outcome, turn=due.pop(0), detail=detail)
        else:  # everything that is measured was over
            self.note(failure=detail)
        for turn in due:
            self.outcome(outcome, turn=turn, detail=f"not tried: {detail}")


@asynccontextmanager
async def trial(
    run: RunWriter,
    number: int,
    room: str,
    arm: str,
    *,
    round_number: int,
    warmup: bool = False,
    unit: str | None = None,
    said: Sequence[str] = (),
) -> AsyncIterator[Trial]:
    """One trial of a run; however it ends, its outcome and one of each of its turns is written.

    A :class:`labvoice.errors.LabvoiceError`, and what a server under load answers, ends the trial
    and not the run. Any other exception and a cancellation are recorded as `error` and go on.

    Args:
        round_number: Number of the round; all arms of it do the same.
        unit: The unit of resampling, where that is not the trial.
        said: What the caller is to say, a text for each turn.
    """
    run.trial(number, room, arm, warmup, unit=unit, round_number=round_number)
    for turn, text in enumerate(said):
        # A turn that is never tried has a row too.
        run.note(number, turn, **({"said": text} if text else {}))
    this = Trial(run, number, arm, len(said))
    try:
        yield this
        if this._connection is None:
            this.outcome("ok")
    except (LabvoiceError, *INFRASTRUCTURE_ERRORS) as error:
        this.fail(outcome_of(error), words_of(error))
    except asyncio.CancelledError:
        this.fail("error", "the run was cancelled")
        raise
    except BaseException as error:
        this.fail("error", words_of(error))
        raise


@asynccontextmanager
async def call_trial(
    lab: Lab,
    run: RunWriter,
    number: int,
    arm: Arm,
    *,
    round_number: int,
    warmup: bool = False,
    said: Sequence[str] = (),
    metadata: JobMetadata | None = None,
    timeout_s: float = DISPATCH_TIMEOUT_S,
    around: Pcm | None = None,
) -> AsyncIterator[tuple[Trial, Call]]:
    """One trial that is a call, not connected yet; every mark of it is recorded as it is set.

    Its arguments are those of :func:`trial`, the metadata of the dispatch, how long the agent is
    waited for, in seconds, and what is around the caller of an arm with conditions.
    """
    call = lab.new_call(
        agent_name=arm.agent_name,
        metadata=metadata,
        strategy=arm.strategy,
        timeout_s=timeout_s,
        link=arm.link,
        on_mark=lambda mark: this.mark(mark),
    )
    if arm.conditions is not None and around is not None:
        call.sound_like(arm.conditions, around)
    async with trial(
        run,
        number,
        call.room_name,
        arm.name,
        round_number=round_number,
        warmup=warmup,
        said=said,
    ) as this:
        call.on_turn_mark = lambda turn, mark: run.mark(number, mark, turn=turn.number)
        busy = host.Busy()
        try:
            yield this, call
        finally:
            run.note(number, host_busy=round(busy.share(), 3))
            await lab.end_call(call)
            run.note(number, **ending_facts(call, lab.settings.masked))
            this.warning = await asyncio.to_thread(
                record_sound, run, number, call, lab.settings.recording
            )


def record_sound(run: RunWriter, trial: int, call: Call, format_: RecordingFormat) -> str:
    """Writes a call's recording beside its run file, in a folder of the run's name.

    The note `recording` is its path from the run file's folder, `recording_start_s` the instant
    of its first sample in seconds since the click; `recording_error` says why there is none.

    Returns:
        Why it could not be written; empty where it was, or where there is nothing to write.
    """
    if format_ == "none" or (recording := call.recorder.recording()) is None:
        return ""
    zero_s = call.marks.get("click", min(call.marks.values(), default=recording.start_s))
    return write_recording(run, trial, recording, zero_s, format_)


def write_recording(
    run: RunWriter, trial: int, recording: Recording, zero_s: float, format_: str
) -> str:
    """As :func:`record_sound`, of a recording and the instant of the call's click, in seconds."""
    sound = recording.encoded(f".{format_}")
    return keep_sound(run, trial, sound, recording.start_s - zero_s, format_)


def keep_sound(run: RunWriter, trial: int, sound: bytes, start_s: float, format_: str) -> str:
    """As :func:`record_sound`, of an encoded recording that begins so long after the click."""
    path = run.path.with_suffix("") / f"{trial:04}.{format_}"
    try:
        write_sound(path, sound)
    except LabvoiceError as error:
        run.note(trial, recording_error=error.observed)
        return error.observed
    place = path.relative_to(run.path.parent).as_posix()
    run.note(trial, recording=place, recording_start_s=start_s)
    return ""


Talk = Callable[[Trial, Call, int], Awaitable[str]]
"""What a caller does in a trial of a round; returns the result as text."""


async def measure_calls(
    lab: Lab,
    kind: str,
    trials: int,
    arms: Sequence[Arm],
    options: RunOptions,
    talk: Talk,
    *,
    said: Callable[[int], Sequence[str]] = lambda _: (),
    config: Mapping[str, Any] | None = None,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> Run:
    """Makes calls, one after the other, the arms taking turns in every round.

    Args:
        trials: How many calls of each arm count.
        talk: What the caller does.
        said: What the caller is to say in a round, a text for each turn.
        config: What else was asked for.
        idle_timeout_s: How long idle workers are waited for before each call, in seconds.

    Raises:
        UsageError: A number is out of range.
        RunFileError: The run file exists already.
    """
    rounds = options.rounds(trials)
    arms, around = await surrounded(lab.settings, arms, options)
    arms = await start_workers(lab, arms, options.progress)
    header = {
        **options.told,
        "trials": trials,
        "seed": options.seed,
        **({"wire": True} if lab.wire else {}),
        "agent_name": lab.settings.agent_name,
        **(config or {}),
    }
    facts = await host_facts(lab)
    table = {arm.name: arm_columns(lab.settings, arm) for arm in arms}
    path = options.path(kind)
    async with memories_of(lab, arms, options.progress) as memories:
        with RunWriter(path, kind=kind, config=header, arms=table, host_facts=facts) as run:
            for number, (this_round, arm) in enumerate(interleave(arms, rounds, options.seed)):
                await wait_idle(lab, options.progress, idle_timeout_s)
                async with call_trial(
                    lab,
                    run,
                    number,
                    arm,
                    round_number=this_round,
                    warmup=this_round < options.warmup,
                    said=said(this_round),
                    metadata=memories.get(arm.name),
                    around=around.get(arm.name),
                ) as (this, call):
                    this.words = await talk(this, call, this_round)
                name = f" {arm.name}" if len(arms) > 1 else ""
                options.progress(f"{kind}{name} {this_round + 1}/{rounds}: {this.words}")
                for warning in filter(None, (this.warning, run.trouble)):
                    options.progress(f"warning: {warning}")
            if served := await gateway_facts(lab):
                run.note(number, **served)
    return Run.load(path)


async def background(
    conditions: Conditions, settings: Settings, progress: Callable[[str], None]
) -> Pcm:
    """Returns what is around a caller; a sentence of its own sets the level."""

    def make() -> Pcm:
        if conditions.noise is None:
            return np.zeros(0, np.int16)
        sentence = synthesize(DEFAULT_UTTERANCES[0], settings, progress)
        (voiced,) = conditions.voiced([sentence], settings, progress)
        return conditions.around(conditions.spoken(voiced), settings, progress=progress)

    return await asyncio.to_thread(make)


async def surrounded(
    settings: Settings, arms: Sequence[Arm], options: RunOptions
) -> tuple[list[Arm], dict[str, Pcm]]:
    """Returns the arms with their links and sounds, and what is around the callers of each.

    Raises:
        UsageError: A link or a sound cannot be read, or names no arm.
    """
    found = with_conditions(with_links(arms, options.links), options.conditions)
    around = {
        arm.name: await background(arm.conditions, settings, options.progress)
        for arm in found
        if arm.conditions is not None
    }
    return found, around


def refuse_speakers(options: RunOptions) -> None:
    """Refuses that a speaker is named for callers who say nothing.

    Raises:
        UsageError: One is.
    """
    if any(each.speaker for each in options.conditions.values()):
        raise UsageError(
            "a speaker is named, and the callers of this bench say nothing", "leave it out"
        )


async def wait_idle(
    lab: Lab, progress: Callable[[str], None], timeout_s: float = IDLE_TIMEOUT_S
) -> None:
    """Waits for the workers; where they are not idle in time, the next trial shows it."""
    try:
        await lab.wait_idle(timeout_s)
    except StageTimeoutError as error:
        progress(f"warning: {error.observed}")


async def start_workers(
    lab: Lab, arms: Sequence[Arm], progress: Callable[[str], None], count: int = 1
) -> list[Arm]:
    """Starts the workers of those arms that need one of their own and have none yet.

    Args:
        arms: The arms; where there are several, each foreign worker has a server of its own.
        count: How many workers of each; of a foreign agent always one.

    Returns:
        The arms, with what their calls name.
    """
    started = []
    for arm in arms:
        name = arm.agent_name
        running = {worker.agent_name for worker in lab.pool.workers}
        if arm.target is not None and name is None:
            progress(f"agent of {arm.name}: starting")
            agent = await lab.add_target(arm.target, apart=len(arms) > 1)
            progress(f"agent of {arm.name}: {agent}")
            every_room = agent.bot is None and not agent.name
            strategy = "automatic" if every_room else arm.strategy
            arm = dataclasses.replace(arm, agent_name=agent, strategy=strategy)
        elif arm.target is None and isinstance(name, str) and name not in running:
            progress(f"worker of {arm.name}: starting")
            await lab.add_workers(count, agent_name=name, program=arm.program, **arm.settings)
        started.append(arm)
    return started


async def dispatched_target(lab: Lab, agent: Target) -> TargetAgent:
    """Starts an agent that is not labvoice's and has to be dispatched.

    Raises:
        UsageError: Nobody dispatches it.
    """
    if agent.kind == "bot":
        raise UsageError("a bot is not dispatched", "name an agent with a worker")
    called = await lab.add_target(agent)
    if not called.name:
        raise UsageError(f"{called}, so none is asked for", "name an agent with a name")
    return called


async def connect_and_greet(this: Trial, call: Call) -> None:
    """Connects, hears the greeting, and records what is known of the connection."""
    await call.connect()
    await call.hear_greeting()
    this.note(**connection_facts(call))
    this.outcome("ok")
