"""What was observed of a call is held against what a scenario expects."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from labvoice.bench.base import RunOptions
from labvoice.scenarios.checks import (
    CallFigures,
    Observed,
    ToolCall,
    check_call,
    check_step,
    handoffs,
    similarity,
    tool_calls,
)
from labvoice.scenarios.file import ScenarioFile, load
from labvoice.scenarios.hooks import HookError, load_hook, run_hook
from labvoice.scenarios.junit import write_junit
from labvoice.scenarios.lines import ScenarioError
from labvoice.scenarios.model import Expect, ExpectCall, Latency, Like, Say, Scenario, Tool
from labvoice.scenarios.passing import PassRate
from labvoice.scenarios.runner import Failure
from labvoice.scenarios.suite import Attempt, ScenarioResult, Suite
from labvoice.settings import load_settings

FOUND = ToolCall("find", {"user": "Ann Lee", "n": 3}, "Monday", False, 1.0)


@pytest.mark.parametrize(
    ("expect", "seen", "observed"),
    [
        (Expect(greeting=2), Observed(greeting_s=1.9), ""),
        (Expect(greeting=2), Observed(greeting_s=2.1), "it took 2.10 s"),
        (Expect(greeting=2), Observed(), "no greeting was heard"),
        (Expect(reply=1), Observed(reply_s=1.0), ""),
        (Expect(reply=1), Observed(reply_s=1.5), "it took 1.50 s"),
        (Expect(reply=1), Observed(), "no reply was heard"),
        (Expect(reply=1), Observed(early=True), "before the caller had finished"),
        (Expect(heard="which day|when"), Observed(heard="Which  day? WHEN?"), ""),
        (Expect(heard="what's"), Observed(heard="What’s your name?"), ""),
        (Expect(heard="day"), Observed(heard="hello"), "does not match"),
        (Expect(heard=Like("it is moved")), Observed(heard="It is moved!"), ""),
        (Expect(heard=Like("it is moved")), Observed(heard="no"), "the similarity is 0.00"),
        (Expect(not_heard="sorry"), Observed(heard="I am Sorry"), "'Sorry' was heard"),
        (Expect(not_heard="sorry"), Observed(heard="fine"), ""),
        (Expect(yields=1), Observed(over_agent=True, yield_s=0.5), ""),
        (Expect(yields=1), Observed(over_agent=True, yield_s=1.5), "it took 1.50 s"),
        (Expect(yields=1), Observed(over_agent=True), "it went on"),
        (Expect(yields=1), Observed(), "the agent had ended"),
        (Expect(yields="never"), Observed(over_agent=True), ""),
        (Expect(yields="never"), Observed(over_agent=True, yield_s=0.4), "ended after 0.40 s"),
        (Expect(yields="never"), Observed(over_agent=True, yield_s=4.0), ""),
        (Expect(word_error_rate=0.1), Observed(word_error_rate=0.0), ""),
        (Expect(word_error_rate=0.1), Observed(word_error_rate=0.1, understood="a"), "'a'"),
        (Expect(word_error_rate=0.1), Observed(), "not known"),
        (Expect(tool=[Tool("find")]), Observed(tools=[FOUND]), ""),
        (Expect(tool=[Tool("find", {"user": "*", "n": 3})]), Observed(tools=[FOUND]), ""),
        (Expect(tool=[Tool("find", {"user": "ann.*"})]), Observed(tools=[FOUND]), ""),
        (Expect(tool=[Tool("find", {"user": "ann"})]), Observed(tools=[FOUND]), "Ann Lee"),
        (Expect(tool=[Tool("find", {"n": 4})]), Observed(tools=[FOUND]), "n=3"),
        (Expect(tool=[Tool("find", {"x": "*"})]), Observed(tools=[FOUND]), "called: find"),
        (Expect(tool=[Tool("move")]), Observed(tools=[]), "called: nothing"),
        (Expect(tool=[Tool("move")]), Observed(), "hosts no session events"),
        (Expect(handoff="bill"), Observed(handoffs=["Billing"]), ""),
        (Expect(handoff="bill"), Observed(handoffs=[]), "handed over to: nothing"),
        (Expect(handoff="bill"), Observed(), "hosts no session events"),
        (Expect(leaves=5), Observed(left_s=1.0), ""),
        (Expect(leaves=5), Observed(), "still in the room"),
    ],
)
def test_a_step_is_held_against_what_was_observed(
    expect: Expect, seen: Observed, observed: str
) -> None:
    """Each expectation holds or says what was observed instead."""
    found = check_step(expect, seen)
    assert len(found) == bool(observed)
    assert observed in " ".join(each.observed for each in found)


@pytest.mark.parametrize(
    ("expect", "seen", "observed"),
    [
        (ExpectCall(turns_split=0), CallFigures(split=0), ""),
        (ExpectCall(turns_split=0), CallFigures(split=2), "2 turns were split"),
        (ExpectCall(turns_split=0), CallFigures(), "does not tell"),
        (ExpectCall(voice_to_voice=Latency(p50=2)), CallFigures(latencies_s=[1, 1, 9]), ""),
        (ExpectCall(voice_to_voice=Latency(p95=2)), CallFigures(latencies_s=[1, 1, 9]), "9.00 s"),
        (ExpectCall(voice_to_voice=Latency(p95=2)), CallFigures(latencies_s=[1] * 39 + [9]), ""),
        (ExpectCall(voice_to_voice=Latency(max=2)), CallFigures(latencies_s=[1] * 39 + [9]), "9"),
        (ExpectCall(voice_to_voice=Latency(max=2)), CallFigures(), "no turn has a latency"),
        (ExpectCall(not_heard="sorry"), CallFigures(said="sorry"), "was heard"),
        (ExpectCall(word_error_rate=0.2), CallFigures(word_error_rate=0.3), "it is 0.30"),
    ],
)
def test_a_call_is_held_against_its_figures(
    expect: ExpectCall, seen: CallFigures, observed: str
) -> None:
    """The expectations of a whole call, likewise."""
    found = list(check_call(expect, seen))
    assert len(found) == bool(observed)
    assert observed in " ".join(each.observed for each in found)


def test_tools_and_handoffs_are_read_from_the_session_s_events() -> None:
    """A call is joined with its output; the first agent of a session is no handoff."""
    events: list[dict[str, Any]] = [
        {
            "event": "conversation_item_added",
            "heard_s": 1.0,
            "item": {"agent_handoff": {"new_agent_id": "clerk"}},
        },
        {
            "event": "function_tools_executed",
            "heard_s": 2.0,
            "function_calls": [
                {"name": "a", "arguments": '{"x": 1}', "call_id": "1"},
                {"name": "b", "arguments": "no json", "call_id": "2"},
            ],
            "function_call_outputs": [
                {"call_id": "2", "output": "boom", "is_error": True},
                {"call_id": "1", "output": "fine"},
            ],
        },
        {
            "event": "conversation_item_added",
            "heard_s": 3.0,
            "item": {"agent_handoff": {"old_agent_id": "clerk", "new_agent_id": "billing"}},
        },
    ]
    one, two = tool_calls(events)
    assert (one.name, one.arguments, one.output, one.failed) == ("a", {"x": 1}, "fine", False)
    assert (two.name, two.output, two.failed) == ("b", "boom", True)
    assert [(each.agent, each.at_s) for each in handoffs(events)] == [("billing", 3.0)]


def test_similarity_is_that_of_the_words() -> None:
    """Case and punctuation do not count, the order of the words does."""
    assert similarity("It IS moved.", "it is moved") == 1
    assert similarity("moved it is", "it is moved") < 1
    assert similarity("", "it") == 0


@pytest.mark.parametrize(
    ("passed", "calls", "k", "low", "high", "pass_k"),
    [
        # Clopper and Pearson's limits as tables have them.
        (10, 10, 10, 0.6915, 1.0, 1.0),
        (9, 10, 10, 0.5550, 0.9975, 0.0),
        (9, 10, 2, 0.5550, 0.9975, 0.8),
        (0, 10, 10, 0.0, 0.3085, 0.0),
        (0, 1, 10, 0.0, 0.9750, 0.0),
    ],
)
def test_pass_k_has_an_exact_interval(
    passed: int, calls: int, k: int, low: float, high: float, pass_k: float
) -> None:
    """The share's interval is exact; that of pass^k is its power."""
    rate = PassRate(passed, calls, k)
    assert rate.interval == pytest.approx((low, high), abs=1e-4)
    assert rate.pass_k == pytest.approx(pass_k)
    assert rate.pass_k_interval == pytest.approx((low**k, high**k), abs=1e-3)


def test_nothing_is_known_of_no_calls() -> None:
    """Without a call there is no share."""
    assert math.isnan(PassRate(0, 0, 3).share)
    assert PassRate(0, 0, 3).interval == (0, 1)


def hooked(folder: Path, text: str, function: str = "check") -> ScenarioFile:
    """A scenario with a hook of this text."""
    (folder / "hooks.py").write_text(text, encoding="utf-8")
    scenario = Scenario(
        name="x", steps=[Say("Hello.")], expect=ExpectCall(final=f"hooks.py::{function}")
    )
    return ScenarioFile(scenario, folder / "x.scenario.yaml")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return None", ""),
        ("return True", ""),
        ("return False", "it returned False"),
        ("assert result == 2, 'no two'", "no two"),
        ("assert result == 2", "hooks.py:2"),
    ],
)
async def test_a_hook_judges_the_final_state(tmp_path: Path, body: str, why: str) -> None:
    """It fails a call by an assertion or by returning False, sync or async."""
    for kind in ("def", "async def"):
        hook = load_hook(hooked(tmp_path, f"{kind} check(result):\n    {body}\n"))
        assert hook is not None
        answer = await run_hook(hook, 1)
        assert why in answer
        assert bool(answer) is bool(why)


async def test_a_hook_that_raises_is_an_error_with_its_line(tmp_path: Path) -> None:
    """What is wrong with the hook is not the agent's failure."""
    for body, words in (("return result['x']", "TypeError"), ("raise SystemExit(1)", "SystemExit")):
        for kind in ("def", "async def"):
            hook = load_hook(hooked(tmp_path, f"{kind} check(result):\n    {body}\n"))
            assert hook is not None
            with pytest.raises(HookError, match=rf"hooks\.py:2: {words}"):
                await run_hook(hook, 1)


async def test_a_hook_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """It has its time and no more."""
    text = "import asyncio\nasync def check(result):\n    await asyncio.Event().wait()\n"
    hook = load_hook(hooked(tmp_path, text))
    assert hook is not None
    with pytest.raises(HookError, match=r"did not end within 0\.01 s"):
        await run_hook(hook, 1, timeout_s=0.01)


@pytest.mark.parametrize(
    ("text", "function", "words"),
    [
        ("def check(", "check", r"hooks\.py:1: SyntaxError"),
        ("import nothing_of_that_name\n", "check", r"hooks\.py:1: ModuleNotFoundError"),
        ("raise SystemExit(1)\n", "check", r"hooks\.py:1: SystemExit"),
        ("x = 1\n", "check", "has no function 'check'"),
    ],
)
def test_a_hook_that_cannot_be_loaded_is_named(
    tmp_path: Path, text: str, function: str, words: str
) -> None:
    """Before anything is started, with the file and the line."""
    with pytest.raises(ScenarioError, match=words):
        load_hook(hooked(tmp_path, text, function))


@pytest.mark.parametrize(
    ("written", "line", "words"),
    [
        ("expect: {final: 'missing.py::check'}", 6, r"there is no file 'missing\.py'"),
        ("expect:\n  final: hooks.py::nothing", 7, "final: hooks.py has no function 'nothing'"),
        ("voice: {noise: {kind: missing.wav, snr_db: 10}}", 6, "missing.wav"),
        ("voice:\n  speaker: nobody", 7, "nobody"),
        ("", 4, r"there is no file 'missing\.wav'"),
        ("agent: missing.py", 6, "agent: there is no file missing.py"),
        ("voice: {speed: 1}\nlink: 5g", 7, "link: .*5g"),
    ],
)
def test_what_a_scenario_names_and_is_not_there_is_told_with_its_line(
    tmp_path: Path, written: str, line: int, words: str
) -> None:
    """A hook, a noise, a speaker, a recording, an agent, a link: where the file names it."""
    first = "play: missing.wav" if not written else "silence: 1 s"
    (tmp_path / "hooks.py").write_text("x = 1\n", encoding="utf-8")
    path = tmp_path / "a.scenario.yaml"
    steps = f"name: x\n\nsteps:\n  - {first}\n  - hang up\n"
    path.write_text(steps + written, encoding="utf-8")
    with pytest.raises(ScenarioError) as refused:
        Suite([load(path)], load_settings(), RunOptions(tmp_path / "run.jsonl"))
    assert str(refused.value).startswith(f"{path}:{line}: ")
    assert re.search(words, str(refused.value))


def test_junit_has_a_case_for_every_call(tmp_path: Path) -> None:
    """Failures and errors are told apart; a call that was not made is skipped."""
    file = ScenarioFile(Scenario(name="x", steps=[Say("Hello.")]), Path("x.yaml"), (3,))
    failure = Failure(
        "assertion_failed", 0, "x.yaml:3", "reply: within 1 s", "late \x00", "Hi.", 1.0, 0
    )
    broken = Failure("error", None, "x.yaml", "judge: polite", "nonsense")
    results = [
        ScenarioResult(
            file,
            3,
            [
                Attempt(0, "ok", took_s=2.0),
                Attempt(1, "assertion_failed", [failure], Path("0001.ogg"), [1.5]),
            ],
        ),
        ScenarioResult(file, 1, [Attempt(2, "error", [broken], None, [None])]),
    ]
    write_junit(tmp_path / "out" / "junit.xml", results)
    root = ET.parse(tmp_path / "out" / "junit.xml").getroot()  # noqa: S314
    one, two = root.findall("testsuite")
    assert [one.get(name) for name in ("tests", "failures", "errors", "skipped")] == list("3101")
    assert [two.get(name) for name in ("tests", "failures", "errors", "skipped")] == list("1010")
    text = one.findall("testcase")[1].find("failure")
    assert text is not None
    assert text.text is not None
    for words in ("x.yaml:3", "reply: within 1 s", "heard: Hi.", "0001.ogg at 1.5 s"):
        assert words in text.text
    assert one.findall("testcase")[2].find("skipped") is not None
