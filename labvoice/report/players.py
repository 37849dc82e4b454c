"""Players of recordings: the waveform of both sides and the marks on one time axis."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from labvoice.runs.run import Run

_BINS: Final = 900
"""Points of a waveform: about one for each pixel of the page's width."""
_EMBEDDED_FAILURES: Final = 4
"""How many recordings of failed calls are embedded; the others are linked."""
_TYPES: Final = {".ogg": "audio/ogg", ".wav": "audio/wav"}


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


class Player(NamedTuple):
    """A recording that the page holds.

    Attributes:
        title: Which call it is, and why it is shown.
        source: The sound, as a data URI.
        start_s: First sample, in seconds since the click.
        length_s: Its length, in seconds.
        caller: Path of the caller's waveform, x from 0 to :data:`_BINS`, y from 0 to 40.
        agent: Path of what the caller heard, y from 40 to 80.
        marks: Marks within it, oldest first.
        ticks: Seconds since the click, with their places on the axis.
    """

    title: str
    source: str
    start_s: float
    length_s: float
    caller: str
    agent: str
    marks: list[MarkLine]
    ticks: list[tuple[int, float]]


def players(run: Run) -> list[Player]:
    """Returns players of the median and the slowest call of each arm, and of failed calls.

    A recording that cannot be read has none.
    """
    found = []
    recordings = {int(row["trial"]): row for row in run.recordings.to_dict("records")}
    for trial, title in _chosen(run, list(recordings)).items():
        path, start_s = recordings[trial]["path"], recordings[trial]["start_s"]
        try:
            found.append(_player(run, trial, title, path, start_s))
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
    counted = frame[~frame["warmup"] & frame["trial"].isin(recorded)].dropna(subset="duration_s")
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


def _player(run: Run, trial: int, title: str, path: Path, start_s: float) -> Player:
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    length_s = len(samples) / rate
    content = base64.b64encode(path.read_bytes()).decode()
    marks = run.marks
    lines = [
        MarkLine(
            str(row["mark"]) if pd.isna(row["turn"]) else f"{row['mark']}, turn {row['turn']}",
            at_s,
            at_s / length_s * _BINS,
            not pd.isna(row["turn"]),
        )
        for row in marks[marks["trial"] == trial].sort_values("t_s").to_dict("records")
        if 0 <= (at_s := float(row["t_s"]) - start_s) <= length_s
    ]
    step = next((s for s in (1, 2, 5, 10, 30, 60) if length_s / s <= 16), 300)
    seconds = range(math.ceil(start_s / step) * step, math.floor(start_s + length_s) + 1, step)
    return Player(
        title,
        f"data:{_TYPES[path.suffix]};base64,{content}",
        start_s,
        length_s,
        _waveform(samples[:, 0], 20),
        _waveform(samples[:, -1], 60),
        lines,
        [(second, (second - start_s) / length_s * _BINS) for second in seconds],
    )


def _waveform(samples: npt.NDArray[np.float32], middle: float) -> str:
    """The path of a waveform around a height, 40 units high at full scale."""
    pieces: Sequence[npt.NDArray[np.float32]] = np.array_split(samples, _BINS)
    # The square root shows what is quiet, which the ear hears as well.
    heights = [18 * math.sqrt(float(np.abs(piece).max(initial=0.0))) for piece in pieces]
    upper = [f"{x},{middle - height:.1f}" for x, height in enumerate(heights)]
    lower = [f"{x},{middle + height:.1f}" for x, height in reversed(list(enumerate(heights)))]
    return f"M{' '.join(upper)} {' '.join(lower)}Z"
