"""The turn bench: one call with one or more turns in each trial."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from labvoice.bench.arms import Arm, with_conditions
from labvoice.bench.base import RunOptions, Trial, connect_and_greet, measure_calls
from labvoice.bench.memory import record_memory, wait_for_memory
from labvoice.caller.call import Call
from labvoice.caller.turns import Turn
from labvoice.errors import UsageError
from labvoice.protocol.vocabulary import JITTER_BUFFER
from labvoice.runs.run import Run, RunWriter
from labvoice.settings import Settings
from labvoice.speech.conditions import Conditions
from labvoice.speech.utterances import (
    DEFAULT_UTTERANCES,
    FURTHER_UTTERANCES,
    Reading,
    Utterance,
    human_utterances,
    synthesize_all,
)

if TYPE_CHECKING:
    from labvoice.lab import Lab


async def measure_turns(
    lab: Lab,
    kind: str,
    trials: int,
    count: int,
    arms: Sequence[Arm],
    utterances: Sequence[Utterance] | None,
    options: RunOptions,
    *,
    spoken_by: Callable[[Conditions], list[Utterance]] | None = None,
) -> Run:
    """Makes calls with a number of turns; round and turn determine the utterance, for every arm.

    Args:
        trials: How many calls of each arm count.
        count: How many turns in each call.
        utterances: What the callers say, in rotation.
        spoken_by: Returns the utterances in the voice of a speaker; blocks. When not given, each
            text is synthesised.

    Raises:
        UsageError: A number is out of range.
        RunFileError: The run file exists already.
        WeightsError: The caller's voice could not be obtained.
    """
    if count < 1:
        raise UsageError("a call needs at least one turn", "pass `--turns 1` or more")
    rounds = options.rounds(trials)
    if utterances is not None and not utterances:
        raise UsageError("the list of utterances is empty", "give one, or leave `utterances` out")
    if utterances is None:
        utterances = await asyncio.to_thread(default_utterances, lab.settings, options.progress)
        if rounds * count > len(utterances):
            more = await asyncio.to_thread(
                default_utterances, lab.settings, options.progress, further=True
            )
            utterances = [*utterances, *more]
    chosen = utterances
    if spoken_by is None:
        spoken_by = functools.partial(
            Conditions.voiced, utterances=chosen, settings=lab.settings, progress=options.progress
        )
    voiced = {
        arm.name: await asyncio.to_thread(spoken_by, arm.conditions)
        for arm in with_conditions(arms, options.conditions)
        if arm.conditions is not None and arm.conditions.speaker is not None
    }

    async def talk(this: Trial, call: Call, round_number: int) -> str:
        await connect_and_greet(this, call)
        for utterance in said_in(voiced.get(this.arm, chosen), round_number, count):
            await take_turn(this, call, utterance)
        await wait_for_memory(call)
        record_memory(this.run, this.number, call)
        return "voice to voice " + ", ".join(
            "none" if took_s is None else f"{took_s * 1000:.0f} ms"
            for took_s in (turn.voice_to_voice_s for turn in call.turns)
        )

    return await measure_calls(
        lab,
        kind,
        trials,
        arms,
        options,
        talk,
        said=lambda number: [each.text for each in said_in(chosen, number, count)],
        config={"turns_per_trial": count},
    )


def said_in(utterances: Sequence[Utterance], round_number: int, count: int) -> list[Utterance]:
    """Returns the utterances of a round: round and turn alone determine them.

    So an arm whose call failed does not fall out of step with the others.
    """
    first = round_number * count
    return [utterances[number % len(utterances)] for number in range(first, first + count)]


async def take_turn(this: Trial, call: Call, utterance: Utterance) -> None:
    """Says an utterance, hears the reply, and records the turn with its outcome."""
    number = len(call.turns)
    heard = False
    try:
        await call.say(utterance)
        await call.hear()
        heard = True
    finally:
        if len(call.turns) > number:
            turn = call.turns[number]
            record_turn(this.run, this.number, turn)
            if heard:  # else the trial books the error, with its words
                this.outcome(turn.outcome, turn=number)


def default_utterances(
    settings: Settings, progress: Callable[[str], None], *, further: bool = False
) -> list[Utterance]:
    """Human recordings and synthesised questions in turn, 16.

    Args:
        further: 24 others, all different, for runs in which each is said once.
    """
    read: tuple[Reading, ...] = ("short", "passages") if further else ("clauses",)
    texts = FURTHER_UTTERANCES if further else DEFAULT_UTTERANCES
    kinds = (
        human_utterances(settings, progress, *read),
        synthesize_all(texts, settings, progress),
    )
    return [each for group in itertools.zip_longest(*kinds) for each in group if each is not None]


def record_turn(run: RunWriter, trial: int, turn: Turn) -> None:
    """Records LiveKit's figures of a turn and its texts; its marks are there."""
    for stage, duration_s in turn.metrics.items():
        if stage != "memory_sync":  # it comes later
            run.stage(trial, stage, duration_s, turn=turn.number)
    record_buffer(run, trial, turn)
    if turn.uncertain_s:
        run.note(trial, turn.number, uncertain_s=turn.uncertain_s)
    run.note(
        trial,
        turn.number,
        said=turn.said,
        transcript=turn.transcript,
        reply=turn.reply,
        wer=turn.word_error_rate,
        user_messages=turn.user_messages,
        notice=turn.notice,
    )


def record_buffer(run: RunWriter, trial: int, turn: Turn) -> None:
    """Records a turn's jitter buffer, and which stall has upset it."""
    if turn.jitter_buffer_s is not None:
        source = "statistics"
        run.stage(trial, JITTER_BUFFER, turn.jitter_buffer_s, turn=turn.number, source=source)
    if turn.upset:
        run.note(trial, turn.number, upset=turn.upset)
