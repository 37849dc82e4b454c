"""Audio players of recordings: both waveforms, marks and transcripts on one time axis."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from labvoice.errors import RunFileError
from labvoice.runs.endpoints import Segment, find_segments
from labvoice.runs.tables import template

if TYPE_CHECKING:
    from labvoice.runs.run import Run

_BINS: Final = 900
"""Points of a waveform: about one for each pixel of the page's width."""
_EMBEDDED_FAILURES: Final = 4
"""How many recordings of failed calls are embedded; the others are linked."""
_TYPES: Final = {".ogg": "audio/ogg", ".wav": "audio/wav"}
_SAID_AT: Final = ("user_speech_start", "interruption_start", "sound_start")
"""Where the caller's words of a turn begin, or the sound of a probe."""
_LEAST_BOTH_S: Final = 0.1
"""A shorter time in which both sides sound is the edge of a word."""


class Caption(NamedTuple):
    """Words of a call.

    Attributes:
        who: `caller` or `agent`.
        at_s: When they begin, in seconds on the same clock as the marks.
        cut: Whether they were interrupted.
    """

    who: str
    text: str
    at_s: float
    cut: bool = False


class MarkLine(NamedTuple):
    """A mark on the time axis.

    Attributes:
        name: Of the mark, with its turn.
        at_s: Since the recording's first sample, in seconds.
        x: Place on the axis, 0 to :data:`_BINS`.
        turn: Whether it belongs to a turn, not to the connection.
    """

    name: str
    at_s: float
    x: float
    turn: bool


class PlacedCaption(NamedTuple):
    """A :class:`Caption` on the time axis, with the width up to the next one of that side."""

    who: str
    text: str
    at_s: float
    cut: bool
    x: float
    width: float


@dataclass(frozen=True, eq=False)
class Player:
    """A recording with its player; shown by notebooks and embedded in reports.

    Attributes:
        title: Which call it is, and why it is shown.
        source: The sound, as a data URI.
        start_s: First sample, in seconds since the click.
        length_s: Its length, in seconds.
        caller: Path of the caller's waveform, x from 0 to :data:`_BINS`, y from 12 to 52.
        agent: Path of what the caller heard, y from 52 to 92.
        marks: Marks within it, oldest first.
        words: What was said, oldest first.
        both: Times in which both sides sound, as (x, width).
        ticks: Seconds since the click, with their places on the axis.
    """

    title: str
    source: str
    start_s: float
    length_s: float
    caller: str
    agent: str
    marks: list[MarkLine]
    words: list[PlacedCaption]
    both: list[tuple[float, float]]
    ticks: list[tuple[int, float]]

    def __repr__(self) -> str:
        heads = [f"{self.title}: {self.length_s:.1f} s, both sides, {len(self.marks)} marks"]
        lines = (
            f"  {each.at_s + self.start_s:6.1f} s  {each.who}: {each.text}"
            f"{' (interrupted)' if each.cut else ''}"
            for each in self.words
        )
        return "\n".join([*heads, *lines])

    def _repr_html_(self) -> str:
        return template("player.html.j2").render(player=self)


def player(
    title: str,
    samples: npt.NDArray[np.float32],
    rate: int,
    sound: bytes,
    kind: str,
    start_s: float,
    marks: Iterable[tuple[str, int | None, float]],
    said: Iterable[Caption],
) -> Player:
    """Returns a player.

    Args:
        samples: Shape (frames, 2), full scale 1.0.
        rate: Samples per second.
        sound: The same, as a file.
        kind: That file's suffix, `.ogg` or `.wav`.
        start_s: Instant of the first sample.
        marks: Name, turn, and instant on the same clock.
        said: What was said, on the same clock.
    """
    length_s = len(samples) / rate
    scale = _BINS / length_s if length_s else 0.0
    lines = [
        MarkLine(
            name if turn is None else f"{name}, turn {turn}", at_s, at_s * scale, turn is not None
        )
        for name, turn, instant_s in sorted(marks, key=lambda mark: mark[2])
        if 0 <= (at_s := instant_s - start_s) <= length_s
    ]
    step = next((s for s in (1, 2, 5, 10, 30, 60) if length_s / s <= 16), 300)
    seconds = range(math.ceil(start_s / step) * step, math.floor(start_s + length_s) + 1, step)
    sides = [np.ascontiguousarray(samples[:, side]) for side in (0, -1)]
    return Player(
        title,
        f"data:{_TYPES[kind]};base64,{base64.b64encode(sound).decode()}",
        start_s,
        length_s,
        _waveform(sides[0], 32),
        _waveform(sides[1], 72),
        lines,
        _placed(said, start_s, length_s, scale),
        [
            (start * scale, (end - start) * scale)
            for start, end in _both(*(find_segments(side, rate) for side in sides))
        ],
        [(second, (second - start_s) * scale) for second in seconds],
    )


def _placed(
    said: Iterable[Caption], start_s: float, length_s: float, scale: float
) -> list[PlacedCaption]:
    inside = sorted(
        (each for each in said if 0 <= each.at_s - start_s <= length_s and each.text.strip()),
        key=lambda each: each.at_s,
    )
    placed = []
    for number, (who, text, instant_s, cut) in enumerate(inside):
        at_s = instant_s - start_s
        following = (each.at_s - start_s for each in inside[number + 1 :] if each.who == who)
        width = (next(following, length_s) - at_s) * scale
        placed.append(PlacedCaption(who, " ".join(text.split()), at_s, cut, at_s * scale, width))
    return placed


def _both(caller: Sequence[Segment], agent: Sequence[Segment]) -> list[Segment]:
    """Where both sides sound."""
    return [
        Segment(start_s, end_s)
        for one in caller
        for other in agent
        if (end_s := min(one.end_s, other.end_s)) - (start_s := max(one.start_s, other.start_s))
        >= _LEAST_BOTH_S
    ]


def _waveform(samples: npt.NDArray[np.float32], middle: float) -> str:
    """The path of a waveform around a height, 40 units high at full scale."""
    pieces: Sequence[npt.NDArray[np.float32]] = np.array_split(samples, _BINS)
    # The square root shows what is quiet, which the ear hears as well.
    heights = [18 * math.sqrt(float(np.abs(piece).max(initial=0.0))) for piece in pieces]
    upper = [f"{x},{middle - height:.1f}" for x, height in enumerate(heights)]
    lower = [f"{x},{middle + height:.1f}" for x, height in reversed(list(enumerate(heights)))]
    return f"M{' '.join(upper)} {' '.join(lower)}Z"


# -- of a run ---------------------------------------------------------------------------------


def listen(run: Run, trial: int) -> Player:
    """Returns the player of a recorded call.

    Raises:
        RunFileError: There is no recording of that call, or it cannot be read.
    """
    recordings = {int(row["trial"]): row for row in run.recordings.to_dict("records")}
    if trial not in recordings:
        known = ", ".join(map(str, recordings)) or "none"
        raise RunFileError(f"call {trial} has no recording", f"recorded calls: {known}")
    row = recordings[trial]
    try:
        return _of_trial(run, trial, _title(run, trial), row["path"], row["start_s"])
    except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
        raise RunFileError(f"{row['path']} cannot be read: {error}") from None


def _title(run: Run, trial: int) -> str:
    outcomes = run.outcomes
    words = outcomes.loc[outcomes["trial"] == trial, "outcome"].unique()
    return f"Call {trial}: {', '.join(map(str, words))}"


def players(run: Run) -> list[Player]:
    """Returns players of the median and the slowest call of each arm, and of failed calls.

    A recording that cannot be read has none.
    """
    found = []
    recordings = {int(row["trial"]): row for row in run.recordings.to_dict("records")}
    for trial, title in _chosen(run, list(recordings)).items():
        path, start_s = recordings[trial]["path"], recordings[trial]["start_s"]
        try:
            found.append(_of_trial(run, trial, title, path, start_s))
        except (OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
            continue
    return found


def links(run: Run, page: Path) -> list[tuple[int, str]]:
    """Returns the recordings' trials and addresses relative to a page."""
    rows = run.recordings.to_dict("records")
    return [
        (int(row["trial"]), Path(os.path.relpath(row["path"], page.parent)).as_posix())
        for row in rows
    ]


def _chosen(run: Run, recorded: Sequence[int]) -> dict[int, str]:
    """The trials to embed with their titles."""
    outcomes = run.outcomes
    outcomes = outcomes[~outcomes["warmup"] & outcomes["trial"].isin(recorded)]
    frame = run.frame
    counted = frame[~frame["warmup"] & frame["plausible"] & frame["trial"].isin(recorded)]
    counted = counted.dropna(subset="duration_s")
    main = ("voice_to_voice", "yield_latency", "time_to_greeting")
    stage = next((name for name in main if (counted["stage"] == name).any()), main[-1])
    times = counted[counted["stage"] == stage]
    chosen: dict[int, list[str]] = {}
    for arm, rows in times.groupby("arm", observed=True, sort=False):
        of_arm = f" of {arm}" if len(run.arms) > 1 else ""
        slowest = rows.groupby("trial")["duration_s"].max().sort_values()
        chosen.setdefault(int(slowest.index[(len(slowest) - 1) // 2]), []).append(f"median{of_arm}")
        if len(slowest) > 1:
            chosen.setdefault(int(slowest.index[-1]), []).append(f"slowest{of_arm}")
    failed = outcomes[outcomes["outcome"] != "ok"].drop_duplicates("trial")
    for row in failed.head(_EMBEDDED_FAILURES).to_dict("records"):
        chosen.setdefault(int(row["trial"]), []).append(str(row["outcome"]))
    return {trial: f"Call {trial}: {', '.join(why)}" for trial, why in sorted(chosen.items())}


def _of_trial(run: Run, trial: int, title: str, path: Path, start_s: float) -> Player:
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    marks = run.marks
    marks = marks[marks["trial"] == trial]
    of_trial = [
        (str(mark), None if pd.isna(turn) else int(turn), float(at_s))
        for mark, turn, at_s in zip(marks["mark"], marks["turn"], marks["t_s"], strict=True)
    ]
    said = _said(run, trial, {(name, turn): at_s for name, turn, at_s in of_trial})
    return player(title, samples, rate, path.read_bytes(), path.suffix, start_s, of_trial, said)


def _said(run: Run, trial: int, at_s: dict[tuple[str, int | None], float]) -> list[Caption]:
    names = ["trial", "turn", "greeting", "said", "transcript", "reply"]
    notes = run.notes.reindex(columns=names)
    outcomes = run.outcomes
    cut = set(
        outcomes.loc[
            (outcomes["trial"] == trial) & (outcomes["outcome"] == "interrupted"), "turn"
        ].dropna()
    )
    said = []
    for row in notes[notes["trial"] == trial].to_dict("records"):
        turn = None if pd.isna(row["turn"]) else int(row["turn"])
        for who, marks, words in (
            ("agent", ("greeting_heard",), row["greeting"]),
            ("caller", _SAID_AT, _text(row["said"]) or row["transcript"]),
            ("agent", ("reply_heard", "new_reply_heard"), row["reply"]),
        ):
            begins = [at_s[mark, turn] for mark in marks if (mark, turn) in at_s]
            if begins:
                said.append(Caption(who, _text(words), begins[0], who == "agent" and turn in cut))
    return said


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
