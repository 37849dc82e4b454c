"""Plays eight scenarios over an agent with each of eight planted faults, and over it with none.

`python -m benchmarks.planted_faults [FAULT…]` prints a table in Markdown: a fault must be found by
the scenario that is meant for it, and by no other. Any other cell is told with its reason, and the
exit code is 1. It takes a quarter of an hour; with FAULTs only their rows are played.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from labvoice.bench.base import RunOptions
from labvoice.lab import Lab
from labvoice.scenarios.model import ExpectCall, Latency, Scenario
from labvoice.scenarios.suite import SuiteResult, run_scenarios
from tests.stack.planted.scenarios import FOUND_BY, IN_TIME, PLANTED

_NONE = "(none)"
_SLACK_S = 0.6
"""The late agent is late by 1 s."""


async def _play(lab: Lab, fault: str, scenarios: list[Scenario], folder: Path) -> SuiteResult:
    return await run_scenarios(
        lab,
        scenarios,
        agent=dataclasses.replace(PLANTED, metadata="" if fault == _NONE else fault),
        options=RunOptions(folder / f"{fault.replace(' ', '-')}.jsonl"),
    )


def _row(fault: str, result: SuiteResult) -> tuple[str, list[str]]:
    """Returns the row of the table, and what is unexpected in it."""
    cells, wrong = [], []
    for each in result.scenarios:
        name, (attempt,) = each.file.scenario.name, each.attempts
        meant = fault in FOUND_BY and FOUND_BY[fault].name == name
        if meant is not attempt.passed:
            cells.append("found" if meant else "")
            continue
        cells.append(f"**{'not found' if meant else attempt.outcome}**")
        wrong += [f"{fault}, {name}: {attempt.outcome}", *(f"  {line}" for line in attempt.words())]
    return f"| {' | '.join([fault, *cells])} |", wrong


async def _matrix(faults: list[str], folder: Path) -> int:
    scenarios = list(FOUND_BY.values())
    began_s, wrong = time.monotonic(), []
    print(f"| | {' | '.join(each.name for each in scenarios)} |")
    print(f"| --- {'| --- ' * len(scenarios)}|", flush=True)
    async with Lab(workers=0, letta=False, supervise=False, llm="script") as lab:
        for fault in [_NONE, *faults]:
            result = await _play(lab, fault, scenarios, folder)
            row, unexpected = _row(fault, result)
            wrong += unexpected
            print(row, flush=True)
            if fault == _NONE:
                if wrong:  # what follows would prove nothing
                    break
                frame = result.run.frame
                rows = frame[(frame["stage"] == "voice_to_voice") & (frame["arm"] == IN_TIME.name)]
                bound = Latency(max=float(rows["duration_s"].max()) + _SLACK_S)
                timed = dataclasses.replace(IN_TIME, expect=ExpectCall(voice_to_voice=bound))
                scenarios = [timed if each is IN_TIME else each for each in scenarios]
    print(f"\n{(time.monotonic() - began_s) / 60:.0f} min; runs in {folder}")
    print("\n".join(wrong) or "every cell is as expected")
    return bool(wrong)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(FOUND_BY)
    if unknown := set(chosen) - set(FOUND_BY):
        sys.exit(f"there is no fault {', '.join(unknown)}; choose from: {', '.join(FOUND_BY)}")
    sys.exit(asyncio.run(_matrix(chosen, Path(tempfile.mkdtemp(prefix="planted-")))))
