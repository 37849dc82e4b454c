"""Measures the same arm twice, again and again: how often is a difference found that is none?

`python -m benchmarks.false_alarms [--runs 20] [--rounds 8] [--agent] [--busy] [FOLDER]` makes that
many runs in one lab, each of two arms that are one and the same, and tests each as a report does.
The caller calls agents that echo (`labvoice.agent.echo`); with `--agent` labvoice's own with the
paced model, which takes three times as long. Exits 1 where more runs find a difference than do in
95 of 100 such experiments.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from scipy import stats

from labvoice import Lab
from labvoice.bench.arms import Arm
from labvoice.bench.calibrate import tone
from labvoice.bench.load import ECHO
from labvoice.caller.microphone import SAMPLE_RATE_HZ
from labvoice.errors import UsageError
from labvoice.runs.compare import compare
from labvoice.runs.run import Run
from labvoice.speech.utterances import Utterance

LEVEL = 0.05
STAGE = "voice_to_voice"
_BUSY = 0.5


def finds_difference(run: Run) -> bool:
    """Whether a run says of its two arms that they differ."""
    (ratio,) = (stages[STAGE] for stages in run.ratios().values())
    return ratio.p_value < LEVEL and not ratio.ci95[0] <= 1 <= ratio.ci95[1]


def most_alarms(runs: int) -> int:
    """Returns how many of so many runs may find a difference: more do in 5 of 100 experiments."""
    return int(stats.binom.ppf(1 - LEVEL, runs, LEVEL))


def told(runs: list[Run]) -> tuple[str, bool]:
    """Returns how many runs found a difference, in words, and whether they are few enough."""
    alarms, most = sum(map(finds_difference, runs)), most_alarms(len(runs))
    verdicts = [
        row.verdict
        for base, new in itertools.pairwise(runs)
        for row in compare(base, new).stages
        if row.stage == STAGE
    ]
    real = sum(verdict in ("slower", "faster") for verdict in verdicts)
    words = (
        f"the same arm twice: {alarms} of {len(runs)} runs find a difference (level {LEVEL:.0%}; "
        f"up to {most} are chance); `labvoice compare` of each arm with the next run's: {real} of "
        f"{len(verdicts)}, {verdicts.count('inconclusive')} are inconclusive"
    )
    return words, alarms <= most


async def measure(count: int, rounds: int, folder: Path, *, agent: bool) -> list[Run]:
    """Makes the runs, and prints each one's ratio."""
    arms = [Arm(name) if agent else dataclasses.replace(ECHO, name=name) for name in ("a", "b")]
    utterances = None if agent else [Utterance("", tone(), SAMPLE_RATE_HZ, "tone")]
    runs = []
    async with Lab(
        progress=print,
        llm="paced",
        letta=False,
        supervise=False,
        workers=int(agent),
        model=agent,
        recording="none",
    ) as lab:
        for number in range(count):
            run = await lab.bench.turns(
                rounds,
                arms=arms,
                utterances=utterances,
                warmup=0 if number else 1,
                out=folder / f"aa-{number + 1:02}.jsonl",
            )
            (ratio,) = (stages[STAGE] for stages in run.ratios().values())
            print(f"{number + 1}/{count}: × {ratio}{' ALARM' * finds_difference(run)}", flush=True)
            runs.append(run)
    return runs


def main() -> int:
    """Makes the runs, or judges those of a folder; returns 1 where there are too many alarms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=8, help="calls of each arm in each run")
    parser.add_argument("--agent", action="store_true", help="call labvoice's own agent")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("folder", type=Path, nargs="?")
    given = parser.parse_args()
    if given.runs < 1 or given.rounds < 6:
        raise UsageError("a test of fewer than 6 rounds finds nothing", "`--rounds 8`")
    if not given.busy and os.getloadavg()[0] > _BUSY * (os.cpu_count() or 1):
        print(f"the machine is busy (load {os.getloadavg()[0]:.2f}); alarms would be the load's")
        print("hint: wait until it is idle, or give --busy and say so beside the figures")
        return 1
    folder = given.folder or Path(f"false-alarms-{datetime.now(UTC):%Y-%m-%dT%H%M}")
    runs = asyncio.run(measure(given.runs, given.rounds, folder, agent=given.agent))
    words, good = told(runs)
    print(f"{'ok' if good else 'NOT OK'}: {words}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
