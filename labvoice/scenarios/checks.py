"""Compares observations of a call with the expectations of a scenario; makes no calls."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from labvoice.protocol.vocabulary import STAND_WINDOW_S
from labvoice.runs.statistics import percentile
from labvoice.scenarios.model import Expect, ExpectCall, Heard, Latency, Like, Tool

_FEW_TURNS: Final = 20
"""Below this number of turns the 95th percentile is the longest one."""
NOTHING: Final = "nothing"


@dataclass(frozen=True)
class ToolCall:
    """A function tool that the agent has called.

    Attributes:
        output: What it returned, as text.
        failed: Whether it raised an error.
        at_s: When the caller got to know it, in monotonic seconds.
    """

    name: str
    arguments: Mapping[str, Any]
    output: str
    failed: bool
    at_s: float

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({words})"


@dataclass(frozen=True)
class Handoff:
    """A handoff from one agent of a session to another.

    Attributes:
        agent: Id of the new one.
        at_s: When the caller got to know it, in monotonic seconds.
    """

    agent: str
    at_s: float


@dataclass(frozen=True)
class Mismatch:
    """An expectation that does not hold.

    Attributes:
        expectation: As the scenario has it, such as `reply: within 1.5 s`.
    """

    expectation: str
    observed: str


@dataclass(frozen=True)
class Observed:
    """What was observed of the agent after the caller's last action; times in seconds.

    Attributes:
        greeting_s: From the click to the greeting; None if there was none.
        reply_s: From the caller's last word to the reply; None if there was none after it.
        early: Whether the agent answered into what the caller was saying.
        heard: The agent's words.
        tools: Tools that it called; None of an agent that does not tell.
        handoffs: Ids of the agents that it handed over to; None of an agent that does not tell.
        over_agent: Whether the caller has spoken over the agent.
        yield_s: From the caller's first word to the end of the agent's voice; None if it goes on.
        understood: What the agent has recognised.
        word_error_rate: Of that; None if unknown.
        left_s: From the caller's last word until the agent had left; None if it is there.
    """

    greeting_s: float | None = None
    reply_s: float | None = None
    early: bool = False
    heard: str = ""
    tools: Sequence[ToolCall] | None = None
    handoffs: Sequence[str] | None = None
    over_agent: bool = False
    yield_s: float | None = None
    understood: str = ""
    word_error_rate: float | None = None
    left_s: float | None = None


@dataclass(frozen=True)
class CallFigures:
    """The figures of a whole call.

    Attributes:
        split: How many turns the agent has cut in two; None of an agent that tells no words.
        latencies_s: `voice_to_voice` of every turn that has it, in seconds.
        word_error_rate: Of all that was understood; None if unknown.
        said: All that the agent has said.
    """

    split: int | None = None
    latencies_s: Sequence[float] = field(default_factory=tuple)
    word_error_rate: float | None = None
    said: str = ""


def tool_calls(events: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """Returns the tool calls in a session's events, oldest first."""
    found = []
    for event in events:
        if event["event"] != "function_tools_executed":
            continue
        outputs = {each.get("call_id"): each for each in event.get("function_call_outputs", ())}
        for call in event.get("function_calls", ()):
            answer = outputs.get(call.get("call_id"), {})
            found.append(
                ToolCall(
                    call.get("name", ""),
                    _arguments(call.get("arguments", "")),
                    str(answer.get("output", "")),
                    bool(answer.get("is_error", False)),
                    event["heard_s"],
                )
            )
    return found


def _arguments(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text or "{}")
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {"(unreadable)": text}


def handoffs(events: Sequence[Mapping[str, Any]]) -> list[Handoff]:
    """Returns the handoffs in a session's events, oldest first, without the first agent's start."""
    found = []
    for event in events:
        if event["event"] != "conversation_item_added":
            continue
        handoff = event.get("item", {}).get("agent_handoff", {})
        if handoff.get("old_agent_id"):
            found.append(Handoff(handoff.get("new_agent_id", ""), event["heard_s"]))
    return found


def similarity(heard: str, like: str) -> float:
    """Returns the similarity of two texts, 0 to 1, case and punctuation aside."""
    one, two = _words(heard), _words(like)
    return difflib.SequenceMatcher(None, one, two, autojunk=False).ratio()


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower().replace("’", "'"))


def check_step(expect: Expect, seen: Observed) -> list[Mismatch]:
    """Returns the expectations of a step that do not hold; a judge's are not checked here."""
    found = [
        *_within("greeting", expect.greeting, seen.greeting_s, "no greeting was heard"),
        *_within(
            "reply",
            expect.reply,
            seen.reply_s,
            "the agent answered before the caller had finished"
            if seen.early
            else "no reply was heard",
        ),
        *_heard(expect.heard, seen.heard),
        *_not_heard(expect.not_heard, seen.heard),
        *_yields(expect, seen),
        *_word_error_rate(expect.word_error_rate, seen.word_error_rate, seen.understood),
        *_within("leaves", expect.leaves, seen.left_s, "the agent is still in the room"),
    ]
    for tool in expect.tool or ():
        found += _tool(tool, seen.tools)
    if expect.handoff is not None:
        found += _handoff(expect.handoff, seen.handoffs)
    return found


def check_call(expect: ExpectCall, seen: CallFigures) -> list[Mismatch]:
    """Returns the expectations of a call that do not hold, without hook and judge."""
    found = []
    if expect.turns_split is not None:
        words = f"turns split: {expect.turns_split or 'none'}"
        if seen.split is None:
            found.append(Mismatch(words, "the agent does not tell what it understood"))
        elif seen.split > expect.turns_split:
            found.append(Mismatch(words, f"{seen.split} turns were split"))
    if expect.voice_to_voice is not None:
        found += _latency(expect.voice_to_voice, seen.latencies_s)
    found += _word_error_rate(expect.word_error_rate, seen.word_error_rate, "")
    found += _not_heard(expect.not_heard, seen.said)
    return found


def _within(name: str, bound_s: float | None, took_s: float | None, none: str) -> list[Mismatch]:
    if bound_s is None or (took_s is not None and took_s <= bound_s):
        return []
    observed = none if took_s is None else f"it took {took_s:.2f} s"
    return [Mismatch(f"{name}: within {bound_s:g} s", observed)]


def _heard(heard: Heard | None, words: str) -> Iterator[Mismatch]:
    if isinstance(heard, Like):
        alike = similarity(words, heard.like)
        if alike < heard.at_least:
            yield Mismatch(
                f"heard: like {heard.like!r}, at least {heard.at_least:g}",
                f"the similarity is {alike:.2f}",
            )
    elif heard is not None and not _search(heard, words):
        yield Mismatch(f"heard: {heard}", "the pattern does not match")


def _not_heard(pattern: str | None, words: str) -> Iterator[Mismatch]:
    if pattern is not None and (found := _search(pattern, words)):
        yield Mismatch(f"not heard: {pattern}", f"{found[0]!r} was heard")


def _search(pattern: str, words: str) -> re.Match[str] | None:
    return re.search(pattern, words.replace("’", "'"), re.IGNORECASE)


def _yields(expect: Expect, seen: Observed) -> Iterator[Mismatch]:
    if expect.yields is None:
        return
    never = expect.yields == "never"
    words = "yields: never" if never else f"yields: within {expect.yields:g} s"
    if not seen.over_agent:
        yield Mismatch(words, "the agent had ended before the caller spoke")
    elif isinstance(expect.yields, str):
        if seen.yield_s is not None and seen.yield_s <= STAND_WINDOW_S:
            yield Mismatch(words, f"its voice ended after {seen.yield_s:.2f} s")
    elif seen.yield_s is None or seen.yield_s > expect.yields:
        observed = "it went on" if seen.yield_s is None else f"it took {seen.yield_s:.2f} s"
        yield Mismatch(words, observed)


def _word_error_rate(bound: float | None, rate: float | None, understood: str) -> list[Mismatch]:
    if bound is None or (rate is not None and rate < bound):
        return []
    if rate is None:
        observed = "it is not known what the agent understood"
    else:
        observed = f"it is {rate:.2f}" + (f"; understood: {understood!r}" if understood else "")
    return [Mismatch(f"word_error_rate: below {bound:g}", observed)]


def _tool(tool: Tool, calls: Sequence[ToolCall] | None) -> list[Mismatch]:
    words = f"tool: {tool.name}"
    if tool.arguments:
        words += f"({', '.join(f'{name}={value}' for name, value in tool.arguments.items())})"
    if calls is None:
        return [Mismatch(words, "the agent hosts no session events, which tell its tool calls")]
    if any(_is_meant(tool, call) for call in calls):
        return []
    return [Mismatch(words, f"called: {', '.join(map(str, calls)) or NOTHING}")]


def _is_meant(tool: Tool, call: ToolCall) -> bool:
    return call.name == tool.name and all(
        name in call.arguments and _matches(wanted, call.arguments[name])
        for name, wanted in tool.arguments.items()
    )


def _matches(wanted: Any, given: Any) -> bool:
    if wanted == "*":
        return True
    if isinstance(wanted, str):
        text = given if isinstance(given, str) else json.dumps(given)
        return re.fullmatch(wanted, text, re.IGNORECASE) is not None
    return bool(wanted == given)


def _handoff(pattern: str, agents: Sequence[str] | None) -> list[Mismatch]:
    words = f"handoff: {pattern}"
    if agents is None:
        return [Mismatch(words, "the agent hosts no session events, which tell its handoffs")]
    if any(_search(pattern, agent) for agent in agents):
        return []
    return [Mismatch(words, f"handed over to: {', '.join(agents) or NOTHING}")]


def _latency(bounds: Latency, latencies_s: Sequence[float]) -> Iterator[Mismatch]:
    figures = (("p50", bounds.p50, 0.5), ("p95", bounds.p95, 0.95), ("max", bounds.max, 1.0))
    for name, bound_s, share in figures:
        if bound_s is None:
            continue
        words = f"voice_to_voice: {name} below {bound_s:g} s"
        if not latencies_s:
            yield Mismatch(words, "no turn has a latency")
            continue
        # With few values the 95th percentile is the largest.
        few = share > 0.5 and len(latencies_s) < _FEW_TURNS
        at_s = max(latencies_s) if few else percentile(latencies_s, 100 * share)
        if at_s >= bound_s:
            yield Mismatch(words, f"it is {at_s:.2f} s in {len(latencies_s)} turns")
