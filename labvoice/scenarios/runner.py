"""Plays a scenario over a call, and reports the expectations that failed."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from labvoice.bench.base import INFRASTRUCTURE_ERRORS, outcome_of
from labvoice.bench.facts import words_of
from labvoice.caller.call import Call
from labvoice.caller.interruption import PAUSE_S
from labvoice.caller.turns import Turn, word_error_rate
from labvoice.concurrency import poll
from labvoice.errors import AgentLostError, LabvoiceError, ModelError, NoReplyError
from labvoice.protocol.vocabulary import YIELD_WINDOW_S
from labvoice.scenarios.checks import (
    CallFigures,
    Handoff,
    Mismatch,
    Observed,
    ToolCall,
    check_call,
    check_step,
    handoffs,
    tool_calls,
)
from labvoice.scenarios.file import ScenarioFile
from labvoice.scenarios.hooks import Hook, load_hook, run_hook
from labvoice.scenarios.language_model import LanguageModel, judge, next_line
from labvoice.scenarios.model import HANG_UP, Expect, Persona, Play, Say, Scenario, Silence
from labvoice.scenarios.voice import Caller, prepare_caller
from labvoice.settings import Settings

_REPLY_TIMEOUT_S: Final = 15.0
_SLACK_S: Final = 3.0
"""How much longer than its bound something is waited for, to tell late from never."""
_TEXT_TIMEOUT_S: Final = 3.0
_DECIDED_S: Final = PAUSE_S + 0.1
"""After such a silence the agent has ended what it was saying."""
_POLL_S: Final = 0.05
FAILED: Final = "assertion_failed"


@dataclass(frozen=True)
class Failure:
    """What did not hold of a call.

    Attributes:
        outcome: One of the vocabulary's outcomes; `error` where the instrument failed.
        step: The step's number, from 0; None of the whole call.
        where: Its place, `file:line`.
        expectation: As the scenario has it, such as `reply: within 1.5 s`.
        heard: The agent's words in that step.
        at_s: Where to listen, in monotonic seconds; None if unknown.
        turn: The turn's number; None before the first.
        judged_by: The language model that judged it; empty if none did.
    """

    outcome: str
    step: int | None
    where: str
    expectation: str
    observed: str
    heard: str = ""
    at_s: float | None = None
    turn: int | None = None
    judged_by: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the machine-readable result, without the instant."""
        return {name: each for name, each in vars(self).items() if name != "at_s"}


class CallView:
    """What is known of a call's agent."""

    call: Call

    @property
    def greeting(self) -> str:
        """The agent's greeting."""
        return self.call.greeting

    @property
    def turns(self) -> list[Turn]:
        """The call's turns."""
        return self.call.turns

    @property
    def tools(self) -> list[ToolCall]:
        """The tools that the agent has called; none of an agent that hosts no session events."""
        return tool_calls(self.call.session_events)

    @property
    def handoffs(self) -> list[Handoff]:
        """The agent's handoffs; likewise."""
        return handoffs(self.call.session_events)


@dataclass
class CallResult(CallView):
    """A call of a scenario; the argument of a hook.

    Attributes:
        failures: What did not hold, in the order of the steps.
        judged_by: Name of the language model that has judged it; empty if none has.
    """

    scenario: Scenario
    call: Call
    failures: list[Failure] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    judged_by: str = ""

    @property
    def outcome(self) -> str:
        """`ok`, or the outcome of the first failure; `error` only where no other is."""
        outcomes = [failure.outcome for failure in self.failures]
        return next((each for each in outcomes if each != "error"), (outcomes or ["ok"])[0])

    @property
    def conversation(self) -> list[tuple[str, str]]:
        """Who said what, in order: `caller`, `agent`, and `tool` for what the agent called."""
        found: list[tuple[str, str]] = [("agent", self.greeting)] if self.greeting else []
        tools = self.tools
        for turn in self.turns:
            start_s, end_s = _span(self.turns, turn.number)
            found.append(("caller", turn.said or "(a sound)"))
            found += [
                ("tool", f"{tool} returned {tool.output!r}")
                for tool in tools
                if start_s <= tool.at_s < end_s
            ]
            if turn.reply:
                found.append(("agent", turn.reply))
        return found


def _span(turns: Sequence[Turn], number: int) -> tuple[float, float]:
    """Returns when a turn begins and when the next one does, in monotonic seconds."""
    start_s = turns[number].marks.get("user_speech_start", 0.0) if number >= 0 else 0.0
    after = turns[number + 1].marks if number + 1 < len(turns) else {}
    return start_s, after.get("user_speech_start", float("inf"))


@dataclass(frozen=True)
class Prepared:
    """A scenario that is ready to be played.

    Attributes:
        caller: What its caller says.
        hook: Judges the final state; None if there is none.
        judge: The language model that judges it; None if none does.
        persona: The language model that plays the caller; None if none does.
    """

    file: ScenarioFile
    caller: Caller
    hook: Hook | None
    judge: LanguageModel | None = None
    persona: LanguageModel | None = None


def prepare(
    file: ScenarioFile, settings: Settings, progress: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Checks and prepares everything that a scenario needs; blocks.

    Raises:
        ScenarioError: A file, a speaker or a function that it names is not there.
        UsageError: It needs a language model that is not configured.
        WeightsError: The caller's voice could not be obtained.
    """
    hook = load_hook(file)
    scenario, judging, playing = file.scenario, None, None
    if scenario.expect.judge or any(isinstance(s, Expect) and s.judge for s in scenario.steps):
        judging = LanguageModel.of(
            settings.judge, settings.judge_key, "LABVOICE_JUDGE", f"`judge` in {scenario.name!r}"
        )
    if any(isinstance(step, Persona) for step in scenario.steps):
        playing = LanguageModel.of(
            settings.persona,
            settings.persona_key,
            "LABVOICE_PERSONA",
            f"`persona` in {scenario.name!r}",
        )
    return Prepared(file, prepare_caller(file, settings, progress), hook, judging, playing)


class _StopError(Exception):
    """The call cannot go on; its failure is noted."""


class Player:
    """Plays one scenario over one call that is not connected yet."""

    def __init__(self, prepared: Prepared, call: Call) -> None:
        self._prepared, self._call = prepared, call
        self._file = prepared.file
        self.result = CallResult(prepared.file.scenario, call)
        self.result.notices += prepared.file.notices
        self._step: int | None = None
        self._pending: list[tuple[int, Expect, int]] = []
        self._due = False  # the last turn's reply was not heard yet
        self._sound = False  # the last turn was a sound that asks for no answer
        self._left_s: float | None = None

    async def converse(self) -> None:
        """Connects and plays the steps; what fails is in :attr:`result`."""
        caller = self._prepared.caller
        self._call.sound_like(caller.conditions, caller.background, ready=True)
        try:
            await self._call.connect()
            await self._steps()
            if not self._call.agent_identity and not self._may_leave:
                raise AgentLostError("the agent left the room before the caller hung up")
        except _StopError:
            pass
        except (LabvoiceError, *INFRASTRUCTURE_ERRORS) as error:
            self._fail(outcome_of(error), "the call goes on", words_of(error))

    async def conclude(self) -> None:
        """Checks what must hold of the whole call, which has ended."""
        self._step = None
        scenario = self._file.scenario
        for mismatch in check_call(scenario.expect, self._figures()):
            self._note(None, mismatch, len(self._call.turns) - 1)
        if self._prepared.hook is not None:
            words = f"final: {scenario.expect.final}"
            try:
                why = await run_hook(self._prepared.hook, self.result)
            except LabvoiceError as error:
                self._fail("error", words, error.observed)
            else:
                if why:
                    self._fail(FAILED, words, why)
        if scenario.expect.judge:
            await self._judge(scenario.expect.judge, None, len(self._call.turns) - 1)

    # -- the steps ----------------------------------------------------------------------------

    async def _steps(self) -> None:
        steps = self._file.scenario.steps
        actions = [step for step in steps if not isinstance(step, Expect)]
        greeting = next(
            (s.greeting for s in steps if isinstance(s, Expect) and s.greeting is not None), None
        )
        if not actions or not isinstance(actions[0], Say | Play) or not actions[0].interrupt:
            await self._hear_greeting(greeting)
        for number, step in enumerate(steps):
            self._step = number
            if isinstance(step, Expect):
                self._pending.append((number, step, len(self._call.turns) - 1))
            elif isinstance(step, Say | Play):
                await self._speak(step)
            elif isinstance(step, Silence):
                await self._settle()
                await asyncio.sleep(step.silence)
            elif isinstance(step, Persona):
                await self._settle()
                await self._improvise(step)
            elif step == HANG_UP:
                await self._settle(leaves=True)
        await self._settle()

    async def _hear_greeting(self, bound_s: float | None) -> None:
        call = self._call
        if bound_s is not None or call.greets:
            call.greets = None  # find out, and wait for it: it is expected, or may be missing
        await call.hear_greeting(max(_REPLY_TIMEOUT_S, (bound_s or 0) + _SLACK_S))
        if call.greets and call.session_events:
            await poll(lambda: bool(call.greeting), _TEXT_TIMEOUT_S, _POLL_S)

    async def _speak(self, step: Say | Play) -> None:
        assert self._step is not None
        utterance = self._prepared.caller.sounds[self._step]
        if step.interrupt is None:
            await self._settle()
            await self._call.hear_end()
            await self._call.say(utterance)
        else:
            await self._call.say(utterance, at=step.interrupt.after)
        self._due, self._sound = True, isinstance(step, Play) and not step.text

    async def _improvise(self, step: Persona) -> None:
        model = self._prepared.persona
        assert model is not None
        self.result.notices.append(f"the caller was played by {model}")
        for _ in range(step.turns):
            words, over = await next_line(model, step.persona, self.result.conversation)
            if words:
                utterance = await asyncio.to_thread(self._prepared.caller.speak, words)
                await self._call.hear_end()
                await self._call.say(utterance)
                self._due, self._sound = True, False
                await self._settle(leaves=over)
            if over:
                return
        self.result.notices.append(f"the caller did not hang up within {step.turns} turns")

    async def _settle(self, *, leaves: bool = False) -> None:
        """Hears what is due, and checks what is expected of it.

        Args:
            leaves: Whether the caller hangs up next, and waits for no reply of which nothing is
                expected.
        """
        pending, self._pending = self._pending, []
        silent: NoReplyError | None = None
        try:
            await self._hear(pending, leaves)
        except NoReplyError as error:
            silent = error
        finally:
            for number, expect, turn in pending:
                if silent is not None and turn == len(self._call.turns) - 1:
                    expect = Expect(yields=expect.yields)  # the rest follows from the silence
                for mismatch in check_step(expect, self._observed(turn)):
                    self._note(number, mismatch, turn)
        if silent is not None:
            step = next((number for number, _, _ in pending), self._step)
            self._fail(outcome_of(silent), "the agent answers", silent.observed, step=step)
            raise _StopError
        for number, expect, turn in pending:
            if expect.judge:
                await self._judge(expect.judge, number, turn)

    async def _judge(self, statement: str, step: int | None, turn: int) -> None:
        model = self._prepared.judge
        assert model is not None
        place: dict[str, Any] = {"step": step, "turn": turn, "judged_by": model.name}
        try:
            verdict = await judge(model, statement, self.result.conversation)
        except ModelError as error:  # the instrument's failure, never the agent's
            self._fail("error", f"judge: {statement}", error.observed, **place)
        else:
            self.result.judged_by = model.name
            if not verdict.passed:
                self._fail(FAILED, f"judge: {statement}", verdict.reason, **place)

    async def _hear(self, pending: Sequence[tuple[int, Expect, int]], leaves: bool) -> None:
        call = self._call
        due, self._due = self._due, False
        last = len(call.turns) - 1
        of_last = [expect for _, expect, turn in pending if turn == last]
        gone_s = max((each.leaves for each in of_last if each.leaves is not None), default=None)
        if gone_s is not None:
            if await poll(lambda: not call.agent_identity, gone_s + _SLACK_S, _POLL_S):
                self._left_s = time.monotonic()
        elif due and self._sound:
            await call.hear_end()  # what asks for nothing gets no answer
            await asyncio.sleep(_DECIDED_S)
        elif due and not (
            leaves  # and at most how the agent yields is expected
            and all(dataclasses.replace(each, yields=None) == Expect() for each in of_last)
        ):
            bound_s = max((each.reply or 0.0 for each in of_last), default=0.0)
            await call.hear(max(_REPLY_TIMEOUT_S, bound_s + _SLACK_S))
        elif due and of_last:
            await asyncio.sleep(YIELD_WINDOW_S)
            await call.hear_end()
            await asyncio.sleep(_DECIDED_S)

    @property
    def _may_leave(self) -> bool:
        steps = self._file.scenario.steps
        return any(isinstance(step, Expect) and step.leaves is not None for step in steps)

    # -- what was observed ----------------------------------------------------------------------

    def _observed(self, number: int) -> Observed:
        call = self._call
        marks, turns = call.marks, call.turns
        start_s, end_s = _span(turns, number)
        told = bool(call.session_events)
        facts: dict[str, Any] = {
            "tools": [t for t in self.result.tools if start_s <= t.at_s < end_s] if told else None,
            "handoffs": [h.agent for h in self.result.handoffs if start_s <= h.at_s < end_s]
            if told
            else None,
        }
        if "greeting_heard" in marks:
            facts["greeting_s"] = marks["greeting_heard"] - marks["click"]
        if number < 0:
            return Observed(heard=call.greeting, **facts)
        turn = turns[number]
        spoken_over = None
        if turn.over_agent and "user_speech_end" in turn.marks:
            spoken_over = call.interruption(turn)
        return Observed(
            reply_s=turn.voice_to_voice_s,
            early="reply_heard" in turn.marks and turn.voice_to_voice_s is None,
            heard=turn.reply or self._gone_on(turn),
            over_agent=turn.over_agent,
            yield_s=None if spoken_over is None else spoken_over.yield_latency_s,
            understood=turn.transcript,
            word_error_rate=turn.word_error_rate,
            left_s=None
            if self._left_s is None
            else self._left_s - turn.marks.get("user_speech_end", self._left_s),
            **facts,
        )

    def _gone_on(self, turn: Turn) -> str:
        """Returns the agent's speech during a sound that needs no reply."""
        spoken_over = turn.over_agent and not turn.user_messages and turn.number > 0
        return self._call.turns[turn.number - 1].reply if spoken_over else ""

    def _figures(self) -> CallFigures:
        turns = self._call.turns
        told = [turn for turn in turns if turn.user_messages]
        known = [turn for turn in told if turn.word_error_rate is not None]
        return CallFigures(
            split=sum(turn.user_messages > 1 for turn in told) if told else None,
            latencies_s=[
                turn.voice_to_voice_s for turn in turns if turn.voice_to_voice_s is not None
            ],
            word_error_rate=word_error_rate(
                " ".join(turn.said for turn in known), " ".join(turn.transcript for turn in known)
            )
            if known
            else None,
            said=" ".join([self._call.greeting, *(turn.reply for turn in turns)]),
        )

    # -- what failed ----------------------------------------------------------------------------

    def _note(self, step: int | None, mismatch: Mismatch, turn: int) -> None:
        self._fail(FAILED, mismatch.expectation, mismatch.observed, step=step, turn=turn)

    def _fail(
        self,
        outcome: str,
        expectation: str,
        observed: str,
        *,
        step: int | None = None,
        turn: int | None = None,
        judged_by: str = "",
    ) -> None:
        turns = self._call.turns
        turn = len(turns) - 1 if turn is None else turn
        step = self._step if step is None else step
        marks = self._call.marks
        at_s = (
            turns[turn].marks.get("user_speech_start")
            if turn >= 0
            else marks.get("agent_listening", marks.get("click"))
        )
        self.result.failures.append(
            Failure(
                outcome,
                step,
                self._file.where(step),
                expectation,
                observed,
                turns[turn].reply if turn >= 0 else self._call.greeting,
                at_s,
                turn if turn >= 0 else None,
                judged_by,
            )
        )
