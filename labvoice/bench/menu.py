"""`lab.bench`: the benches of a lab, with the arguments that a user types."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Unpack

from labvoice.bench.arms import CONNECT_ARMS, TURN_ARMS, Arms, choose
from labvoice.bench.base import (
    RunKeywords,
    Trial,
    connect_and_greet,
    measure_calls,
    refuse_speakers,
    with_warmup,
)
from labvoice.bench.burst import burst
from labvoice.bench.calibrate import calibrate
from labvoice.bench.endpointing import endpointing
from labvoice.bench.failover import failover
from labvoice.bench.interrupt import interrupt
from labvoice.bench.load import load
from labvoice.bench.record import record_call
from labvoice.bench.turns import measure_turns
from labvoice.caller.call import Call
from labvoice.runs.run import Run
from labvoice.speech.utterances import Utterance
from labvoice.targets.target import BUILT_IN

if TYPE_CHECKING:
    from labvoice.lab import Lab


_P = ParamSpec("_P")
_Made = Coroutine[Any, Any, Run]


def _of_lab(
    bench: Callable[Concatenate[Lab, _P], _Made],
) -> Callable[Concatenate[Bench, _P], _Made]:
    """Makes a bench a method: what it takes and what it is stand where it is written."""

    @functools.wraps(bench)
    async def run(self: Bench, /, *args: _P.args, **given: _P.kwargs) -> Run:
        return await bench(self._lab, *args, **given)

    return run


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
        run, chosen = with_warmup(options), choose(arms, CONNECT_ARMS)
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
        run, chosen = with_warmup(options), choose(arms, TURN_ARMS)
        return await measure_turns(self._lab, "turns", trials, turns, chosen, utterances, run)

    endpointing = _of_lab(endpointing)
    interrupt = _of_lab(interrupt)
    calibrate = _of_lab(calibrate)
    burst = _of_lab(burst)
    load = _of_lab(load)
    failover = _of_lab(failover)

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
