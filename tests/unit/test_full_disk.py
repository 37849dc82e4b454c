"""A disk that is full: nothing is lost that was measured, and it is said."""

from __future__ import annotations

import errno
import io
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labvoice.caller.recorder import Recording
from labvoice.errors import LabvoiceError, RunFileError
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.run import Run, RunWriter


class Disk:
    """A disk that holds one folder.

    Attributes:
        room: How large a file in it may be, in bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.room = 10**9

    def open(self, path: Path, mode: str) -> io.FileIO:
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                room = disk.room if path.parent == disk.folder else 10**9
                taken = bytes(data)[: max(0, room - self.tell())]
                if not taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(taken)

        return File(path, mode.replace("b", ""))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk whose room a test sets."""
    disk = Disk(tmp_path)
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *_, **__: disk.open(self, mode))
    return disk


def one_call(path: Path) -> RunWriter:
    run = RunWriter(path, kind="call", host_facts={})
    run.trial(0, "room", "default")
    run.mark(0, Mark("click", 100.0))
    return run


def test_lines_that_a_full_disk_refuses_are_written_when_it_has_room(
    tmp_path: Path, disk: Disk
) -> None:
    """The call goes on, the trouble is told, and later every mark is there."""
    path = tmp_path / "run.jsonl"
    run = one_call(path)
    assert run.trouble == ""
    disk.room = path.stat().st_size + 10  # a line is cut
    run.mark(0, Mark("room_connected", 100.2))
    run.mark(0, Mark("agent_visible", 100.4))
    assert "No space left" in run.trouble
    disk.room = 10**9
    run.outcome(0, "ok")
    run.close()
    assert run.trouble == ""
    marks = Run.load(path).marks
    assert list(marks["mark"]) == ["click", "room_connected", "agent_visible"]


def test_a_run_whose_disk_stays_full_is_kept_elsewhere(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file, and where the whole run is."""
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    run = one_call(tmp_path / "run.jsonl")
    disk.room = (tmp_path / "run.jsonl").stat().st_size
    run.mark(0, Mark("room_connected", 100.2))
    run.outcome(0, "ok")
    with pytest.raises(RunFileError, match=r"run\.jsonl cannot be written: No space") as caught:
        run.close()
    monkeypatch.undo()
    (kept,) = (tmp_path / "spare").rglob("*.jsonl")
    assert str(kept) in caught.value.hint
    loaded = Run.load(kept)
    assert loaded.complete
    assert list(loaded.marks["mark"]) == ["click", "room_connected"]


def test_a_run_that_cannot_begin_says_so_at_once(tmp_path: Path, disk: Disk) -> None:
    """Nobody measures for an hour what the disk will not take."""
    disk.room = 0
    with pytest.raises(RunFileError, match="No space"):
        RunWriter(tmp_path / "run.jsonl", kind="call", host_facts={})
    assert not (tmp_path / "run.jsonl").exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files of more than 1000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".ogg", ".wav"])
@pytest.mark.usefixtures("small_files")
def test_a_recording_that_does_not_fit_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    """The error names the file and the cause, and no half of it stays on the disk."""
    noise = np.random.default_rng(1).integers(-9000, 9000, (24000, 2)).astype(np.int16)
    path = tmp_path / f"call{suffix}"
    with pytest.raises(LabvoiceError, match=f"call{suffix} cannot be written"):
        Recording(noise, 0.0).write(path)
    assert not path.exists()
