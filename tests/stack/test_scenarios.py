"""Scenarios over real calls: what should pass does, and each planted fault is found."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labvoice.bench.base import RunOptions
from labvoice.lab import Lab
from labvoice.runs.run import Run
from labvoice.scenarios.junit import write_junit
from labvoice.scenarios.model import (
    HANG_UP,
    Expect,
    ModelCall,
    Rule,
    Say,
    Scenario,
    Tool,
)
from labvoice.scenarios.suite import SuiteResult, run_scenarios
from labvoice.targets.target import Target
from tests.scripted_judge import ScriptedJudge
from tests.serving import serving

EXAMPLES = Path(__file__).parents[2] / "examples" / "appointments"
PLANTED = Target.program(Path(__file__).parent / "planted" / "agent.py")
LONG_S = 15.0
"""Bound of what must happen and may take long on a busy machine."""

STORY = (
    "The surgery is open from eight in the morning, and it closes at six in the evening, but "
    "on Wednesdays it is open until eight, and on Saturdays only from nine until noon."
)
MODEL = [
    Rule(user="hours|open", say=STORY),
    Rule(
        user="find|appointment",
        call=[ModelCall("find_appointment", {"user": "Ann"})],
        say="It is on {result}.",
    ),
    Rule(user="stop|other", say="Of course, what else?"),
]
GREETS = Scenario(
    name="greets",
    steps=[Expect(greeting=LONG_S, heard="surgery"), HANG_UP],
    model=MODEL,
)
TOOL = Scenario(
    name="calls the tool",
    steps=[
        Say("Please find my appointment."),
        Expect(reply=LONG_S, heard="Monday", tool=[Tool("find_appointment", {"user": "*"})]),
    ],
    model=MODEL,
)
ANSWERS = Scenario(
    name="answers",
    steps=[Say("What are your opening hours?"), Expect(reply=LONG_S, heard="open from eight")],
    model=MODEL,
)
STAYS = Scenario(
    name="stays",
    steps=[Say("What are your opening hours?"), Say("Please find my appointment.")],
    model=MODEL,
)


@pytest.fixture(scope="module")
async def judge() -> AsyncIterator[ScriptedJudge]:
    """The model that judges, and that plays the caller."""
    running = ScriptedJudge()
    async with serving(running.server.app, running.port):
        yield running


@pytest.fixture(scope="module")
async def lab(judge: ScriptedJudge) -> AsyncIterator[Lab]:
    """A lab whose language model is a script."""
    async with Lab(
        workers=0,
        letta=False,
        supervise=False,
        llm="script",
        judge=f"{judge.base_url}#scripted",
        persona=f"{judge.base_url}#scripted",
    ) as running:
        yield running


async def play(
    lab: Lab, folder: Path, *scenarios: Scenario, fault: str = "", repeat: int = 1
) -> SuiteResult:
    """Plays scenarios over the planted agent with a fault."""
    return await run_scenarios(
        lab,
        scenarios,
        agent=dataclasses.replace(PLANTED, metadata=fault),
        repeat=repeat,
        options=RunOptions(folder / "test.jsonl"),
    )


def words(result: SuiteResult) -> str:
    """What failed, in words."""
    return "\n".join(
        line for each in result.scenarios for attempt in each.attempts for line in attempt.words()
    )


def failed(result: SuiteResult) -> list[str]:
    """The outcomes of the calls that did not pass."""
    return [
        attempt.outcome
        for each in result.scenarios
        for attempt in each.attempts
        if not attempt.passed
    ]


async def test_an_agent_without_a_fault_passes(lab: Lab, tmp_path: Path) -> None:
    """Every scenario passes, its call is kept with a recording, and JUnit says so."""
    result = await play(lab, tmp_path, GREETS, TOOL, ANSWERS, STAYS)
    assert result.passed, words(result)
    run = Run.load(result.run_path)
    assert set(run.outcomes["outcome"]) == {"ok"}
    assert len(run.recordings) == 4
    assert [each["pass_k"] for each in result.to_json()["scenarios"]] == [1, 1, 1, 1]
    write_junit(tmp_path / "junit.xml", result.scenarios)
    assert not ET.parse(tmp_path / "junit.xml").getroot().findall(".//failure")  # noqa: S314


@pytest.mark.parametrize(
    ("fault", "finds", "outcome", "expectation"),
    [
        ("forgets to greet", GREETS, "assertion_failed", "greeting: within 15 s"),
        ("says the wrong thing", ANSWERS, "assertion_failed", "heard: open from eight"),
        ("calls the wrong tool", TOOL, "assertion_failed", "tool: find_appointment(user=*)"),
        ("leaves early", STAYS, "agent_lost", "the call goes on"),
    ],
)
async def test_a_planted_fault_is_found_by_its_scenario_and_by_no_other(
    lab: Lab, tmp_path: Path, fault: str, finds: Scenario, outcome: str, expectation: str
) -> None:
    """The failure says step, expectation, what was observed, and where to listen."""
    other = {"leaves early": GREETS, "forgets to greet": ANSWERS}.get(fault, GREETS)
    result = await play(lab, tmp_path, finds, other, fault=fault)
    found, spared = result.scenarios
    assert spared.passed, words(result)
    (attempt,) = found.attempts
    assert attempt.outcome == outcome, words(result)
    assert attempt.failures[0].expectation == expectation
    assert attempt.recording is not None
    assert attempt.recording.is_file()
    assert attempt.listen_s[0] is not None
