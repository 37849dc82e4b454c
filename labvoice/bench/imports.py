"""Calls that were recorded elsewhere, as a run: LiveKit's session reports and recordings.

The ear that measures the lab's own calls hears both sides of a recording, and the rules of a call's
turns are those of :mod:`labvoice.caller.turns`. A report without a recording has LiveKit's figures
and nothing that was heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from labvoice.bench.base import run_path, write_recording
from labvoice.bench.session_report import (
    REPORT_HINT,
    Message,
    SessionReport,
    columns_of,
    read_report,
)
from labvoice.bench.turns import record_turn
from labvoice.caller.ear import Voice, voices_in
from labvoice.caller.recorder import SAMPLE_RATE_HZ, Recording
from labvoice.caller.turns import Turn, Turns
from labvoice.choices import RecordingFormat
from labvoice.errors import AudioFormatError, RunFileError, UsageError
from labvoice.protocol.vocabulary import YIELD_WINDOW_S, Mark
from labvoice.runs.run import Run, RunWriter
from labvoice.speech.detection import resample

Side = Literal["left", "right"]
KIND: Final = "turns"
"""Kind of the run: what is measured is what `labvoice bench turns` measures."""
NO_REPLY_S: Final = 5.0
"""A last turn that nothing answers is a goodbye, and no turn, where the recording ends earlier."""
_NEAR_S: Final = 0.3
"""A message of the agent's and the voice that speaks it begin within so many seconds."""
_SAME: Final = 0.95
"""Two channels that correlate so much hold one sound."""
_CHANNELS_HINT: Final = (
    "record two channels (egress: `audio_mixing=DUAL_CHANNEL_AGENT`), or give a file for each "
    "side: `--caller A --agent B`"
)


@dataclass(frozen=True)
class RecordedCall:
    """One call: what is known of it.

    Attributes:
        report: The session report; None without.
        recordings: The file with both sides, or the caller's and the agent's; empty without.
        caller: The caller's channel in a file with both sides.
        agent_delay_s: How much later the agent's file begins than the caller's, in seconds.
    """

    report: Path | None
    recordings: tuple[Path, ...]
    caller: Side = "left"
    agent_delay_s: float = 0.0


@dataclass
class _Heard:
    """A call as it is to be written; instants in seconds since 1970."""

    room: str
    turns: list[Turn] = field(default_factory=list)
    greeting_s: float | None = None
    greeting: str = ""
    over_agent: int = 0
    start_s: float | None = None
    """When the recording began; None without one."""
    notice: str = ""


def find_calls(
    files: Sequence[Path],
    sides: tuple[Path, Path] | None = None,
    *,
    caller: Side = "left",
    agent_delay_s: float = 0.0,
) -> list[RecordedCall]:
    """Puts reports and recordings together to calls.

    A report and a recording are of one call if the report names the recording, if they have the
    same name without its ending, or if there is one of each.

    Args:
        files: Session reports (`.json`) and recordings of two channels.
        sides: The caller's and the agent's recording of a further call; of the report's where there
            is one report and no other recording.
        caller: The caller's channel in recordings of two channels.
        agent_delay_s: How much later the agent's file of `sides` begins, in seconds.

    Raises:
        UsageError: There is nothing to read, or a file does not exist.
    """
    for path in (*files, *(sides or ())):
        if not path.is_file():
            raise UsageError(f"{path} is not a file", "check the path")
    reports = [path for path in files if path.suffix.lower() == ".json"]
    sounds = [path for path in files if path not in reports]
    if sides is not None and len(reports) == 1 and not sounds:
        return [RecordedCall(reports[0], sides, caller, agent_delay_s)]
    calls = []
    for path in reports:
        named = Path(read_report(path).audio_recording_path or "")
        alone = len(reports) == len(sounds) == 1
        own = [
            each for each in sounds if alone or path.stem == each.stem or each.name == named.name
        ]
        if not own and named.name:
            # The path is that of the machine which made it: the file may lie beside the report.
            own = [each for each in (path.parent / named.name, named) if each.is_file()]
        sounds = [each for each in sounds if each not in own[:1]]
        calls.append(RecordedCall(path, tuple(own[:1]), caller))
    calls += [RecordedCall(None, (path,), caller) for path in sounds]
    if sides is not None:
        calls.append(RecordedCall(None, sides, caller, agent_delay_s))
    if not calls:
        raise UsageError("no file is given", "a session report, a recording, or both")
    return calls


def import_calls(
    calls: Sequence[RecordedCall],
    out: Path | None = None,
    *,
    arm: str = "production",
    command: str = "",
    recording: RecordingFormat = "ogg",
) -> Run:
    """Measures calls that were recorded elsewhere, and writes them as a run.

    Blocks for some seconds a minute of recording. What is not known is missing: the connection's
    stages, and without a recording everything that was to be heard. Instants are those of the
    reports; a recording without one is dated by now.

    Args:
        calls: As :func:`find_calls` returns them.
        out: The run file; one in `runs/` named by the time when not given.
        command: The command line to show as the way to reproduce the run.
        recording: Format of the recordings that are kept beside the run.

    Raises:
        RunFileError: A report cannot be read, has no times, or is not of its recording.
        AudioFormatError: A recording cannot be read, or not be told apart into two sides.
    """
    now = datetime.now(UTC)
    reports = [None if call.report is None else read_report(call.report) for call in calls]
    heard = [
        _measured(call, report, now.timestamp())
        for call, report in zip(calls, reports, strict=True)
    ]
    known = [report for report in reports if report is not None]
    starts = [at_s for each in heard for at_s in _instants(each)]
    starts = starts or [at_s for report in known for at_s, _ in report.messages if at_s]
    start_s = min(starts, default=now.timestamp())
    names = sorted({report.agent_name for report in known if report.agent_name})
    config = {
        "command": command,
        "imported": [
            str(each) for call in calls for each in (call.report, *call.recordings) if each
        ],
        **({"agent_name": ", ".join(names)} if names else {}),
    }
    with RunWriter(
        out or run_path("import"),
        kind=KIND,
        config=config,
        arms={arm: columns_of(known)},
        host_facts={},
        started=(datetime.fromtimestamp(start_s, UTC), start_s),
    ) as run:
        for trial, (call, each) in enumerate(zip(calls, heard, strict=True)):
            _write(run, trial, call, each, arm, recording)
    return Run.load(run.path)


def _measured(call: RecordedCall, report: SessionReport | None, now_s: float) -> _Heard:
    """One call, measured by ear where there is a recording."""
    try:
        messages = [] if report is None else report.messages
    except ValidationError as error:
        words = f"{call.report} has a message that cannot be read: {error.errors()[0]['msg']}"
        raise RunFileError(words, REPORT_HINT) from None
    room = report.room if report is not None else call.recordings[0].stem
    if not call.recordings:
        return _told(str(call.report), room, [message for _, message in messages])
    samples = _sides(call)
    caller, agent = (voices_in(samples[:, side], SAMPLE_RATE_HZ) for side in (0, 1))
    caller = [voice for voice in caller if voice.speech]
    if not caller and not agent:
        raise AudioFormatError(
            f"no voice is heard in {' and '.join(map(str, call.recordings))}", "check the files"
        )
    start_s = now_s if report is None else _start(call, report, messages, agent)
    end_s = start_s + len(samples) / SAMPLE_RATE_HZ
    return _by_ear(room, start_s, end_s, caller, agent, messages)


def _told(path: str, room: str, messages: Sequence[Message]) -> _Heard:
    """A call of which there is a report alone: LiveKit's figures of its turns."""
    heard = _Heard(room, notice="there is no recording: what the caller heard is not known")
    turns = Turns()
    for message in messages:
        if message.role == "user" and (not turns.all or turns.all[-1].reply):
            turns.begin("")
        turns.item(message.item)
    for turn in turns.all:
        turn.finish("interrupted" if turn.cut else "ok" if turn.reply else "no_reply")
    if turns.all and turns.all[-1].outcome == "no_reply":
        turns.all.pop()  # how long the call went on is not known
    if not any(turn.metrics for turn in turns.all):
        raise RunFileError(
            f"{path} has no times: no message has LiveKit's figures, and there is no recording",
            "give the call's recording as well; figures come from livekit-agents 1.4 and later",
        )
    heard.turns, heard.greeting = turns.all, turns.greeting
    return heard


def _by_ear(
    room: str,
    start_s: float,
    end_s: float,
    caller: Sequence[Voice],
    agent: Sequence[Voice],
    messages: Sequence[tuple[float, Message]],
) -> _Heard:
    """A call of which there is a recording."""
    said, over_agent = utterances(caller, agent)
    heard = _Heard(room, over_agent=over_agent, start_s=start_s)
    turns = Turns()
    happens: list[tuple[float, Callable[[], object]]] = []

    def spoken(first_s: float, last_s: float) -> None:
        turns.spoken(turns.all[-1], first_s, last_s)

    for first_s, last_s in said:
        at_s = (start_s + first_s, start_s + last_s)
        happens.append((at_s[0], partial(turns.begin, "")))
        happens.append((at_s[1], partial(spoken, *at_s)))
    for voice in agent:
        at_s = (start_s + voice.start_s, start_s + voice.end_s)
        happens.append((at_s[0], partial(turns.agent_starts, at_s[0])))
        happens.append((at_s[1], partial(turns.agent_ends, at_s[1])))
    happens += [(told_s, partial(turns.item, message.item)) for told_s, message in messages]
    for _, happen in sorted(happens, key=lambda event: event[0]):
        happen()
    heard.turns, heard.greeting = turns.all, turns.greeting
    starts = [turn.marks["user_speech_start"] for turn in turns.all]
    if agent and (not starts or start_s + agent[0].start_s < starts[0]):
        heard.greeting_s = start_s + agent[0].start_s
    for turn, until_s in zip(turns.all, [*starts[1:], float("inf")], strict=True):
        reply_s = turn.marks.get("reply_heard", float("inf"))
        own = [each for each in agent if reply_s <= start_s + each.start_s < until_s]
        if own:
            turn.marks["reply_end"] = start_s + own[-1].end_s
            if own[0].doubt:
                turn.add_notice(f"the reply's beginning is uncertain: {own[0].doubt}")
    last = turns.all[-1] if turns.all else None
    if (
        last is not None
        and last.outcome == "no_reply"
        and end_s - last.marks["user_speech_end"] < NO_REPLY_S
    ):
        turns.all.pop()
        heard.notice = "the call ended with the caller's last words: they are no turn"
    return heard


def utterances(
    caller: Sequence[Voice], agent: Sequence[Voice]
) -> tuple[list[tuple[float, float]], int]:
    """Returns when the caller said something, and how often it made a sound that is none.

    An utterance goes on over pauses until the agent's voice begins. A sound of the caller's within
    the agent's voice, which goes on for two seconds from it, asks for nothing and is none.

    Args:
        caller: The caller's stretches of voice, oldest first.
    """
    said: list[tuple[float, float]] = []
    over_agent = 0
    for voice in caller:
        if any(
            each.start_s < voice.start_s
            and max(voice.end_s, voice.start_s + YIELD_WINDOW_S) < each.end_s
            for each in agent
        ):
            over_agent += 1
        elif said and not any(said[-1][1] < each.start_s <= voice.start_s for each in agent):
            said[-1] = (said[-1][0], voice.end_s)
        else:
            said.append((voice.start_s, voice.end_s))
    return said, over_agent


def _start(
    call: RecordedCall,
    report: SessionReport,
    messages: Sequence[tuple[float, Message]],
    agent: Sequence[Voice],
) -> float:
    """When the recording began, by the report, in seconds since 1970.

    The report names it where the agent recorded the call itself. For another recording it is where
    most of the agent's messages begin with a voice.
    """
    told = [
        at_s
        for _, message in messages
        if message.role == "assistant"
        and (at_s := message.figure("started_speaking_at")) is not None
    ]
    own = report.audio_recording_started_at
    if not told or not agent:
        if own is None:
            raise RunFileError(
                f"{call.report} has no times by which its recording could be laid",
                "give the recording alone: its calls are then measured without their words",
            )
        return own
    onsets = np.array([voice.start_s for voice in agent])
    spoken = np.array(told)

    def fit(start_s: float) -> npt.NDArray[np.float64]:
        """How far each message is from the voice nearest to it, in seconds."""
        apart = spoken[:, None] - start_s - onsets[None, :]
        return np.asarray(apart[np.arange(len(spoken)), np.abs(apart).argmin(axis=1)])

    def near(start_s: float) -> int:
        return int((np.abs(fit(start_s)) <= _NEAR_S).sum())

    needed = len(spoken) / 2
    if own is not None and near(own) >= needed:
        return own
    best = max((spoken[:, None] - onsets[None, :]).ravel(), key=near)
    if near(best) < needed:
        raise RunFileError(
            f"{call.report} and its recording do not fit: of {len(spoken)} messages of the agent "
            f"{near(best)} begin with a voice on the agent's channel",
            "the caller may be on the other channel: `--caller-channel right`, as in recordings of "
            "egress with DUAL_CHANNEL_AGENT; or the files are of two calls",
        )
    residual = fit(best)
    return float(best + np.median(residual[np.abs(residual) <= _NEAR_S]))


def _sides(call: RecordedCall) -> npt.NDArray[np.int16]:
    """Both sides at the recorder's rate: shape (n, 2), the caller on the left."""
    if len(call.recordings) == 1:
        (path,) = call.recordings
        samples, rate = _read(path)
        if samples.shape[1] != 2:
            count = samples.shape[1]
            raise AudioFormatError(
                f"{path} has {count} channel{'' if count == 1 else 's'}: caller and agent cannot "
                "be told apart",
                _CHANNELS_HINT,
            )
        pair = [resample(samples[:, side], rate, SAMPLE_RATE_HZ) for side in (0, 1)]
        left, right = (each.astype(np.float32) for each in pair)
        scale = float(np.sqrt((left @ left) * (right @ right)))
        if scale and float(left @ right) / scale > _SAME:
            raise AudioFormatError(f"{path} has the same sound on both channels", _CHANNELS_HINT)
        return np.stack(pair if call.caller == "left" else pair[::-1], axis=1)
    lines = []
    for path, delay_s in zip(call.recordings, (0.0, call.agent_delay_s), strict=True):
        samples, rate = _read(path)
        mono = np.asarray(samples.mean(axis=1).round(), np.int16)
        line = resample(mono, rate, SAMPLE_RATE_HZ)
        lines.append((line, round(delay_s * SAMPLE_RATE_HZ)))
    first = min(shift for _, shift in lines)
    length = max(len(line) + shift - first for line, shift in lines)
    both = np.zeros((length, 2), np.int16)
    for side, (line, shift) in enumerate(lines):
        both[shift - first : shift - first + len(line), side] = line
    return both


def _read(path: Path) -> tuple[npt.NDArray[np.int16], int]:
    """Samples, shape (n, channels), and their rate."""
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except (soundfile.LibsndfileError, TypeError):  # a headerless `.raw` is a TypeError
        raise AudioFormatError(
            f"{path} is not a readable audio file",
            "WAV, FLAC, OGG and MP3 can be read; convert others: `ffmpeg -i IN OUT.wav`",
        ) from None
    if not len(samples):
        raise AudioFormatError(f"{path} holds no samples", "check the recording")
    return samples, int(rate)


def _instants(heard: _Heard) -> Iterator[float]:
    """Every known instant of a call."""
    for turn in heard.turns:
        yield from turn.marks.values()
    if heard.greeting_s is not None:
        yield heard.greeting_s
    if heard.start_s is not None:
        yield heard.start_s


def _write(
    run: RunWriter,
    trial: int,
    call: RecordedCall,
    heard: _Heard,
    arm: str,
    recording: RecordingFormat,
) -> None:
    run.trial(trial, heard.room, arm)
    marks = [at_s for turn in heard.turns for at_s in turn.marks.values()]
    if heard.greeting_s is not None:
        marks.append(heard.greeting_s)
        run.mark(trial, Mark("greeting_heard", heard.greeting_s))
    run.note(trial, greeting=heard.greeting, notice=heard.notice, over_agent=heard.over_agent)
    run.outcome(trial, "ok")
    for turn in heard.turns:
        for name, at_s in turn.marks.items():
            run.mark(trial, Mark(name, at_s), turn=turn.number)
        record_turn(run, trial, turn)
        run.outcome(trial, turn.outcome, turn=turn.number)
    if heard.start_s is not None and recording != "none":
        # Read again: the sound of all calls together may be more than the memory holds.
        sound = Recording(_sides(call), heard.start_s)
        write_recording(run, trial, sound, min(marks, default=heard.start_s), recording)
