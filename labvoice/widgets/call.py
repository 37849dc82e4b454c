"""A call that somebody made in the browser, as the kernel knows it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from labvoice.bench.run import Run
from labvoice.settings import Settings
from labvoice.widgets.record import BrowserTurn, CallRecord, write_run


class BrowserCall:
    """A call made in the browser; it grows while the call runs.

    Attributes:
        record: What the browser has sent so far.
        path: The run file; None until the call has ended.
    """

    def __init__(self, record: CallRecord, settings: Settings) -> None:
        self.record = record
        self.path: Path | None = None
        self._settings = settings

    def save(self, folder: Path = Path("runs")) -> Path:
        """Writes the run file of a call that has ended.

        Raises:
            RunFileError: It cannot be written.
        """
        self.path = folder / f"browser-{self.record.call_id}.jsonl"
        write_run(self.record, self.path, self._settings)
        return self.path

    @property
    def run(self) -> Run:
        """The call as a run of one trial, to be laid beside a benchmark."""
        if self.path is not None:
            return Run.load(self.path)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "call.jsonl"
            write_run(self.record, path, self._settings)
            return Run.load(path)

    @property
    def frame(self) -> pd.DataFrame:
        """The tidy frame of the call, with the columns of every other run."""
        return self.run.frame

    @property
    def marks(self) -> dict[str, float]:
        """Connection marks, in seconds since the click."""
        at_s = {name: mark.t_s for name, mark in self.record.marks.items()}
        zero_s = at_s.get("click", 0.0)
        return {name: value - zero_s for name, value in sorted(at_s.items(), key=lambda m: m[1])}

    @property
    def turns(self) -> list[BrowserTurn]:
        """All turns, oldest first."""
        return self.record.turns

    @property
    def ended(self) -> bool:
        """Whether the call is over."""
        return self.record.ended

    def __repr__(self) -> str:
        record = self.record
        state = "ended" if record.ended else "under way"
        head = f"<BrowserCall {state} outcome={record.outcome} turns={len(record.turns)}>"
        lines = [head if not record.detail else f"{head}\n  {record.detail}"]
        for turn in record.turns:
            heard_s = turn.voice_to_voice_s
            took = "" if heard_s is None else f"  voice to voice {heard_s * 1000:.0f} ms"
            lines.append(
                f"  {turn.number + 1}. you: {turn.transcript}\n     agent: {turn.reply}{took}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.run._repr_html_()
