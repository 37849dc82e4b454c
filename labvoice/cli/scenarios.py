"""`labvoice test`: plays scenarios repeatedly; pass or fail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labvoice.cli.agents import NO_AGENTS, AgentOptions, LinkOption
from labvoice.cli.common import (
    CALL_OPTIONS,
    CallOptions,
    command,
    command_line,
    console,
    send_traces,
    tell,
    write_json,
)

if TYPE_CHECKING:
    from labvoice.scenarios.suite import ScenarioResult, SuiteResult


@command("arm", "greeting_timeout")
async def run_test(
    scenarios: Annotated[
        list[Path], typer.Argument(help="Scenario files, or LiveKit's scenarios.yaml.")
    ],
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, help="Calls of each scenario; all must pass.")
    ] = 1,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Make every call, though one has failed.")
    ] = False,
    agents: AgentOptions = NO_AGENTS,
    link: LinkOption = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", dir_okay=False, help="Also write JUnit's XML there.")
    ] = None,
    options: CallOptions = CALL_OPTIONS,
) -> int:
    """Plays scenarios over calls to an agent; exits 1 when one fails.

    The agent is the one of `--agent`, else the scenario's, else that of labvoice.toml, else
    labvoice's own. A scenario passes when all its calls do; once one has failed, the rest is not
    made.

    Example: labvoice test appointments/change.scenario.yaml --repeat 5 --junit junit.xml
    """
    import asyncio

    from labvoice.bench.base import RunOptions
    from labvoice.scenarios.junit import write_junit
    from labvoice.scenarios.livekit_file import load_all
    from labvoice.scenarios.suite import Suite
    from labvoice.settings import load_settings

    target = agents.one()
    suite = await asyncio.to_thread(
        Suite,
        [file for path in scenarios for file in load_all(path)],
        load_settings(llm=options.llm, recording=options.format),
        RunOptions(options.out, command_line(), tell, links=[] if link is None else [link]),
        repeat=repeat,
        agent=target if agents.agent is not None else None,
        default=target,
        keep_going=keep_going,
    )
    with suite:
        try:
            await suite.play_in_labs()
        finally:
            if junit is not None:
                write_junit(junit, suite.results)
        result = suite.result()
    _tell(result)
    await send_traces(result.run)
    if junit is not None:
        tell(f"wrote {junit}")
    write_json(options.json_path, result.to_json())
    return 0 if result.passed else 1


def _tell(result: SuiteResult) -> None:
    from rich.table import Table

    table = Table("scenario", "passed", "pass^1 (95 %)", "pass^k (95 %)", "outcome")
    for each in result.scenarios:
        rate = each.rate
        low, high = rate.interval
        low_k, high_k = rate.pass_k_interval
        table.add_row(
            each.file.scenario.name,
            f"{rate.passed} of {each.repeat}",
            f"{rate.share:.2f} ({low:.2f} to {high:.2f})",
            f"k={each.repeat}: {rate.pass_k:.2f} ({low_k:.2f} to {high_k:.2f})",
            _outcome(each),
        )
    console().print(table)
    for each in result.scenarios:
        for attempt in each.attempts:
            for line in attempt.words():
                tell(line)
            for notice in attempt.notices:
                tell(f"notice: {each.file.scenario.name}: {notice}")
    tell(f"run: {result.run_path}")


def _outcome(result: ScenarioResult) -> str:
    outcomes = [each.outcome for each in result.attempts if not each.passed]
    if not outcomes:
        return "passed"
    words = ", ".join(dict.fromkeys(outcomes))
    made = len(result.attempts)
    return words if made == result.repeat else f"{words}; stopped after call {made}"
