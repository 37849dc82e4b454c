"""Repeated calls of scenarios, recorded as one run."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from labvoice.bench.arms import Arm, with_links
from labvoice.bench.base import RunOptions, call_trial, wait_idle
from labvoice.bench.facts import arm_columns, connection_facts, host_facts
from labvoice.bench.turns import record_turn
from labvoice.errors import UsageError
from labvoice.link.impairment import LinkProfile
from labvoice.runs.run import Run, RunWriter
from labvoice.runs.statistics import finite
from labvoice.scenarios.file import ScenarioFile
from labvoice.scenarios.livekit_file import load_all
from labvoice.scenarios.model import Scenario
from labvoice.scenarios.passing import PassRate
from labvoice.scenarios.runner import CallResult, Failure, Player, Prepared, prepare
from labvoice.settings import Settings
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import BUILT_IN, Target

if TYPE_CHECKING:
    from labvoice.lab import Lab

KIND: Final = "test"
SCRIPTED: Final = "script"
"""The language model, by `LABVOICE_LLM`, that answers by a scenario's script."""


@dataclass(frozen=True)
class Attempt:
    """One call of a scenario.

    Attributes:
        outcome: `ok`, or what went wrong.
        recording: The recording of both sides; None if there is none.
        listen_s: For each failure, the second of the recording where it begins; None if unknown.
        judged_by: Name of the language model that has judged it; empty if none has.
    """

    trial: int
    outcome: str
    failures: Sequence[Failure] = ()
    recording: Path | None = None
    listen_s: Sequence[float | None] = ()
    notices: Sequence[str] = ()
    took_s: float = 0.0
    judged_by: str = ""

    @property
    def passed(self) -> bool:
        """Whether all held."""
        return self.outcome == "ok"

    def words(self) -> list[str]:
        """What failed, in lines: step, expectation, what was heard, where to listen."""
        lines = []
        for failure, listen_s in zip(self.failures, self.listen_s, strict=True):
            lines.append(
                f"{failure.where}: {failure.expectation}: {failure.observed}"
                + (f" (judged by {failure.judged_by})" if failure.judged_by else "")
            )
            if failure.heard:
                lines.append(f"  heard: {failure.heard}")
            if self.recording is not None and listen_s is not None:
                lines.append(f"  listen: {self.recording} at {listen_s:.1f} s")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Returns the machine-readable result."""
        return {
            "trial": self.trial,
            "outcome": self.outcome,
            "failures": [
                {**failure.to_json(), "listen_s": listen_s}
                for failure, listen_s in zip(self.failures, self.listen_s, strict=True)
            ],
            "recording": None if self.recording is None else str(self.recording),
            "notices": list(self.notices),
            "took_s": self.took_s,
            "judged_by": self.judged_by or None,
        }


@dataclass
class ScenarioResult:
    """All calls of one scenario.

    Attributes:
        repeat: How many calls were asked for.
    """

    file: ScenarioFile
    repeat: int
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def rate(self) -> PassRate:
        """How many passed; calls in which the instrument failed count as not passed."""
        return PassRate(sum(each.passed for each in self.attempts), len(self.attempts), self.repeat)

    @property
    def passed(self) -> bool:
        """Whether every call that was asked for was made, and passed."""
        return self.rate.passed == self.repeat

    def to_json(self) -> dict[str, Any]:
        """Returns the machine-readable result."""
        rate = self.rate
        return {
            "name": self.file.scenario.name,
            "path": None if self.file.path is None else str(self.file.path),
            "passed": self.passed,
            "k": self.repeat,
            "calls": rate.calls,
            "calls_passed": rate.passed,
            "pass_1": finite(rate.share),
            "pass_1_ci95": list(rate.interval),
            "pass_k": finite(rate.pass_k),
            "pass_k_ci95": list(rate.pass_k_interval),
            "stopped_early": rate.calls < self.repeat,
            "attempts": [each.to_json() for each in self.attempts],
        }


@dataclass(frozen=True)
class SuiteResult:
    """The result of a suite.

    Attributes:
        scenarios: Each scenario's calls, in the order given.
    """

    scenarios: Sequence[ScenarioResult]
    run: Run
    run_path: Path

    @property
    def passed(self) -> bool:
        """Whether every scenario passed."""
        return all(each.passed for each in self.scenarios)

    def to_json(self) -> dict[str, Any]:
        """Returns the machine-readable result of the run and of each scenario."""
        return {
            **self.run.to_json(),
            "passed": self.passed,
            "scenarios": [each.to_json() for each in self.scenarios],
        }


class Suite:
    """Scenarios, prepared, whose calls become one run; `with Suite(…) as suite:`.

    Args:
        files: The scenarios; their names differ.
        settings: For the callers' voices, and of the labs of :meth:`play_in_labs`.
        options: Of the run; `links` go before the scenarios' own, `warmup` is not used.
        agent: The agent to call in place of the scenarios' own; None: theirs.
        default: The agent of scenarios that name none; None: labvoice's own.
        keep_going: Make every call, though one has failed.

    Attributes:
        results: The result of each scenario so far.

    Raises:
        UsageError: A number is out of range, two scenarios have one name, or an agent cannot be
            meant.
        ScenarioError: A file, a speaker, a link or a hook that a scenario names is not there.
    """

    def __init__(
        self,
        files: Sequence[ScenarioFile],
        settings: Settings,
        options: RunOptions,
        *,
        repeat: int = 1,
        agent: Target | None = None,
        default: Target | None = None,
        keep_going: bool = False,
    ) -> None:
        if repeat < 1:
            raise UsageError("a scenario needs at least one call", "pass `--repeat 1` or more")
        if not files:
            raise UsageError("there is no scenario", "name a file, such as `a.scenario.yaml`")
        names = [file.scenario.name for file in files]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"two scenarios are called {name!r}", "give each its own name")
        self.results = [ScenarioResult(file, repeat) for file in files]
        self._repeat, self._keep_going, self._options = repeat, keep_going, options
        arms = [
            Arm(file.scenario.name, target=_target(file, agent, default), link=_link(file))
            for file in files
        ]
        self._arms = {arm.name: arm for arm in with_links(arms, options.links)}
        self._prepared: dict[str, Prepared] = {
            file.scenario.name: prepare(file, settings, options.progress) for file in files
        }
        self._settings = settings
        self._run: RunWriter | None = None
        self._trials = 0

    async def play_in_labs(self) -> None:
        """Plays all scenarios in a lab that it starts, and those that bring a model in another."""
        for scripted in (False, True):
            chosen = [each for each in self.results if bool(each.file.scenario.model) is scripted]
            if not chosen:
                continue
            targets = [self._arms[each.file.scenario.name].target for each in chosen]
            named = all(target is not None and target.kind == "named" for target in targets)
            async with lab_for(
                self._settings, self._options.progress, scripted=scripted, model=not named
            ) as lab:
                await self.play(lab, chosen)

    async def play(self, lab: Lab, results: Sequence[ScenarioResult] | None = None) -> None:
        """Plays scenarios in a lab, in turn, until each has its calls or can no longer pass.

        Args:
            lab: A running lab; for scenarios with a `model` its language model is
                :data:`SCRIPTED`.
            results: Which of :attr:`results`; all if not given.
        """
        chosen = self.results if results is None else results
        arms = {}
        for each in chosen:
            arm = self._arms[each.file.scenario.name]
            assert arm.target is not None
            agent = await agent_of(lab, arm.target, self._options)
            arms[arm.name] = dataclasses.replace(arm, agent_name=agent)
        if self._run is None:
            self._run = await self._open(lab)
        for _ in range(self._repeat):
            for result in chosen:
                name = result.file.scenario.name
                if self._keep_going or all(each.passed for each in result.attempts):
                    await self._attempt(lab, result, arms[name])

    async def _open(self, lab: Lab) -> RunWriter:
        options = self._options
        table = {}
        for name, arm in self._arms.items():
            table[name] = {**arm_columns(lab.settings, arm), "agent": str(arm.target)}
        config: dict[str, Any] = {"command": options.command, "repeat": self._repeat}
        config["scenarios"] = {
            each.file.scenario.name: str(each.file.path or "") for each in self.results
        }
        facts = await host_facts(lab)
        return RunWriter(options.path(KIND), kind=KIND, config=config, arms=table, host_facts=facts)

    async def _attempt(self, lab: Lab, result: ScenarioResult, arm: Arm) -> None:
        assert self._run is not None
        scenario = result.file.scenario
        run, number, made = self._run, self._trials, len(result.attempts)
        self._trials += 1
        await wait_idle(lab, self._options.progress)
        if scenario.model:
            await lab.model_server.give_script([dataclasses.asdict(r) for r in scenario.model])
        began_s = time.monotonic()
        async with call_trial(lab, run, number, arm, round_number=made) as (this, call):
            player = Player(self._prepared[scenario.name], call)
            await player.converse()
            if call.dispatch is not None:
                this.note(**connection_facts(call))
            await lab.end_call(call)
            await player.conclude()
            if scenario.model:
                player.result.notices += await lab.model_server.unanswered()
            took_s = time.monotonic() - began_s
            outcome = player.result.outcome
            _record(run, number, player.result)
            first = next(iter(player.result.failures), None)
            this.outcome(outcome, detail=first.observed if first else "")
        player.result.notices += filter(None, (this.warning, run.trouble))
        result.attempts.append(_attempt(run.path, number, player.result, took_s))
        last = result.attempts[-1]
        place = f"{scenario.name} {made + 1}/{self._repeat}"
        self._options.progress(f"{place}: {'passed' if last.passed else last.outcome}")
        for line in last.words():
            self._options.progress(f"  {line}")

    def result(self) -> SuiteResult:
        """Closes the run and returns the result.

        Raises:
            UsageError: Nothing was played.
        """
        if self._run is None:
            raise UsageError("nothing was played", "`await suite.play(lab)` first")
        self._run.close()
        return SuiteResult(self.results, Run.load(self._run.path), self._run.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._run is not None:
            self._run.__exit__(kind, error, traceback)


def _target(file: ScenarioFile, agent: Target | None, default: Target | None) -> Target:
    """Returns the agent of a scenario; its script may be relative to the scenario's folder."""
    text = file.scenario.agent
    if agent is not None or text is None:
        return agent or default or Target.own()
    try:
        return target_near(text, None if file.path is None else file.path.parent)
    except UsageError as error:
        raise file.refusal(f"agent: {error.observed}", error.hint, "agent") from None


def _link(file: ScenarioFile) -> LinkProfile | None:
    text = file.scenario.link
    try:
        return None if text is None else LinkProfile.parse(text)
    except UsageError as error:
        raise file.refusal(f"link: {error.observed}", error.hint, "link") from None


def target_near(text: str, folder: Path | None) -> Target:
    """Reads AGENT; a script may be relative to a folder or to the working directory.

    Raises:
        UsageError: It is invalid.
    """
    if folder is not None and text.endswith(".py") and (folder / text).is_file():
        text = str(folder / text)
    return Target.parse(text)


def lab_for(
    settings: Settings, progress: Callable[[str], None], *, scripted: bool, model: bool
) -> Lab:
    """Returns a lab, not started, in which agents are called and none is labvoice's.

    Args:
        scripted: Whether its language model is the scenarios' script.
        model: Whether any agent needs a language model.
    """
    from labvoice.lab import Lab

    # No configured model stands before a script.
    changed = {"llm": SCRIPTED, "upstream_llm": None} if scripted else {}
    return Lab(
        settings=settings.model_copy(update=changed),
        progress=progress,
        workers=0,
        letta=False,
        supervise=False,
        model=model,
    )


async def agent_of(lab: Lab, target: Target, options: RunOptions) -> TargetAgent:
    """Returns a target's agent in a lab, where it is started once; each call has its metadata."""
    started = target.as_started
    agent = next((each for each in lab.targets if each.target.as_started == started), None)
    if agent is None:
        foreign = any(each.target.kind not in BUILT_IN for each in lab.targets)
        agent = await lab.add_target(target, apart=foreign)
        options.progress(f"agent: {agent}")
    return dataclasses.replace(agent, target=target)


def _record(run: RunWriter, number: int, result: CallResult) -> None:
    """Records a call's turns and failures."""
    failed = {failure.turn: failure for failure in reversed(result.failures)}
    for turn in result.turns:
        record_turn(run, number, turn)
        failure = failed.get(turn.number)
        outcome = failure.outcome if failure else turn.outcome
        if not failure and outcome in ("interrupted", "no_reply"):
            outcome = "ok"  # as the scenario has it
        detail = f"{failure.expectation}: {failure.observed}" if failure else ""
        run.outcome(number, outcome, turn=turn.number, detail=detail)
    words = json.dumps([failure.to_json() for failure in result.failures])
    run.note(number, scenario=result.scenario.name, failures=words)


def _attempt(path: Path, number: int, result: CallResult, took_s: float) -> Attempt:
    call = result.call
    recording = call.recorder.recording()
    found = sorted(path.with_suffix("").glob(f"{number:04}.*"))
    place = found[0] if found else None
    start_s = None if recording is None else recording.start_s
    listen_s = [
        None if start_s is None or each.at_s is None else max(0.0, each.at_s - start_s)
        for each in result.failures
    ]
    notices = [*call.notices, *result.notices]
    return Attempt(
        number,
        result.outcome,
        result.failures,
        place,
        listen_s,
        notices,
        took_s,
        result.judged_by,
    )


async def run_scenarios(
    lab: Lab,
    scenarios: Sequence[Scenario | ScenarioFile | Path | str],
    *,
    repeat: int = 1,
    agent: Target | None = None,
    keep_going: bool = False,
    options: RunOptions | None = None,
) -> SuiteResult:
    """Plays scenarios in a running lab, and records them as a run.

    Args:
        lab: A running lab; for scenarios with a `model` it is made with `llm="script"`.
        scenarios: Scenarios, or paths of their files.
        repeat: How many calls of each; the next one of a scenario is not made once it has failed.
        agent: As of :class:`Suite`.
        keep_going: Make every call, though one has failed.

    Raises:
        UsageError: As :class:`Suite`.
        ScenarioError: As :func:`labvoice.scenarios.file.load`.
    """
    files = [file for each in scenarios for file in _files(each)]
    suite = await asyncio.to_thread(
        Suite,
        files,
        lab.settings,
        options or RunOptions(),
        repeat=repeat,
        agent=agent,
        keep_going=keep_going,
    )
    with suite:
        await suite.play(lab)
        return suite.result()


def _files(given: Scenario | ScenarioFile | Path | str) -> list[ScenarioFile]:
    if isinstance(given, Scenario):
        return [ScenarioFile(given)]
    return [given] if isinstance(given, ScenarioFile) else load_all(given)
