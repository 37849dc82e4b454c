"""Writes a run file as the run happens: a crash loses nothing that was recorded."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from labvoice.errors import RunFileError, writing
from labvoice.protocol.vocabulary import Mark
from labvoice.runs import copies, host
from labvoice.runs.lines import (
    EndLine,
    Line,
    MarkLine,
    NoteLine,
    OutcomeLine,
    RunLine,
    StageLine,
    TrialLine,
)


def check_new(path: Path) -> None:
    """Checks that a run may be written there.

    Raises:
        RunFileError: There is a file already.
    """
    if path.exists():
        raise RunFileError(
            f"{path} exists already, and a run is never written over",
            "choose another name, or move the file away",
        )


class RunWriter:
    """Writes a run file: one JSON line for each thing that happens, flushed at once.

    What a full disk refuses is kept in memory, and written with the next line that it takes.

    Args:
        path: The file to make; its folder is made too.
        kind: What is measured: `connect`, `turns`, `burst`, …
        loop: `closed` (the next trial waits for the last) or `open` (a constant rate).
        config: What was asked for; a `command` in it is shown as the way to reproduce the run.
        arms: Each configuration's name and its columns in the frame.
        host_facts: As :func:`labvoice.runs.host.facts` gives them; taken now when not given.
        run_id: Made from the time and the kind when not given.
        started: When the run began, and the same instant on the clock of the marks, in seconds
            (None where unknown); now, on the caller's clock, when not given.

    Attributes:
        run_id: As given or made.
        trouble: Why some lines could not be written yet; empty where all are.

    Raises:
        RunFileError: The file exists already, or cannot be made.
        ValueError: A name is not of the vocabulary, or a trial is unknown (all methods).
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: str,
        loop: Literal["closed", "open"] = "closed",
        config: Mapping[str, Any] | None = None,
        arms: Mapping[str, Mapping[str, Any]] | None = None,
        host_facts: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        started: tuple[datetime, float | None] | None = None,
    ) -> None:
        now, now_s = started or (datetime.now(UTC), time.monotonic())
        self.path = path
        self.run_id = run_id or f"{now:%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(2)}"
        self._arms = dict(arms or {"default": {}})
        self._trials: set[int] = set()
        self._unwritten = b""
        self.trouble = ""
        header = RunLine(
            run_id=self.run_id,
            kind=kind,
            started_at=now.isoformat(timespec="milliseconds"),
            started_s=now_s,
            loop=loop,
            config=dict(config or {}),
            arms={name: dict(columns) for name, columns in self._arms.items()},
            host=dict(host_facts if host_facts is not None else host.facts()),
        )
        check_new(path)
        with writing(path, "choose another place", RunFileError):
            self._file = path.open("xb", buffering=0)
        self._write(header)
        if self.trouble:
            self._file.close()
            path.unlink()
            raise RunFileError(self.trouble, "free space on the disk, or choose another place")

    def trial(
        self,
        trial: int,
        room: str,
        arm: str,
        warmup: bool = False,
        *,
        unit: str | None = None,
        round_number: int | None = None,
    ) -> None:
        """Begins a trial.

        Args:
            arm: Configuration, one of the run's.
            warmup: Whether it is left out of the figures.
            unit: Name of the unit of resampling where that is not the trial.
            round_number: The round, where the arms take turns.

        Raises:
            ValueError: The trial has begun already, or the arm is unknown.
        """
        if trial in self._trials:
            raise ValueError(f"trial {trial} has begun already")
        if arm not in self._arms:
            raise ValueError(f"unknown arm {arm!r}; one of {', '.join(self._arms)}")
        self._trials.add(trial)
        self._write(
            TrialLine(
                trial=trial,
                room=room,
                arm=arm,
                warmup=warmup,
                unit=unit or str(trial),
                round=round_number,
            )
        )

    def mark(
        self,
        trial: int,
        mark: Mark,
        *,
        turn: int | None = None,
    ) -> None:
        """Records an instant.

        Args:
            mark: Its name, one of the vocabulary, instant and clock.
            turn: The turn that it belongs to; None for the connection.
        """
        self._write_of(
            MarkLine(
                trial=trial,
                turn=turn,
                mark=mark.name,
                t_s=mark.at_s,
                clock=mark.clock,
                uncertainty_s=mark.uncertainty_s,
            )
        )

    def stage(
        self,
        trial: int,
        stage: str,
        duration_s: float,
        *,
        turn: int | None = None,
        start_s: float | None = None,
        source: str = "agent",
    ) -> None:
        """Records a duration that was measured elsewhere, such as LiveKit's own figures.

        Args:
            stage: Its name; not one that is computed from marks.
            turn: The turn that it belongs to; None for the connection.
            start_s: When it began, in seconds on the caller's monotonic clock, where known.
            source: Who measured it.
        """
        self._write_of(
            StageLine(
                trial=trial,
                turn=turn,
                stage=stage,
                duration_s=duration_s,
                start_s=start_s,
                source=source,
            )
        )

    def note(self, trial: int, turn: int | None = None, **facts: Any) -> None:
        """Records facts that are no time.

        The report shows `said`, `transcript`, `reply` and `wer` (0 to 1) of a turn as texts.
        """
        self._write_of(NoteLine(trial=trial, turn=turn, facts=facts))

    def outcome(
        self, trial: int, outcome: str, *, turn: int | None = None, detail: str = ""
    ) -> None:
        """Records how a trial's connection ended, or with `turn` how that turn did."""
        self._write_of(OutcomeLine(trial=trial, turn=turn, outcome=outcome, detail=detail))

    def close(self) -> None:
        """Writes the last line, and of a large run the copy that loads fast; safe to call twice.

        Raises:
            RunFileError: The disk does not take the last lines; they are in another file then.
        """
        if not self._file.closed:
            self._write(EndLine())
            large = self._file.tell() >= copies.WORTH
            self._file.close()
            self._save_elsewhere()
            if large:
                copies.make(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
        else:
            # No last line: the file tells that the run did not end in order.
            self._file.close()
            with contextlib.suppress(RunFileError):
                self._save_elsewhere()

    def _write_of(self, line: MarkLine | StageLine | NoteLine | OutcomeLine) -> None:
        if line.trial not in self._trials:
            raise ValueError(f"trial {line.trial} has not begun")
        self._write(line)

    def _write(self, line: Line) -> None:
        self._unwritten += line.model_dump_json().encode() + b"\n"
        self.trouble = ""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) or 0 :]
        except OSError as error:
            self.trouble = f"{self.path} cannot be written: {error.strerror}"

    def _save_elsewhere(self) -> None:
        """Writes what the file did not take, and the file's own lines before it, to another."""
        if not self._unwritten:
            return
        lines, self._unwritten = self._unwritten, b""
        hint = "free space on the disk"
        with contextlib.suppress(OSError):
            other = Path(tempfile.mkdtemp(prefix="labvoice-run-")) / self.path.name
            other.write_bytes(self.path.read_bytes() + lines)
            hint += f"; the whole run is in {other}"
        raise RunFileError(self.trouble, hint)
