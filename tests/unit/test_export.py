"""Runs in the formats of other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from labvoice.caller.recorder import Recording
from labvoice.cli import app
from labvoice.errors import RunFileError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.export import export
from labvoice.runs.run import Run, RunWriter


def recorded(path: Path) -> Path:
    """A call of one turn; the recording begins 0.5 s after the click."""
    with RunWriter(path, kind="call", host_facts={}) as run:
        run.trial(0, "room", "default")
        run.mark(0, Mark("click", 100.0))
        run.mark(0, Mark("greeting_heard", 100.75))
        run.outcome(0, "ok")
        for name, at_s in (
            ("user_speech_start", 102.0),
            ("user_speech_end", 103.0),
            ("reply_heard", 103.5),
            ("reply_end", 105.0),
        ):
            run.mark(0, Mark(name, at_s), turn=0)
        run.note(0, 0, said="Are you\topen?", reply="Yes,\nwe are.")
        run.outcome(0, "ok", turn=0)
        Recording(np.full((24000 * 6, 2), 900, np.int16), 100.5).write(
            path.with_suffix("") / "0000.ogg"
        )
        run.note(0, recording=f"{path.stem}/0000.ogg", recording_start_s=0.5)
    return path


def test_a_label_track_has_turns_and_marks_on_the_recordings_axis(tmp_path: Path) -> None:
    """Each line is start, end and text, apart by tabs, in seconds of the recording."""
    path = recorded(tmp_path / "run.jsonl")
    result = CliRunner().invoke(app, ["export", str(path), "--to", "audacity"])
    assert result.exit_code == 0
    lines = (tmp_path / "run" / "0000.txt").read_text(encoding="utf-8").splitlines()
    fields = [line.split("\t") for line in lines]
    assert [float(start) for start, _, _ in fields] == sorted(float(one[0]) for one in fields)
    assert ["0.250000", "0.250000", "greeting_heard"] in fields
    assert ["1.500000", "2.500000", "caller 1: Are you open?"] in fields
    assert ["3.000000", "4.500000", "agent 1: Yes, we are."] in fields
    assert ["3.000000", "3.000000", "reply_heard (turn 1)"] in fields


def test_parquet_is_the_frame(tmp_path: Path) -> None:
    """It lies beside the run, or where one says."""
    path = recorded(tmp_path / "run.jsonl")
    run = Run.load(path)
    for written in export(run, "parquet") + export(run, "parquet", tmp_path / "new" / "a.parquet"):
        assert len(pd.read_parquet(written)) == len(run.frame)
    assert (tmp_path / "run.parquet").is_file()


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    """An unknown format, no recordings, and a place that cannot be written."""
    run = Run.load(recorded(tmp_path / "run.jsonl"))
    with pytest.raises(UsageError, match="'midi'") as caught:
        export(run, "midi")
    assert "audacity, parquet" in caught.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        export(run, "audacity", tmp_path / "file")
    (tmp_path / "run" / "0000.ogg").unlink()
    with pytest.raises(RunFileError, match="no recordings"):
        export(run, "audacity")
