"""Exports a run to the formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd

from labvoice.errors import RunFileError, UsageError, writing
from labvoice.runs.run import Run


def to_audacity(run: Run, out: Path | None) -> list[Path]:
    """Writes a label track for each recording: its turns as regions and its marks as points.

    In Audacity: open the recording, then *File, Import, Labels*.

    Args:
        out: The folder to write to; each recording's own when not given.

    Returns:
        The written files, `NNNN.txt` as the recording is `NNNN.ogg`.

    Raises:
        RunFileError: The run has no recordings.
    """
    recordings = run.recordings
    if recordings.empty:
        raise RunFileError(
            "the run has no recordings",
            "LABVOICE_RECORDING=ogg records calls; the folder of a run's name must be beside it",
        )
    written = []
    for row in recordings.to_dict("records"):
        recording = Path(row["path"])
        zero_s = float(row["start_s"])
        lines = [
            f"{label.start_s - zero_s:.6f}\t{label.end_s - zero_s:.6f}\t{label.text}"
            for label in labels(run, int(row["trial"]))
        ]
        path = (out or recording.parent) / f"{recording.stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        written.append(path)
    return written


def to_parquet(run: Run, out: Path | None) -> list[Path]:
    """Writes the frame as a Parquet file; `out` is the file, beside the run file when not given."""
    path = out or run.path.with_suffix(".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    return [run.to_parquet(path)]


FORMATS: Final[dict[str, Callable[[Run, Path | None], list[Path]]]] = {
    "audacity": to_audacity,
    "parquet": to_parquet,
}
"""What writes a run in another format, by the format's name: of a run, and where to write, it
returns the files that it has written."""


def export(run: Run, to: str, out: Path | None = None) -> list[Path]:
    """Writes a run in another format.

    Args:
        to: One of :data:`FORMATS`.
        out: Where to; beside the run when not given.

    Returns:
        The written files.

    Raises:
        UsageError: The format is unknown, or a file cannot be written.
        RunFileError: The run has nothing of what the format holds.
    """
    if to not in FORMATS:
        raise UsageError(
            f"the format {to!r} is unknown", f"one of {', '.join(sorted(FORMATS))}; or `otlp`"
        )
    with writing(out or run.path, "choose another `--out`"):
        return FORMATS[to](run, out)


class Label(NamedTuple):
    """A region of a call, or a point where both instants are the same; seconds since the click."""

    start_s: float
    end_s: float
    text: str


def labels(run: Run, trial: int) -> list[Label]:
    """Returns the labels of a call: what was said and answered as regions, and every mark."""
    marks = run.marks
    marks = marks[marks["trial"] == trial]
    found = [
        Label(at_s, at_s, name if pd.isna(turn) else f"{name} (turn {int(turn) + 1})")
        for name, turn, at_s in zip(marks["mark"], marks["turn"], marks["t_s"], strict=True)
    ]
    return sorted([*found, *_regions(run, trial, marks)])


def _regions(run: Run, trial: int, marks: pd.DataFrame) -> Iterator[Label]:
    notes = run.notes.reindex(columns=["trial", "turn", "said", "transcript", "reply"])
    notes = notes[(notes["trial"] == trial) & notes["turn"].notna()]
    for row in notes.to_dict("records"):
        of_turn = marks[marks["turn"] == row["turn"]]
        at_s = dict(zip(of_turn["mark"], of_turn["t_s"], strict=True))
        number = int(row["turn"]) + 1
        for who, words, start, end in (
            ("caller", row["said"] or row["transcript"], "user_speech_start", "user_speech_end"),
            ("agent", row["reply"], "reply_heard", "reply_end"),
        ):
            if {start, end} <= set(at_s) and isinstance(words, str):
                text = " ".join(f"{who} {number}: {words}".split())  # a tab or a line would end it
                yield Label(at_s[start], at_s[end], text)
