"""The same arm twice: how many differences are found, and how many are chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.false_alarms import finds_difference, most_alarms, told
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.run import Run, RunWriter
from tests.unit.recorded_runs import HOST


def _run(path: Path, *, slower_s: float = 0.0, seed: int = 1) -> Run:
    """Eight rounds of two arms, of which the second may be slower."""
    rng = np.random.default_rng(seed)
    arms: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    with RunWriter(path, kind="turns", arms=arms, host_facts=HOST) as run:
        for trial in range(16):
            arm = "ab"[trial % 2]
            run.trial(trial, f"room-{trial}", arm, round_number=trial // 2)
            run.outcome(trial, "ok")
            heard_s = 1.5 + rng.normal(0, 0.02) + (slower_s if arm == "b" else 0.0)
            run.mark(trial, Mark("user_speech_end", 1.0), turn=0)
            run.mark(trial, Mark("reply_heard", heard_s), turn=0)
            run.outcome(trial, "ok", turn=0)
    return Run.load(path)


def test_a_difference_is_found_where_there_is_one(tmp_path: Path) -> None:
    """And none between arms that are alike."""
    assert not finds_difference(_run(tmp_path / "same.jsonl"))
    assert finds_difference(_run(tmp_path / "slower.jsonl", slower_s=0.2))


@pytest.mark.parametrize(("runs", "most"), [(1, 0), (20, 3), (100, 9)])
def test_as_many_alarms_as_chance_makes_are_allowed(runs: int, most: int) -> None:
    """One in twenty on average; no more in 95 of 100 experiments."""
    assert most_alarms(runs) == most


def test_too_many_alarms_are_no_chance(tmp_path: Path) -> None:
    """Runs in which arms differ are named as alarms, however often each is told."""
    calm = [_run(tmp_path / f"{seed}.jsonl", seed=seed) for seed in range(4)]
    words, good = told(calm)
    assert good
    assert "0 of 4 runs find a difference" in words
    loud = [_run(tmp_path / f"loud-{seed}.jsonl", seed=seed, slower_s=0.2) for seed in range(4)]
    words, good = told(loud)
    assert not good
    assert "4 of 4 runs find a difference" in words
