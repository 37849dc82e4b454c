"""The copy in columns beside a large run file: the same run, never an old one, never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from labvoice.protocol.vocabulary import Mark
from labvoice.runs import copies, reader
from labvoice.runs.run import Run, RunWriter
from tests.unit.recorded_runs import HOST, connect_run, turns_run

TABLES = ("frame", "marks", "notes", "outcomes")

PEAK = """
import resource, sys
from labvoice.report import plots
from labvoice.runs.run import Run
def use(path):
    run = Run.load(path)
    run.summary(), run.warnings, plots.distributions(run)._repr_png_()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = use(sys.argv[1])
print(use(sys.argv[2]) - before)
"""


@pytest.fixture(autouse=True)
def of_small_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run file of any size gets a copy."""
    monkeypatch.setattr(copies, "WORTH", 0)


def copy_in(folder: Path) -> Path:
    """The one copy in a folder."""
    (copy,) = folder.glob(".*.columns")
    return copy


def assert_same(one: Run, other: Run) -> None:
    """Both runs have equal tables and figures."""
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert one.to_json() == other.to_json()
    assert one.complete == other.complete


def refuse(path: Path) -> None:
    """Stands in for the reader where no run file may be parsed."""
    raise AssertionError(f"{path} was parsed")


def test_a_copy_gives_the_run_that_the_file_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tables and figures are equal, for turns as for connections, and no line is parsed."""
    turns_run(tmp_path / "turns.jsonl", arms={"a": {"delay": 0.1}, "b": {"delay": 1}})
    connect_run(tmp_path / "connect.jsonl", trials=5, failures={3: "join_timeout"})
    for name in ("turns.jsonl", "connect.jsonl"):
        raw = Run(*reader.read(tmp_path / name), tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(reader, "read", refuse)
            assert_same(Run.load(tmp_path / name), raw)


def test_the_writer_leaves_the_copy_of_a_run_that_ended(tmp_path: Path) -> None:
    """A run that has just ended loads fast at once."""
    with RunWriter(tmp_path / "run.jsonl", kind="connect", host_facts=HOST) as writer:
        writer.trial(1, "room-1", "default")
    assert copy_in(tmp_path).stat().st_size


def test_a_file_that_changed_is_not_read_from_its_old_copy(tmp_path: Path) -> None:
    """Another size, or another time of change alone, makes the copy stale."""
    path = tmp_path / "run.jsonl"
    turns_run(path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"room":"lab-000"', '"room":"new-000"'), encoding="utf-8")
    os.utime(path, ns=(0, 1))
    assert "new-000" in set(Run.load(path).frame["room"])
    turns_run(tmp_path / "other.jsonl", calls=2)
    path.write_bytes((tmp_path / "other.jsonl").read_bytes())
    assert_same(Run.load(path), Run.load(tmp_path / "other.jsonl"))


def test_a_damaged_copy_is_ignored(tmp_path: Path) -> None:
    """A copy cut short, or of something else, is as good as none."""
    path = tmp_path / "run.jsonl"
    whole = turns_run(path)
    good = copy_in(tmp_path).read_bytes()
    for content in (b"", b"something else", good[: len(good) // 2], good[:-20]):
        copy_in(tmp_path).write_bytes(content)
        assert_same(Run.load(path), whole)


def test_a_copy_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    """The run is written, and loads from its file; nothing else is left behind."""
    path, copy = tmp_path / "run.jsonl", tmp_path / ".run.jsonl.columns"
    # A folder in the copy's place refuses the copy to every user, root included.
    (copy / "in the way").mkdir(parents=True)
    whole = turns_run(path)
    assert_same(Run.load(path), whole)
    assert sorted(each.name for each in tmp_path.iterdir()) == [copy.name, path.name]


def test_a_run_from_elsewhere_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    """A file that came without its copy is read, and its folder stays as it was."""
    whole = turns_run(tmp_path / "run.jsonl")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = elsewhere / "run.jsonl"
    path.write_bytes((tmp_path / "run.jsonl").read_bytes())
    assert_same(Run.load(path), whole)
    assert list(elsewhere.iterdir()) == [path]


def watch_a_run(path: Path) -> None:
    """Loads a run after each of its marks, and interrupts it."""
    with RunWriter(path, kind="connect", host_facts=HOST) as writer:
        writer.trial(1, "room-1", "default")
        for count in range(1, 4):
            writer.mark(1, Mark("click", float(count)))
            assert len(Run.load(path).marks) == count
        raise KeyboardInterrupt


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    """Each load of a growing file has all whole lines, a torn last line is left out, no copy."""
    path = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        watch_a_run(path)
    with path.open("ab") as file:
        file.write(b'{"type":"mark","tri')
    torn = Run.load(path)
    assert len(torn.marks) == 3
    assert any("cut off" in words for words in torn.warnings)
    assert list(tmp_path.iterdir()) == [path]
    with path.open("ab") as file:
        file.write(b'al":1,"mark":"agent_visible","t_s":4.0}\n{"type":"end"}\n')
    assert Run.load(path).marks["mark"].tolist() == ["click"] * 3 + ["agent_visible"]
    assert Run.load(path).complete


def test_memory_stays_in_proportion_to_the_file(tmp_path: Path) -> None:
    """To load, summarise and draw 100,000 turns needs a bounded multiple of their bytes."""
    for name, calls in (("small", 1), ("large", 10_000)):
        path = tmp_path / f"{name}.jsonl"
        with RunWriter(path, kind="turns", host_facts=HOST):
            header = path.read_text(encoding="utf-8")
        with path.open("w", encoding="utf-8") as file:
            file.write(header)
            for trial in range(calls):
                of = f'"trial":{trial}'
                file.write(
                    f'{{"type":"trial",{of},"room":"r{trial}","arm":"default","unit":"{trial}"}}\n'
                )
                for turn in range(10):
                    for mark, at_s in (("user_speech_end", 2), ("reply_heard", 3 + turn / 7)):
                        file.write(
                            f'{{"type":"mark",{of},"turn":{turn},"mark":"{mark}","t_s":{at_s}}}\n'
                        )
                    file.write(f'{{"type":"outcome",{of},"turn":{turn},"outcome":"ok"}}\n')
            file.write('{"type":"end"}\n')
    large = tmp_path / "large.jsonl"
    for _ in ("from the run file", "from its copy"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tmp_path / "small.jsonl", large],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert int(done.stdout) * 1024 < 2 * large.stat().st_size + (128 << 20)
        copies.make(large)
