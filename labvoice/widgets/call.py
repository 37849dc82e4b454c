"""A call made in the browser, as recorded by the kernel."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pandas as pd

from labvoice.errors import RunFileError
from labvoice.runs.players import Player
from labvoice.runs.run import Run
from labvoice.settings import Settings
from labvoice.show import Facts, call_facts
from labvoice.widgets.record import BrowserTurn, CallRecord, write_run
from labvoice.widgets.sound import BrowserSound


class BrowserCall:
    """A call made in the browser; updated while the call runs.

    Attributes:
        record: What the browser has sent so far.
        path: The run file; None until the call has ended.
        sound: What the page recorded so far.
    """

    def __init__(self, record: CallRecord, settings: Settings) -> None:
        self.record = record
        self.path: Path | None = None
        self.sound = BrowserSound()
        self._settings = settings

    def save(self, folder: Path = Path("runs")) -> Path:
        """Writes the run file of a call that has ended.

        Raises:
            RunFileError: It cannot be written.
        """
        path = folder / f"browser-{self.record.call_id}.jsonl"
        write_run(self.record, path, self._settings, self.sound.recording())
        self.path = path  # only now: the file exists
        return path

    @property
    def run(self) -> Run:
        """The call as a run of one trial, to compare with a benchmark."""
        if self.path is not None:
            return Run.load(self.path)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "call.jsonl"
            write_run(self.record, path, self._settings)
            return Run.load(path)

    @property
    def frame(self) -> pd.DataFrame:
        """The tidy frame of the call, with the same columns as every run."""
        return self.run.frame

    @property
    def marks(self) -> dict[str, float]:
        """Connection marks, in seconds since the click."""
        at_s = {mark.name: mark.at_s for mark in self.record.marks}
        zero_s = at_s.get("click", 0.0)
        return {name: value - zero_s for name, value in sorted(at_s.items(), key=lambda m: m[1])}

    @property
    def turns(self) -> list[BrowserTurn]:
        """All turns, oldest first."""
        return self.record.turns

    @property
    def ended(self) -> bool:
        """Whether the call has ended."""
        return self.record.ended

    def _facts(self) -> Facts:
        record = self.record
        greeting = record.notes.get("greeting")
        return call_facts(
            "BrowserCall",
            record.room or "none",
            f"{'ended' if record.ended else 'under way'}, outcome {record.outcome}",
            strategy=record.strategy or "unknown",
            marks=self.marks,
            greeting=str(greeting or ""),
            turns=self.turns,
            troubles=[record.detail],
        )

    def __repr__(self) -> str:
        return self._facts().text()

    def listen(self) -> Player:
        """Returns the player of a call that is over.

        Raises:
            RunFileError: It was not recorded, or is not over.
        """
        return self.run.listen()

    def _repr_html_(self) -> str:
        player = ""
        if self.path is not None:
            with contextlib.suppress(RunFileError):
                player = self.listen()._repr_html_()
        return self._facts().html() + player
