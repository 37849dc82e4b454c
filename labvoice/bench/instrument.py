"""Stores the instrument's error of this machine: written by calibrations, read by other runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from labvoice.protocol.vocabulary import INSTRUMENT_ERROR
from labvoice.runs.run import Run
from labvoice.settings import Settings

_LEAST_TURNS: Final = 20
_MACHINE: Final = ("cpu", "cores")


def _path(settings: Settings) -> Path:
    return settings.data_dir / "calibration.json"


def keep_calibration(settings: Settings, run: Run) -> float | None:
    """Keeps what a calibration of this machine has found, for the runs to come.

    Returns:
        The 95th percentile of the error's amount over all its variants, in seconds; None where
        fewer than 20 turns were measured, or some over a link or with a sound around the caller:
        these are kept nowhere.
    """
    if any({"link", "voice"} & columns.keys() for columns in run.header.arms.values()):
        return None
    frame = run.frame
    rows = frame[(frame["stage"] == INSTRUMENT_ERROR) & (frame["outcome"] == "ok")]
    errors = rows.loc[~rows["warmup"] & ~rows["upset"], "duration_s"].dropna().abs()
    if len(errors) < _LEAST_TURNS:
        return None
    error_s = float(errors.quantile(0.95))
    kept = {
        "instrument_error_s": round(error_s, 6),
        "calibration": run.header.run_id,
        **{name: run.header.host.get(name) for name in _MACHINE},
    }
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return error_s


def known_error(settings: Settings, host: dict[str, Any]) -> dict[str, Any]:
    """Returns `instrument_error_s` and `calibration` (its run) for a host's facts.

    Empty where this machine was not calibrated.
    """
    try:
        kept = json.loads(_path(settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if any(kept.get(name) != host.get(name) for name in _MACHINE):
        return {}
    return {name: kept[name] for name in ("instrument_error_s", "calibration") if name in kept}
