"""Runs in a folder: list, sizes, and removal of old ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from labvoice.errors import LabvoiceError, UsageError
from labvoice.runs.copies import copy_of
from labvoice.runs.lines import RunLine

UNDER_WAY: Final = timedelta(hours=1)
"""A run without its last line that was written to within this time may still be under way."""
_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_TIMES: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class StoredRun:
    """A run on the disk.

    Attributes:
        under_way: Whether it may still be written to.
        recordings: The existing recordings that it names, in the folder of its name.
        size: Of its file and what belongs to it, recordings included, in bytes.
        recordings_size: Of the recordings, in bytes.
    """

    path: Path
    run_id: str
    kind: str
    started: datetime
    under_way: bool
    recordings: tuple[Path, ...]
    size: int
    recordings_size: int


def stored_runs(folder: Path) -> list[StoredRun]:
    """Returns the runs in a folder and the folders in it, newest first.

    A file is a run if its first line says so; what else lies there is left alone.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "runs are written to `runs/`")
    found = (_stored(path) for path in folder.rglob("*.jsonl"))
    return sorted((run for run in found if run is not None), key=lambda run: run.started)[::-1]


def _stored(path: Path) -> StoredRun | None:
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            header = RunLine.model_validate_json(file.readline())
            last = b""
            named = set()
            for line in file:
                last = line
                if b'"recording"' in line:
                    named.add(str(json.loads(line).get("facts", {}).get("recording", "")))
        started = datetime.fromisoformat(header.started_at)
        stat = path.stat()
    except (OSError, ValueError, AttributeError, ValidationError):
        return None
    folder = path.with_suffix("")
    recordings = tuple(
        recording
        for name in sorted(named)
        if name and _is_own(recording := path.parent / name, folder)
    )
    sound = sum(each.stat().st_size for each in recordings)
    copy = copy_of(path)
    copied = copy.stat().st_size if copy.is_file() else 0
    written = datetime.fromtimestamp(stat.st_mtime, UTC)
    ended = b'"type":"end"' in last.replace(b" ", b"")
    return StoredRun(
        path,
        header.run_id,
        header.kind,
        started if started.tzinfo else started.replace(tzinfo=UTC),
        not ended and datetime.now(UTC) - written < UNDER_WAY,
        recordings,
        stat.st_size + copied + sound,
        sound,
    )


def _is_own(recording: Path, folder: Path) -> bool:
    """Whether it is a file in the run's own folder, and no link to elsewhere."""
    return (
        recording.parent == folder
        and not folder.is_symlink()
        and not recording.is_symlink()
        and recording.is_file()
    )


def to_remove(
    runs: Sequence[StoredRun],
    *,
    keep: int | None = None,
    older_than: timedelta | None = None,
    max_size: int | None = None,
    recordings_only: bool = False,
) -> list[StoredRun]:
    """Returns the runs that any of the limits removes, oldest first.

    Args:
        runs: Newest first, as :func:`stored_runs` returns them; one that may be under way is never
            removed.
        keep: So many of the newest stay.
        older_than: What began longer ago goes.
        max_size: The oldest go until all runs together have no more than so many bytes.
        recordings_only: Only recordings are removed: runs without any are passed over.

    Raises:
        UsageError: There is no limit.
    """
    if keep is None and older_than is None and max_size is None:
        raise UsageError(
            "nothing says which runs to remove", "give `--keep`, `--older-than` or `--max-size`"
        )
    now = datetime.now(UTC)
    removable = [
        run for run in runs if not run.under_way and (run.recordings or not recordings_only)
    ]
    gone = set()
    for run in removable:
        beyond = keep is not None and runs.index(run) >= keep
        old = older_than is not None and now - run.started > older_than
        if beyond or old:
            gone.add(run.path)
    freed = {run.path: run.recordings_size if recordings_only else run.size for run in runs}
    left = sum(run.size for run in runs) - sum(freed[path] for path in gone)
    for run in reversed(removable):
        if max_size is None or left <= max_size:
            break
        if run.path not in gone:
            gone.add(run.path)
            left -= freed[run.path]
    return [run for run in reversed(runs) if run.path in gone]


def remove(run: StoredRun, *, recordings_only: bool = False) -> None:
    """Removes a run, or only its recordings; its folder too where nothing else is in it.

    Raises:
        LabvoiceError: A file cannot be removed.
    """
    paths, copy = list(run.recordings), copy_of(run.path)
    if not recordings_only:
        paths += [copy, run.path] if copy.is_file() and not copy.is_symlink() else [run.path]
    try:
        for path in paths:
            path.unlink(missing_ok=True)
        folder = run.path.with_suffix("")
        if run.recordings and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise LabvoiceError(
            f"{error.filename} cannot be removed: {error.strerror}", "check who owns it"
        ) from None


def parse_age(text: str) -> timedelta:
    """Returns a time such as `14d`; units are m, h, d and w.

    Raises:
        UsageError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no time", "such as 14d, 12h or 2w")
    try:
        return timedelta(**{_TIMES[match[2]]: float(match[1])})
    except OverflowError:
        raise UsageError(f"{text!r} is too long a time", "such as 14d, 12h or 2w") from None


def parse_size(text: str) -> int:
    """Returns a size such as `2GB` in bytes; units are B, KB, MB, GB and TB, of 1000.

    Raises:
        UsageError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"{text!r} is no size", "such as 2GB or 500MB")
    return round(float(match[1]) * _UNITS[match[2]])


def size_text(size: float) -> str:
    """Returns a size with its unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
