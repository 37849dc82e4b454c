"""Scenarios over real calls: what should pass does, and each planted fault is found."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labvoice.bench.base import RunOptions
from labvoice.cli import app
from labvoice.lab import Lab
from labvoice.runs.run import Run
from labvoice.scenarios.junit import write_junit
from labvoice.scenarios.lines import ScenarioError
from labvoice.scenarios.model import ExpectCall, Persona, Scenario, Silence
from labvoice.scenarios.suite import SuiteResult, run_scenarios
from tests.scripted_judge import LINES, ScriptedJudge
from tests.serving import serving
from tests.stack.planted.scenarios import (
    FOUND_BY,
    GREETS,
    MODEL,
    PLANTED,
    RECOVERS,
    STANDS,
    TOOL,
)
from tests.stack.talking import LISTENS

EXAMPLES = Path(__file__).parents[2] / "examples" / "appointments"


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


@LISTENS
async def test_an_agent_without_a_fault_passes(lab: Lab, tmp_path: Path) -> None:
    """Every scenario passes, its call is kept with a recording, and JUnit says so."""
    scenarios = [TOOL, RECOVERS, STANDS]
    result = await play(lab, tmp_path, *scenarios)
    assert result.passed, words(result)
    run = Run.load(result.run_path)
    assert set(run.outcomes["outcome"]) == {"ok"}
    assert len(run.recordings) == len(scenarios)
    assert {each["pass_k"] for each in result.to_json()["scenarios"]} == {1}
    write_junit(tmp_path / "junit.xml", result.scenarios)
    assert not ET.parse(tmp_path / "junit.xml").getroot().findall(".//failure")  # noqa: S314


@LISTENS
async def test_what_the_agent_s_session_reports_is_in_the_run(lab: Lab, tmp_path: Path) -> None:
    """States, words, a tool call with arguments and times, usage, end of turn, a cough's pause."""
    steps = [*TOOL.steps, *STANDS.steps[:2], Silence(4.0)]  # it resumes 2 s after the cough
    scenario = Scenario(name="a tool and a cough", steps=steps, model=MODEL)
    result = await play(lab, tmp_path, scenario, fault="resumes after a cough")
    events: dict[str, list[dict[str, Any]]] = {}
    for event in json.loads(result.run.notes["session_events"].dropna().iloc[0]):
        events.setdefault(event["event"], []).append(event)
    assert {each["new_state"] for each in events["agent_state_changed"]} >= {"AS_SPEAKING"}
    assert {each["new_state"] for each in events["user_state_changed"]} >= {"US_SPEAKING"}
    heard = [each["transcript"] for each in events["user_input_transcribed"] if each["is_final"]]
    assert any("appointment" in words.lower() for words in heard)
    items = [each["item"] for each in events["conversation_item_added"]]
    assert {each["message"]["role"] for each in items if "message" in each} == {"USER", "ASSISTANT"}
    (executed,) = events["function_tools_executed"]
    assert executed["function_calls"][0]["name"] == "find_appointment"
    assert json.loads(executed["function_calls"][0]["arguments"]) == {"user": "Ann"}
    assert executed["function_call_outputs"][0]["output"] == "Monday"
    started, *_, ended = events["tool_execution_updated"]
    assert json.loads(started["started"]["function_call"]["arguments"]) == {"user": "Ann"}
    assert "ended" in ended
    assert 0 < started["agent_wall_s"] <= ended["agent_wall_s"] <= executed["agent_wall_s"]
    usage = events["session_usage_updated"][-1]["usage"]["model_usage"]
    assert {kind for model in usage for kind in model} >= {"llm", "stt", "tts"}
    assert all(0 <= each["probability"] <= 1 for each in events["eot_prediction"])
    assert [each["resumed"] for each in events["agent_false_interruption"]] == [True]


@LISTENS
@pytest.mark.parametrize(
    ("fault", "outcome", "expectation"),
    [
        ("calls the wrong tool", "assertion_failed", "tool: find_appointment(user=*)"),
        ("leaves early", "agent_lost", "the call goes on"),
        ("hangs after an interruption", "no_reply", "the agent answers"),
    ],
)
async def test_a_planted_fault_is_found(
    lab: Lab, tmp_path: Path, fault: str, outcome: str, expectation: str
) -> None:
    """The failure says expectation and where to listen; `benchmarks/planted_faults.py` has all."""
    result = await play(lab, tmp_path, FOUND_BY[fault], fault=fault)
    (attempt,) = result.scenarios[0].attempts
    assert attempt.outcome == outcome, words(result)
    assert expectation in [failure.expectation for failure in attempt.failures]
    assert attempt.recording is not None
    assert attempt.recording.is_file()
    assert attempt.listen_s[0] is not None


@LISTENS
async def test_a_model_plays_the_caller_and_another_judges(
    lab: Lab, tmp_path: Path, judge: ScriptedJudge
) -> None:
    """Both are named in the result; what the judge denies fails, its nonsense is an error."""
    scenarios = [
        Scenario(
            name=statement,
            steps=[Persona("You are Ann, and want to move your appointment.")],
            expect=ExpectCall(judge=statement),
            model=MODEL,
        )
        for statement in ("it is true", "it is false", "it is nonsense")
    ]
    result = await play(lab, tmp_path, *scenarios)
    true, false, nonsense = result.scenarios
    assert true.passed, words(result)
    assert true.attempts[0].judged_by == "scripted"
    assert "the caller was played by the language model scripted" in true.attempts[0].notices
    assert [each.attempts[0].outcome for each in (false, nonsense)] == ["assertion_failed", "error"]
    assert "The agent never said so. (judged by scripted)" in words(result)
    assert "gave no verdict" in words(result)
    said = result.run.notes["said"].dropna()
    assert LINES[0] in set(said)


async def test_the_rest_is_not_called_once_a_scenario_can_no_longer_pass(
    lab: Lab, tmp_path: Path
) -> None:
    """Of three calls the first fails: the others are not made, and pass^3 is 0."""
    result = await play(lab, tmp_path, GREETS, fault="forgets to greet", repeat=3)
    (each,) = result.to_json()["scenarios"]
    assert (each["calls"], each["stopped_early"], each["pass_k"]) == (1, True, 0)
    assert not result.passed


@pytest.mark.smoke
async def test_labvoice_test_judges_the_examples(tmp_path: Path) -> None:
    """The scenarios of the example pass, one that expects something else fails: exit 1, JUnit."""
    wrong = tmp_path / "wrong.scenario.yaml"
    billing = (EXAMPLES / "billing.scenario.yaml").read_text(encoding="utf-8")
    wrong.write_text(
        billing.replace("name: ask", "name: wrong, ask")
        .replace("agent: agent.py", f"agent: {EXAMPLES / 'agent.py'}")
        .replace("heard: billing desk", "heard: swimming pool"),
        encoding="utf-8",
    )
    paths = [*sorted(EXAMPLES.glob("*.scenario.yaml")), wrong]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "labvoice", "test", *map(str, paths)),
        *("--junit", "junit.xml", "--json", "result.json", "--out", "run.jsonl"),
        cwd=tmp_path,
        env={**os.environ, "APPOINTMENTS": str(tmp_path / "appointments.json")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(240):
        output, _ = await process.communicate()
    assert process.returncode == 1, output.decode()
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    passed = {each["name"]: each["passed"] for each in result["scenarios"]}
    assert passed == {
        "change an appointment": True,
        "ask for the bill": True,
        "wrong, ask for the bill": False,
    }, output.decode()
    line = next(each for each in output.decode().splitlines() if f"{wrong}:7: heard" in each)
    assert "swimming pool: the pattern does not match" in line
    assert "at " in output.decode().partition("listen: ")[2]
    suites = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314
    assert [len(each.findall(".//failure")) for each in suites.findall("testsuite")] == [0, 0, 1]


def test_a_scenario_that_cannot_be_meant_starts_nothing(tmp_path: Path) -> None:
    """The file and the line are named, the exit code is that of wrong use."""
    path = tmp_path / "a.scenario.yaml"
    path.write_text("name: x\nsteps:\n  - say: Hello.\n  - expct: {}\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["test", str(path)])
    assert isinstance(done.exception, ScenarioError)
    assert done.exception.exit_code == 2
    assert f"{path}:4: " in done.exception.observed
    assert "starting" not in done.output
