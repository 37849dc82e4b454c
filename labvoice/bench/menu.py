"""`lab.bench`: the benches of a lab, with the arguments that a user types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from labvoice.bench.arms import CONNECT_ARMS, TURN_ARMS, Arms, choose
from labvoice.bench.base import (
    RunKeywords,
    RunOptions,
    Trial,
    connect_and_greet,
    measure_calls,
    refuse_speakers,
)
from labvoice.bench.burst import burst
from labvoice.bench.calibrate import calibrate
from labvoice.bench.endpointing import endpointing
from labvoice.bench.failover import failover, parse_kills
from labvoice.bench.interrupt import ASK, AT_S, interrupt
from labvoice.bench.load import load
from labvoice.bench.record import record_call
from labvoice.bench.turns import measure_turns
from labvoice.caller.call import Call
from labvoice.runs.load import LIMIT_S
from labvoice.runs.run import Run
from labvoice.speech.probes import Probes
from labvoice.speech.turn_ends import SpokenTurn
from labvoice.speech.utterances import Utterance
from labvoice.targets.target import BUILT_IN, Target

if TYPE_CHECKING:
    from distributed import Client

    from labvoice.lab import Lab


class Bench:
    """The benches of a lab; each returns the recorded :class:`labvoice.runs.run.Run`.

    All take the options of a run, which are those of
    :class:`labvoice.bench.base.RunOptions`: `out`, `command`, `progress`, `warmup`, `links` and
    `conditions`. All raise a `UsageError` where a number, an arm or a probe is invalid, and a
    `RunFileError` where the run file exists already.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def connect(
        self, trials: int = 10, *, arms: Arms = "", **options: Unpack[RunKeywords]
    ) -> Run:
        """Measures connections: fresh room, dispatch, join, greeting; one after the other.

        Args:
            trials: How many count, of each arm.
            arms: Names of :data:`labvoice.bench.arms.CONNECT_ARMS` to measure side by side, as
                a list or with commas; or agents by the names of their arms, such as
                `{"mine": Target.program("agent.py"), "before": "agent.py@main"}`; the lab as it
                is when not given.
        """
        run, chosen = _with_warmup(options), choose(arms, CONNECT_ARMS)
        refuse_speakers(run)
        return await measure_calls(self._lab, "connect", trials, chosen, run, _connect)

    async def turns(
        self,
        trials: int = 5,
        *,
        turns: int = 1,
        arms: Arms = "",
        utterances: Sequence[Utterance] | None = None,
        **options: Unpack[RunKeywords],
    ) -> Run:
        """Measures turns: in each trial one call, in each call some turns.

        Args:
            trials: How many calls count, of each arm.
            turns: How many turns in each call.
            arms: As for :meth:`connect`, of :data:`labvoice.bench.arms.TURN_ARMS`.
            utterances: What the caller says, in rotation; human recordings and synthesised
                questions when not given, 16, and in a longer run 40, all different.

        Raises:
            UsageError: The list of utterances is empty.
            WeightsError: The caller's voice could not be obtained.
        """
        run, chosen = _with_warmup(options), choose(arms, TURN_ARMS)
        return await measure_turns(self._lab, "turns", trials, turns, chosen, utterances, run)

    async def endpointing(
        self,
        trials: int = 16,
        *,
        arms: Arms = "",
        turns: int = 1,
        said: Sequence[SpokenTurn] | None = None,
        **options: Unpack[RunKeywords],
    ) -> Run:
        """Measures ways to end a turn, side by side, in calls whose caller pauses in mid-sentence.

        Too early an end cuts in on the caller, too late a one answers late: each arm's mean
        `end_of_turn_delay` stands beside its share of turns that were cut in on.

        Args:
            trials: How many calls count, of each arm.
            arms: What :func:`labvoice.bench.arms.endpointing_arms` takes, as a list or with
                commas; :data:`labvoice.bench.endpointing.CALLED_ARMS` when not given; or agents,
                as for :meth:`connect`.
            turns: Turns in each call; dynamic endpointing learns from one to the next.
            said: What the caller says, in rotation; the built-in turns when not given.

        Raises:
            SettingsError: The package of a detector is not installed.
            WeightsError: The caller's voice could not be obtained.
        """
        return await endpointing(self._lab, trials, turns, arms, said, _with_warmup(options))

    async def interrupt(
        self,
        trials: int = 5,
        *,
        probes: Probes = "",
        arms: Arms = "",
        ask: str | Utterance = ASK,
        at: float = AT_S,
        **options: Unpack[RunKeywords],
    ) -> Run:
        """Measures turn-taking: in each trial one call, in each call one probe.

        The caller asks something, and in the reply it interrupts, or makes a sound that asks for
        nothing; or it pauses in mid-sentence. `run.shares()` says how often the agent did right,
        `run.probes` what it did each time.

        Args:
            trials: How many calls count, of each probe and arm.
            probes: Names of :data:`labvoice.speech.probes.PROBES`, as a list or with commas, or
                :class:`labvoice.speech.probes.Probe` of your own; all of those when not given.
            arms: As for :meth:`connect`, of :data:`labvoice.bench.arms.INTERRUPT_ARMS`.
            ask: What the caller asks: the reply must be long enough to be interrupted. The paced
                model answers at length who asks "in detail".
            at: When the probe begins, in seconds after the onset of the reply.

        Raises:
            WeightsError: The caller's voice could not be obtained.
        """
        run = _with_warmup(options)
        return await interrupt(self._lab, trials, probes, arms, ask, at, run)

    async def calibrate(
        self,
        trials: int = 10,
        *,
        arms: str | Sequence[str] = "plain",
        **options: Unpack[RunKeywords],
    ) -> Run:
        """Measures the instrument's own error; see :func:`labvoice.bench.calibrate.calibrate`."""
        return await calibrate(self._lab, trials, arms, RunOptions(**options))

    async def burst(
        self,
        rooms: int = 50,
        trials: int = 5,
        *,
        workers: int = 2,
        arms: str | Sequence[str] = "plain,confirmed",
        agent: Target | None = None,
        **options: Unpack[RunKeywords],
    ) -> Run:
        """Measures bursts: many rooms ask for an agent at once; each must get exactly one.

        The agents join and do nothing, for it is the dispatch that is measured.

        Args:
            rooms: How many rooms ask at once in each burst.
            trials: How many bursts count, of each arm; one burst is one event, and the unit of
                resampling.
            workers: How many workers share them.
            arms: Names of :data:`labvoice.bench.burst.BURST_ARMS`, as for :meth:`connect`.
            agent: The agent that is dispatched, by its one worker; one of `workers` that joins
                and does nothing when not given.
        """
        run = _with_warmup(options)
        return await burst(self._lab, rooms, trials, workers, arms, run, agent)

    async def load(
        self,
        callers: int | Sequence[int] = 4,
        *,
        rate: float = 6.0,
        seconds: float = 60.0,
        limit_s: float = LIMIT_S,
        whole: bool = False,
        echo: bool = False,
        agent: Target | None = None,
        client: Client | str | None = None,
        **options: Unpack[RunKeywords],
    ) -> Run:
        """Measures load: callers on several processes or machines talk at once.

        An open loop: each turn has an intended start, and what delays it counts. The levels of a
        ramp go on until one is over the limit, which is the knee, or void, because the callers
        themselves were late. `run.levels` has the figures, `run.sizing` the sentence.

        Args:
            callers: How many call at once; several numbers, rising, are levels.
            rate: Turns a minute of each caller.
            seconds: How long each caller talks in a level, after the call has begun.
            limit_s: Limit of the 95th percentile of `voice_to_voice`, in seconds.
            whole: Measure all levels, also those beyond the knee.
            echo: Call an agent without models that sends back what it hears a second later: so
                the media path alone is measured.
            agent: The agent to call, by its one worker; the lab's own when not given.
            client: Dask client, or address of the Dask scheduler, on whose workers the callers
                are; processes on this machine when not given. It receives the LiveKit server's
                key and secret, and its workers must reach that server.
            options: Options of the run; `warmup` is whether each Dask worker calls once before.

        Raises:
            UsageError: No Dask scheduler answers.
            SettingsError: Dask is not installed.
            LabvoiceError: A Dask worker failed.
        """
        levels = [callers] if isinstance(callers, int) else list(callers)
        return await load(
            self._lab,
            levels,
            rate,
            seconds,
            limit_s,
            _with_warmup(options),
            whole=whole,
            echo=echo,
            agent=agent,
            client=client,
        )

    async def failover(
        self,
        trials: int = 10,
        *,
        kills: str = "",
        agent: Target | None = None,
        **options: Unpack[RunKeywords],
    ) -> Run:
        """Kills agents in their calls; see :func:`labvoice.bench.failover.failover`.

        Args:
            trials: How many of each kind of death.
            kills: Kinds of death with commas: job, worker, hang; all that can be when not given.
            agent: A script or command whose agent is killed; labvoice's own when not given.
        """
        chosen = parse_kills(kills, agent)
        return await failover(self._lab, trials, chosen, RunOptions(**options), agent)

    def record(self, call: Call, out: Path | None = None) -> Run:
        """Writes a call that is over, or under way, as a run of one trial, and loads it.

        Args:
            call: The call.
            out: The run file; one in `runs/` named by the time when not given.
        """
        others = (each for each in self._lab.targets if each.target.kind not in BUILT_IN)
        target = next((each.target for each in others if each.name == call.agent_name), None)
        return record_call(self._lab.settings, call, out, target=target)


async def _connect(this: Trial, call: Call, _: int) -> str:
    await connect_and_greet(this, call)
    took_s = call.marks[call.ready_by] - call.marks["click"]
    return f"ready after {took_s * 1000:.0f} ms"


def _with_warmup(options: RunKeywords) -> RunOptions:
    """Returns the options of a run; one round goes before those that count, unless told."""
    options.setdefault("warmup", 1)
    return RunOptions(**options)
