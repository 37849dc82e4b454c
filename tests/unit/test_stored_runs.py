"""The runs in a folder: what is listed, and what a removal removes and leaves alone."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labvoice.cli import app
from labvoice.errors import UsageError
from labvoice.runs.stored import parse_age, parse_size, stored_runs
from labvoice.runs.writer import RunWriter

SOUND = b"x" * 1000


def made(path: Path, days: float, recordings: int = 2, *, ended: bool = True) -> Path:
    """A run that began so many days ago, with its recordings beside it."""
    with RunWriter(path, kind="turns", host_facts={}, run_id=path.stem) as run:
        for trial in range(recordings):
            run.trial(trial, "room", "default")
            place = Path(path.stem) / f"{trial:04}.ogg"
            (path.parent / place).parent.mkdir(exist_ok=True)
            (path.parent / place).write_bytes(SOUND)
            run.note(trial, recording=place.as_posix(), recording_start_s=0.0)
            run.outcome(trial, "ok")
    text = path.read_text(encoding="utf-8")
    if not ended:
        text = "".join(text.splitlines(keepends=True)[:-1])
    started = json.loads(text.splitlines()[0])["started_at"]
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    path.write_text(text.replace(started, at), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three runs of 1, 10 and 30 days, one of them in a folder below, and files of the user's."""
    runs = tmp_path / "runs"
    made(runs / "new.jsonl", 1)
    made(runs / "try" / "middle.jsonl", 10)
    made(runs / "old.jsonl", 30)
    (runs / "mine.jsonl").write_text('{"type": "note", "recording": "mine.wav"}\n')
    (runs / "mine.wav").write_bytes(SOUND)
    (runs / "old" / "0009.ogg").write_bytes(SOUND)  # no run names it
    return runs


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def prune(folder: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["runs", "prune", str(folder), *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_runs_are_listed_newest_first_with_their_sizes(folder: Path, tmp_path: Path) -> None:
    """A file that is no run is not among them."""
    result = CliRunner().invoke(app, ["runs", "list", str(folder), "--json", str(tmp_path / "l")])
    assert "3 runs" in result.output
    listed = json.loads((tmp_path / "l").read_text())["runs"]
    assert [run["run_id"] for run in listed] == ["new", "middle", "old"]
    assert all(run["recordings_bytes"] == 2 * len(SOUND) for run in listed)
    assert all(run["size_bytes"] > 2 * len(SOUND) for run in listed)


def test_a_dry_run_removes_nothing(folder: Path) -> None:
    """It says what would go, and how much."""
    before = left(folder)
    said = prune(folder, "--older-than", "14d", "--dry-run")
    assert "would remove" in said
    assert "old.jsonl, 2." in said
    assert "would remove 1 of 3 runs" in said
    assert left(folder) == before


def test_only_what_a_run_made_is_removed(folder: Path) -> None:
    """The user's files stay, also beside the recordings of a removed run; empty folders go."""
    prune(folder, "--keep", "0")
    assert left(folder) == {"mine.jsonl", "mine.wav", "old/0009.ogg"}
    assert not (folder / "new").exists()


def test_the_oldest_go_first_until_the_rest_fits(folder: Path) -> None:
    """--keep counts from the newest, --max-size removes from the oldest."""
    size = sum(run.size for run in stored_runs(folder))
    prune(folder, "--max-size", f"{size - 1}B")
    assert [run.run_id for run in stored_runs(folder)] == ["new", "middle"]
    prune(folder, "--keep", "1")
    assert [run.run_id for run in stored_runs(folder)] == ["new"]


def test_recordings_alone_can_be_removed(folder: Path) -> None:
    """The run files stay, and still load."""
    said = prune(folder, "--keep", "1", "--recordings-only")
    assert "removed 2 of 3 runs, 4.0 KB" in said
    kept = {"new.jsonl", "new/0000.ogg", "new/0001.ogg", "try/middle.jsonl", "old.jsonl"}
    assert left(folder) == kept | {"mine.jsonl", "mine.wav", "old/0009.ogg"}


def test_a_run_under_way_is_never_removed(tmp_path: Path) -> None:
    """A run without its end that was written to lately stays; one that crashed long ago goes."""
    made(tmp_path / "now.jsonl", 30, ended=False)
    crashed = made(tmp_path / "crashed.jsonl", 30, ended=False)
    hours_ago = time.time() - 7200
    os.utime(crashed, (hours_ago, hours_ago))
    prune(tmp_path, "--keep", "0")
    assert [run.run_id for run in stored_runs(tmp_path)] == ["now"]


def test_links_and_paths_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """A recording that is named elsewhere, or is a link, is not the run's."""
    outside = tmp_path / "outside.ogg"
    outside.write_bytes(SOUND)
    path = tmp_path / "runs" / "run.jsonl"
    with RunWriter(path, kind="turns", host_facts={}) as run:
        for trial, place in enumerate(("../outside.ogg", "run/0001.ogg", str(outside))):
            run.trial(trial, "room", "default")
            run.note(trial, recording=place, recording_start_s=0.0)
            run.outcome(trial, "ok")
    (tmp_path / "runs" / "run").mkdir()
    (tmp_path / "runs" / "run" / "0001.ogg").symlink_to(outside)
    (tmp_path / "runs" / "link.jsonl").symlink_to(path)
    prune(tmp_path / "runs", "--keep", "0")
    assert outside.read_bytes() == SOUND
    assert left(tmp_path / "runs") == {"run/0001.ogg"}


def test_a_limit_is_needed_and_must_be_one(folder: Path) -> None:
    """No limit, a time without a unit and a size of an unknown one are wrong use."""
    result = CliRunner().invoke(app, ["runs", "prune", str(folder)])
    assert isinstance(result.exception, UsageError)
    for parse, text in ((parse_age, "14"), (parse_age, "-1d"), (parse_size, "2XB")):
        with pytest.raises(UsageError, match=text):
            parse(text)
    assert parse_age("2w") == timedelta(weeks=2)
    assert parse_size("1.5 gb") == 1_500_000_000
    with pytest.raises(UsageError, match="no folder"):
        stored_runs(folder / "none")
