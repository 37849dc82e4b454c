"""The endpointing bench: ways to end a turn, in calls and on the audio alone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack

from labvoice.bench.arms import (
    Arm,
    Arms,
    choose_endpointing,
    endpointing_arms,
    with_conditions,
)
from labvoice.bench.base import RunKeywords, RunOptions, trial, with_warmup
from labvoice.bench.turns import measure_turns
from labvoice.errors import UsageError
from labvoice.runs.run import Run, RunWriter
from labvoice.runs.turn_ends import KIND, TAKEN_AFTER_S, Heard
from labvoice.settings import Settings
from labvoice.speech.graded import EITHER, SPOKEN_ASKED_AFTER_S, spoken_end
from labvoice.speech.turn_ends import (
    DEFAULT_THRESHOLDS,
    DetectorName,
    SpokenTurn,
    load_detector,
    scores,
    spoken_turns,
    spoken_words,
)
from labvoice.speech.utterances import Utterance

if TYPE_CHECKING:
    from labvoice.lab import Lab
    from labvoice.speech.recognition import MoonshineSTT

CALLED_ARMS: Final = ("0.4", "0.2", "silence:0.6", "v1-mini@0.5", "smart-turn", "dynamic")
"""The ways to end a turn that are called where none is named."""
OFFLINE_ARMS: Final = (
    "silence",
    "v1-mini@0.2",
    "v1-mini",
    "v1-mini@0.5",
    "smart-turn",
    "either",
    "both",
)
"""The detectors whose curves are taken where none is named."""
_MEMBERS: Final[dict[str, tuple[DetectorName, ...]]] = {
    "vad": (),
    "v1-mini": ("v1-mini",),
    "smart-turn": ("smart-turn",),
    "either": ("v1-mini", "smart-turn"),
    "both": ("v1-mini", "smart-turn"),
}


async def endpointing(
    lab: Lab,
    trials: int = 16,
    *,
    arms: Arms = "",
    turns: int = 1,
    said: Sequence[SpokenTurn] | None = None,
    **given: Unpack[RunKeywords],
) -> Run:
    """Measures ways to end a turn, side by side, in calls whose caller pauses in mid-sentence.

    Too early an end cuts in on the caller, too late a one answers late: each arm's mean
    `end_of_turn_delay` stands beside its share of turns that were cut in on.

    Args:
        trials: How many calls count, of each arm.
        arms: What :func:`labvoice.bench.arms.endpointing_arms` takes, as a list or with commas;
            :data:`labvoice.bench.endpointing.CALLED_ARMS` when not given; or agents, as for
            :meth:`labvoice.bench.menu.Bench.connect`.
        turns: Turns in each call; dynamic endpointing learns from one to the next.
        said: What the caller says, in rotation; the built-in turns when not given.

    Raises:
        SettingsError: The package of a detector is not installed.
        WeightsError: The caller's voice could not be obtained.
    """
    options = with_warmup(given)
    chosen = choose_endpointing(arms or CALLED_ARMS, lab.settings.max_endpointing_delay_s)
    if any(arm.settings.get("turn_detector") == "both" for arm in chosen):
        raise UsageError(
            "an agent has one turn detector: `both` cannot be called",
            "leave it out, or take its curve from the audio alone (`--offline`)",
        )
    if any(arm.settings.get("turn_detector") in ("smart-turn", "either") for arm in chosen):
        await asyncio.to_thread(load_detector, "smart-turn", lab.settings)  # or its error, early
    if said is not None and any(
        arm.conditions is not None and arm.conditions.speaker
        for arm in with_conditions(chosen, options.conditions)
    ):
        raise UsageError(
            "a speaker is named, and the turns that are given are recordings, whose pauses no "
            "other voice makes",
            "leave the speaker out, or the turns (`--rows`): the built-in ones are said by it",
        )
    count_said = max(options.rounds(trials) * turns, 1)

    def spoken(speaker: str | None) -> list[Utterance]:
        made = spoken_turns(lab.settings, options.progress, count_said, speaker)
        return [turn.utterance for turn in made]

    utterances = (
        await asyncio.to_thread(spoken, None) if said is None else [turn.utterance for turn in said]
    )
    return await measure_turns(
        lab,
        KIND,
        trials,
        turns,
        chosen,
        utterances,
        options,
        spoken_by=lambda conditions: spoken(conditions.speaker),
    )


async def on_audio(
    settings: Settings,
    arms: str | Sequence[str],
    turns: Sequence[SpokenTurn] | None,
    options: RunOptions,
) -> Run:
    """Asks detectors at every silence of recorded turns, with no call: their whole curves.

    Every detector hears every turn, and each turn is a trial. A turn's outcome and delay are
    those of the arm's own delays; the curve of the run is that of all pairs of delays.

    Args:
        settings: For weights and for the delays of arms that name none.
        arms: What :func:`labvoice.bench.arms.endpointing_arms` takes; :data:`OFFLINE_ARMS` when
            empty.
        turns: The turns; the built-in ones when not given.
        options: Options of the run; a warm-up has no meaning here.

    Raises:
        UsageError: An arm has no meaning without a call.
        WeightsError: Weights, a recording or the caller's voice could not be obtained.
        RunFileError: The run file exists already.
    """
    named = endpointing_arms(arms or OFFLINE_ARMS, settings.max_endpointing_delay_s)
    chosen = [_with_thresholds(arm) for arm in named]
    names = dict.fromkeys(
        name for arm in chosen for name in _MEMBERS[arm.settings["turn_detector"]]
    )
    detectors = {name: await asyncio.to_thread(load_detector, name, settings) for name in names}
    recogniser = None
    if any(arm.settings["turn_detector"] == "smart-turn" for arm in chosen):
        recogniser = await asyncio.to_thread(_load_recogniser, settings)
    if turns is None:
        turns = await asyncio.to_thread(spoken_turns, settings, options.progress)
    path = options.path(KIND)
    config = {"command": options.command, "calls": False, "turns": len(turns)}
    columns = {arm.name: dict(arm.columns) for arm in chosen}
    with RunWriter(path, kind=KIND, config=config, arms=columns) as run:
        for number, turn in enumerate(turns):
            found = {name: await scores(detector, turn) for name, detector in detectors.items()}
            spoken: list[tuple[float, str]] = []
            if recogniser is not None:
                early = await scores(detectors["smart-turn"], turn, SPOKEN_ASKED_AFTER_S)
                spoken = [*zip(early, await spoken_words(recogniser, turn), strict=True)]
            for place, arm in enumerate(chosen):
                trial_number = number * len(chosen) + place
                made = _heard(arm, turn, found, spoken)
                await _record(run, trial_number, number, arm, turn, made, settings)
            if (number + 1) % 10 == 0 or number + 1 == len(turns):
                options.progress(f"{number + 1} of {len(turns)} turns heard")
    return Run.load(path)


def _load_recogniser(settings: Settings) -> MoonshineSTT:
    from labvoice.speech.embedded import load_moonshine  # ONNX Runtime, which calls do not need

    return load_moonshine(settings)


def _with_thresholds(arm: Arm) -> Arm:
    """The arm with the thresholds of its detectors as columns."""
    if arm.settings.get("endpointing_mode") == "dynamic":
        raise UsageError(
            "`dynamic` learns from a call as it goes on, so there is no curve of it on audio alone",
            "measure it in calls: `labvoice bench endpointing --arms dynamic,v1-mini --turns 4`",
        )
    thresholds = {
        f"threshold_{name}": _threshold(arm, name)
        for name in _MEMBERS[arm.settings["turn_detector"]]
    }
    columns = {"turn_detector": arm.settings["turn_detector"], **thresholds}
    return dataclasses.replace(arm, columns=columns)


def _threshold(arm: Arm, name: DetectorName) -> float:
    if arm.settings["turn_detector"] == "either" and name == "smart-turn":
        return EITHER.sure
    return float(arm.settings.get("turn_detector_threshold", DEFAULT_THRESHOLDS[name]))


def _heard(
    arm: Arm,
    turn: SpokenTurn,
    found: dict[DetectorName, list[float]],
    spoken: list[tuple[float, str]],
) -> tuple[Heard, dict[str, Any]]:
    """What an arm makes of a turn, and the facts that it rests on.

    Args:
        found: What each detector says of each silence.
        spoken: What Smart Turn says when it is asked with the words, and the words.
    """
    detector, members = arm.settings["turn_detector"], _MEMBERS[arm.settings["turn_detector"]]
    if detector == "smart-turn":
        threshold = _threshold(arm, "smart-turn")
        ends = [spoken_end(score, text, threshold) for score, text in spoken]
        heard = Heard(turn.pauses_s, [end for end, _ in ends], [after_s for _, after_s in ends])
        return heard, {
            "scores_smart-turn": [round(score, 4) for score, _ in spoken],
            "words": [text for _, text in spoken],
        }
    places = range(len(turn.pauses) + 1)
    hears = [[found[name][at] >= _threshold(arm, name) for name in members] for at in places]
    ended = [any(each) if detector == "either" else all(each) for each in hears]
    least_s = [TAKEN_AFTER_S for _ in places]
    if detector == "either":
        least_s = [TAKEN_AFTER_S if all(each) else EITHER.unsure_after_s for each in hears]
    facts = {f"scores_{n}": [round(p, 4) for p in found[n]] for n in members}
    return Heard(turn.pauses_s, ended, least_s), facts


async def _record(
    run: RunWriter,
    number: int,
    round_number: int,
    arm: Arm,
    turn: SpokenTurn,
    made: tuple[Heard, dict[str, Any]],
    settings: Settings,
) -> None:
    """Writes what a detector makes of a turn."""
    heard, facts = made
    own = settings.model_copy(update=arm.settings)
    low_s, high_s = own.resolved_min_endpointing_delay_s, own.max_endpointing_delay_s
    said = turn.utterance.text
    async with trial(
        run, number, turn.utterance.source, arm.name, round_number=round_number, said=[said]
    ) as this:
        this.outcome("ok")
        facts |= {"pauses_s": turn.pauses_s, "ended": heard.ended, "least_s": heard.least_s}
        this.note(0, source=turn.utterance.source, **facts)
        delay_s = heard.delay_s(low_s, high_s)
        run.stage(number, "end_of_turn_delay", delay_s, turn=0, source="detector")
        this.outcome("interrupted" if heard.cut(low_s, high_s) else "ok", turn=0)
