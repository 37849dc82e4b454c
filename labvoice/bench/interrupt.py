"""The turn-taking bench (barge-in, backchannel): one call with one probe in each trial."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from typing import TYPE_CHECKING, Any, Final, Unpack

from labvoice.bench.arms import INTERRUPT_ARMS, Arm, Arms, choose, with_conditions
from labvoice.bench.base import (
    RunKeywords,
    Trial,
    connect_and_greet,
    measure_calls,
    with_warmup,
)
from labvoice.caller.call import Call
from labvoice.caller.interruption import PAUSE_S, Interruption, check_at
from labvoice.caller.turns import Turn
from labvoice.errors import AgentLostError
from labvoice.protocol.vocabulary import OVERLAP, STAND_WINDOW_S, YIELD_WINDOW_S, Mark
from labvoice.runs.run import Run
from labvoice.settings import Settings
from labvoice.speech.probes import Probe, Probes, check_probes, make_probes
from labvoice.speech.utterances import DEFAULT_SPEAKER, Utterance, synthesize_all
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import BUILT_IN

if TYPE_CHECKING:
    from labvoice.lab import Lab

ASK: Final = "Please explain to me in detail how that works."
"""The paced model answers at length who asks "in detail"; other models do as well."""
AT_S: Final = 2.0
"""When a probe begins, in seconds after the onset of the reply."""

_ANSWER_TIMEOUT_S: Final = 8.0
"""Silence of both sides after which no answer comes any more, in seconds."""
_LATE_S: Final = 2.0
"""How long an agent that goes on is watched after a sound, in seconds: recognition may stop it."""
_SHOWN_S: Final = 0.5
"""How long a voice that goes on or answers is heard, so that the recording shows its onset."""
_LONGEST_S: Final = 60.0
_TEXT_TIMEOUT_S: Final = 3.0
_LOOK_S: Final = 0.02
_COLUMNS: Final = (
    "interruption_mode",
    "interruption_min_duration_s",
    "interruption_min_words",
    "resume_false_interruption",
    "false_interruption_timeout_s",
)


async def interrupt(
    lab: Lab,
    trials: int = 5,
    *,
    probes: Probes = "",
    arms: Arms = "",
    ask: str | Utterance = ASK,
    at: float = AT_S,
    **given: Unpack[RunKeywords],
) -> Run:
    """Measures turn-taking: in each trial one call, in each call one probe.

    The caller asks something, and in the reply it interrupts, or makes a sound that asks for
    nothing; or it pauses in mid-sentence. `run.shares()` says how often the agent did right,
    `run.probes` what it did each time.

    Args:
        trials: How many calls count, of each probe and arm.
        probes: Names of :data:`labvoice.speech.probes.PROBES`, as a list or with commas, or
            :class:`labvoice.speech.probes.Probe` of your own; all of those when not given.
        arms: As for :meth:`labvoice.bench.menu.Bench.connect`, of
            :data:`labvoice.bench.arms.INTERRUPT_ARMS`.
        ask: What the caller asks: the reply must be long enough to be interrupted. The paced model
            answers at length who asks "in detail".
        at: When the probe begins, in seconds after the onset of the reply.

    Raises:
        WeightsError: The caller's voice could not be obtained.
    """
    options = with_warmup(given)
    options.rounds(trials)
    check_at(at)
    check_probes(probes)
    chosen = [_with_columns(arm, lab.settings) for arm in choose(arms, INTERRUPT_ARMS)]
    speakers = {
        arm.name: (arm.conditions and arm.conditions.speaker) or DEFAULT_SPEAKER
        for arm in with_conditions(chosen, options.conditions)
    }
    said_by = {
        speaker: await asyncio.to_thread(
            make_probes, probes, lab.settings, options.progress, speaker
        )
        for speaker in dict.fromkeys([DEFAULT_SPEAKER, *speakers.values()])
    }
    questions = {
        speaker: ask
        if isinstance(ask, Utterance)
        else (
            await asyncio.to_thread(
                synthesize_all, [ask], lab.settings, options.progress, speaker=speaker
            )
        )[0]
        for speaker in said_by
    }
    variants = said_by[DEFAULT_SPEAKER]

    def probe_of(round_number: int, speaker: str = DEFAULT_SPEAKER) -> Probe:
        place = round_number - options.warmup
        of_name = said_by[speaker][place % len(variants)]
        return of_name[place // len(variants) % len(of_name)]

    async def talk(this: Trial, call: Call, round_number: int) -> str:
        await connect_and_greet(this, call)
        call.on_turn_mark = None  # the marks of the question are no figures of this bench
        speaker = speakers[this.arm]
        probe = probe_of(round_number, speaker)
        if probe.kind == "pause":
            return f"{probe.name}: {await _pause(this, call, probe)}"
        return f"{probe.name}: {await _speak_over(this, call, probe, questions[speaker], at)}"

    return await measure_calls(
        lab,
        "interrupt",
        trials * len(variants),
        chosen,
        options,
        talk,
        said=lambda number: [probe_of(number).utterance.text],
        config={
            "trials": trials,
            "probes": [each[0].name for each in variants],
            "ask": questions[DEFAULT_SPEAKER].text,
            "at_s": at,
        },
    )


def _with_columns(arm: Arm, settings: Settings) -> Arm:
    """The arm with its settings of interruptions as columns of the frame; unknown of others."""
    foreign = arm.target is not None and arm.target.kind not in BUILT_IN
    if foreign or arm.columns.get("baseline") or isinstance(arm.agent_name, TargetAgent):
        return arm
    own = settings.model_copy(update=dict(arm.target.settings if arm.target else arm.settings))
    about = {name: getattr(own, name) for name in _COLUMNS}
    return dataclasses.replace(arm, columns={**arm.columns, **about})


async def _speak_over(this: Trial, call: Call, probe: Probe, ask: Utterance, at_s: float) -> str:
    """Asks, speaks over the reply, and watches what the agent does."""
    await call.say(ask)
    turn = await call.say(probe.utterance, at=at_s)
    found = await _watch(call, turn, probe)
    interrupts = probe.kind == "interruption"
    in_time = found.yielded_s is not None and found.yielded_s - found.start_s <= (
        YIELD_WINDOW_S if interrupts else STAND_WINDOW_S
    )
    by_itself = _ended_by_itself(call, found)
    if by_itself and not in_time:  # it went on to its end
        found = dataclasses.replace(found, yielded_s=None)
    facts = _facts(call, turn, probe, found)
    for name, mark_s in found.marks.items():
        of_kind = name if interrupts else name.replace("interruption_", "sound_")
        this.run.mark(this.number, Mark(of_kind, mark_s), turn=0)
    this.run.stage(this.number, OVERLAP, found.overlap_s, turn=0, source="caller")
    if not found.over_agent or (by_itself and in_time):
        words = (
            "the reply was over before it could be spoken over: ask for a longer one (`--ask`), or "
            "speak earlier (`--at`)"
        )
        this.note(0, **{**facts, "over_agent": False, "answers": None})
        this.outcome("error", turn=0, detail=words)
        return words
    hang = found.replied_s is None and (
        interrupts or (found.yielded_s is not None and found.resumed_s is None)
    )
    this.note(0, **facts, hang=hang)
    words = _description(found)
    if hang:
        words += f", then nothing: {_why_silent(call, turn)}"
    this.outcome("no_reply" if hang else "ok", turn=0, detail=words if hang else "")
    return words


async def _pause(this: Trial, call: Call, probe: Probe) -> str:
    """Pauses in mid-sentence, and hears whether the agent waits for the rest."""
    assert probe.pause is not None
    turn = await call.say(probe.utterance)
    try:
        await call.hear()
    finally:
        early_s = _note_pause(this, call, turn, probe)
    this.outcome("ok", turn=0)
    if early_s is not None:
        return f"cut in after {_ms(early_s)} ms"
    return "taken for two turns" if turn.user_messages > 1 else "waited for the rest"


def _note_pause(this: Trial, call: Call, turn: Turn, probe: Probe) -> float | None:
    """Records it; returns how long after the beginning of the pause the agent cut in, if it did."""
    assert probe.pause is not None
    speech, rate = probe.utterance.speech, probe.utterance.sample_rate
    pause_s = turn.marks["user_speech_start"] + probe.pause[0] - speech.first / rate
    found = call.interruption(turn)
    early = [voice.start_s for voice in call.voices if pause_s <= voice.start_s < found.end_s]
    # No `user_speech_end`: what a cut turn waits for is no voice-to-voice latency.
    marks = {"sound_start": found.start_s, "sound_end": found.end_s, "pause_start": pause_s}
    if early:
        marks["cut_in_heard"] = early[0]
    for name, at_s in marks.items():
        this.run.mark(this.number, Mark(name, at_s), turn=0)
    this.run.stage(this.number, OVERLAP, found.overlap_s, turn=0, source="caller")
    cut = bool(early) or turn.user_messages > 1
    hang = "reply_heard" not in turn.marks
    this.note(0, **_facts(call, turn, probe, found), cut=cut, hang=hang)
    return early[0] - pause_s if early else None


async def _watch(call: Call, turn: Turn, probe: Probe) -> Interruption:
    """Returns what the agent did, once that is settled.

    Raises:
        AgentLostError: The agent left meanwhile.
    """
    began_s = time.monotonic()
    while True:
        found, now_s = call.interruption(turn), time.monotonic()
        settled = _settled(call, turn, probe, found, now_s)
        if settled or now_s - began_s > _LONGEST_S:
            return found
        if not call.agent_identity:
            raise AgentLostError(
                f"the agent left the room after {probe.utterance.text!r} was said over it",
                "the worker's log tells how the job ended",
            )
        await asyncio.sleep(_LOOK_S)


def _settled(call: Call, turn: Turn, probe: Probe, found: Interruption, now_s: float) -> bool:
    """Whether nothing that is measured can change any more."""
    silent_since_s = max([found.end_s, *(voice.end_s for voice in call.voices)])
    speaks = any(not voice.ended for voice in call.voices)
    quiet_s = 0.0 if speaks else now_s - silent_since_s
    if probe.kind == "interruption":
        if found.replied_s is not None:  # to its end, for its words
            return quiet_s > (PAUSE_S if turn.reply else _TEXT_TIMEOUT_S)
        return quiet_s > _ANSWER_TIMEOUT_S
    if not found.over_agent:
        return True
    if (onset_s := found.resumed_s or found.replied_s) is not None:
        return now_s - onset_s > _SHOWN_S
    if found.yielded_s is not None:
        return quiet_s > _ANSWER_TIMEOUT_S
    return not quiet_s and now_s > max(found.start_s + STAND_WINDOW_S, found.end_s + _LATE_S)


def _facts(call: Call, turn: Turn, probe: Probe, found: Interruption) -> dict[str, Any]:
    """Returns the notes of a probe; times are seconds since its onset."""
    zero_s = found.start_s

    def since(at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - zero_s, 4)

    asked = [each.marks for each in call.turns if "user_speech_end" in each.marks]
    caller = [(marks["user_speech_start"], marks["user_speech_end"]) for marks in asked]
    agent = [(voice.start_s, voice.end_s) for voice in call.voices]
    answers = None
    if probe.answer and turn.reply:
        answers = re.search(probe.answer, turn.reply, re.IGNORECASE) is not None
    elif probe.answer and found.replied_s is None:
        answers = False
    return {
        "probe": probe.name,
        "kind": probe.kind,
        "sound": probe.sound,
        "source": probe.source,
        "said": probe.utterance.text,
        "transcript": turn.transcript,
        "reply": turn.reply,
        "notice": turn.notice,
        "over_agent": found.over_agent,
        "yielded_after_s": since(found.yielded_s),
        "resumed_after_s": since(found.resumed_s),
        "replied_after_s": since(found.replied_s),
        "answers": answers,
        "caller_spoke": [[since(begin_s), since(end_s)] for begin_s, end_s in caller],
        "agent_spoke": [[since(begin_s), since(end_s)] for begin_s, end_s in agent],
        "agent_goes_on": any(not voice.ended for voice in call.voices),
    }


def _ended_by_itself(call: Call, found: Interruption) -> bool:
    """Whether the agent tells that it spoke the reply to its end; False where it tells nothing."""
    if found.yielded_s is None:
        return False
    until_s = min((s for s in (found.resumed_s, found.replied_s) if s is not None), default=None)
    for event in call.session_events:
        at_s = event["heard_s"]
        message = event.get("item", {}).get("message", {})
        if at_s < found.start_s or message.get("role") != "ASSISTANT":
            continue
        return (until_s is None or at_s < until_s) and not message.get("interrupted")
    return False


def _description(found: Interruption) -> str:
    words = ["went on"]
    if found.yielded_s is not None:
        words = [f"stopped after {_ms(found.yielded_s - found.start_s)} ms"]
        if found.resumed_s is not None:
            words.append(f"went on after {_ms(found.resumed_s - found.yielded_s)} ms")
    if found.replied_s is not None:
        words.append(f"answered after {_ms(found.replied_s - found.end_s)} ms")
    return ", ".join(words)


def _why_silent(call: Call, turn: Turn) -> str:
    """What is known of an agent that says nothing more."""
    told = []
    recognised = [
        event.get("transcript", "")
        for event in call.session_events
        if event["event"] == "user_input_transcribed"
        and event.get("is_final")
        and event["heard_s"] > turn.marks["user_speech_start"]
    ]
    states = [e for e in call.session_events if e["event"] == "agent_state_changed"]
    if turn.transcript:
        told.append(f"it understood {turn.transcript!r}")
    elif recognised:
        told.append(f"it recognised {recognised[-1]!r} and took it for no turn")
    elif call.session_events:
        told.append("it recognised nothing")
    if states:
        state = str(states[-1].get("new_state", "")).removeprefix("AS_").lower()
        told.append(f"its last state is {state!r}")
    errors = [e for e in call.session_events if e["event"] == "error"]
    told += [f"its session reports {each.get('message') or each}" for each in errors[-1:]]
    return ", ".join(told) or "it tells nothing of itself"


def _ms(duration_s: float) -> str:
    return f"{duration_s * 1e3:,.0f}"
