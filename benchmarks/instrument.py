"""Judges the runs of `benchmarks/instrument.sh` by the bounds that the instrument claims."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from labvoice.protocol.vocabulary import INSTRUMENT_ERROR
from labvoice.runs import statistics
from labvoice.runs.run import Run

_MEDIAN_S = 0.010
_P95_S = 0.025
_INJECTED_S = 0.1
_LEVEL = 0.05
_RELABELLED = 1000


def _verdict(words: str, good: bool) -> bool:
    print(f"{'ok' if good else 'NOT OK'}: {words}")
    return good


def _calibration(run: Run) -> bool:
    rows = statistics.measured(run.frame[run.frame["stage"] == INSTRUMENT_ERROR])
    good = True
    for arm in run.arms:
        errors = rows.loc[rows["arm"] == arm, "duration_s"].to_numpy()
        median, p95 = float(np.median(errors)), float(np.percentile(np.abs(errors), 95))
        words = (
            f"{arm}: the instrument adds {median * 1e3:.1f} ms at the median, at most "
            f"{p95 * 1e3:.1f} ms in 95 of 100 turns ({len(errors)} turns)"
        )
        good &= _verdict(words, abs(median) <= _MEDIAN_S and p95 <= _P95_S)
    return good


def _differences(run: Run) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How much longer the second arm took in each round, in seconds."""
    rows = statistics.measured(run.frame[run.frame["stage"] == "voice_to_voice"])
    rounds = rows.pivot_table(index="round", columns="arm", values="duration_s").dropna()
    first, second = run.arms
    return np.asarray(rounds[second] - rounds[first])


def _false_alarms(same: Run) -> float:
    """The share of A/A experiments that find a difference, of many made of one.

    Which of two like arms a round's turns belong to is chance: to exchange them at random in each
    round makes another experiment of the same turns.
    """
    rows = statistics.measured(same.frame[same.frame["stage"] == "voice_to_voice"])
    rounds = rows.pivot_table(index="round", columns="arm", values="duration_s").dropna()
    turns = rounds.to_numpy()
    numbers = np.arange(len(turns))
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(_RELABELLED):
        exchanged = rng.integers(0, 2, len(turns))
        base, new = turns[numbers, exchanged], turns[numbers, 1 - exchanged]
        ratio = statistics.compare_rounds(base, numbers, new, numbers)
        found += ratio.p_value < _LEVEL and not ratio.ci95[0] <= 1 <= ratio.ci95[1]
    return found / _RELABELLED


def main(folder: Path) -> int:
    """Prints a line for each claim; returns 1 where one does not hold."""
    good = _calibration(Run.load(folder / "calibrate.jsonl"))
    same = Run.load(folder / "aa.jsonl")
    (ratio,) = (stages["voice_to_voice"] for stages in same.ratios().values())
    good &= _verdict(f"the same arm twice: × {ratio}", not ratio.p_value < _LEVEL)
    alarms = _false_alarms(same)
    words = (
        f"the same arm twice, {_RELABELLED} experiments with its rounds' arms exchanged at random: "
        f"{alarms:.1%} find a difference (level {_LEVEL:.0%})"
    )
    good &= _verdict(words, alarms <= _LEVEL + 2 * (_LEVEL * (1 - _LEVEL) / _RELABELLED) ** 0.5)
    took = _differences(Run.load(folder / "ab.jsonl"))
    low, high = statistics.bootstrap_interval(took, range(len(took)))
    words = (
        f"100 ms added: {np.median(took) * 1e3:.0f} ms are found, 95 % interval "
        f"{low * 1e3:.0f} to {high * 1e3:.0f} ms ({len(took)} rounds)"
    )
    good &= _verdict(words, low <= _INJECTED_S <= high)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
