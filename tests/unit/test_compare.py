"""Comparison of two runs, and the gate."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from labvoice.errors import RunFileError, UsageError
from labvoice.runs.compare import compare
from tests.unit.recorded_runs import HOST, connect_run, turns_run


def test_a_run_does_not_differ_from_one_like_it(tmp_path: Path) -> None:
    """Two runs of the same thing pass, and the verdict claims no difference."""
    base = connect_run(tmp_path / "base.jsonl", seed=1)
    new = connect_run(tmp_path / "new.jsonl", seed=2)
    comparison = compare(base, new)
    assert comparison.passed
    join = next(row for row in comparison.stages if row.stage == "join")
    assert join.verdict == "no difference shown"
    assert "passed" in repr(comparison)
    assert "passed" in comparison._repr_html_()


def test_a_slower_run_fails_the_gate_and_a_faster_one_passes(tmp_path: Path) -> None:
    """A quarter more time fails at ten per cent; the other way round it is faster."""
    base = connect_run(tmp_path / "base.jsonl", seed=1)
    new = connect_run(tmp_path / "new.jsonl", seed=2, slower=1.25)
    worse, better = compare(base, new), compare(new, base)
    assert not worse.passed
    assert any(words.startswith("connection is slower") for words in worse.regressions)
    assert "failed" in repr(worse)
    assert better.passed
    assert {row.verdict for row in better.stages if row.stage == "connection"} == {"faster"}


def test_slower_within_what_is_allowed_passes(tmp_path: Path) -> None:
    """The gate allows what it was told to allow, and the verdict still says slower."""
    base = connect_run(tmp_path / "base.jsonl", seed=1)
    new = connect_run(tmp_path / "new.jsonl", seed=2, slower=1.25)
    comparison = compare(base, new, max_regression=0.6)
    assert comparison.passed
    assert "slower" in {row.verdict for row in comparison.stages}


def test_only_headline_stages_are_gated(tmp_path: Path) -> None:
    """LiveKit's own figures are shown and decide nothing."""
    base = turns_run(tmp_path / "base.jsonl", calls=10)
    comparison = compare(base, turns_run(tmp_path / "new.jsonl", calls=10, seed=5))
    assert "llm_node_ttft" in {row.stage for row in comparison.stages}
    assert not any("llm_node" in words for words in comparison.regressions)


def test_failing_instead_of_being_slow_does_not_pass(tmp_path: Path) -> None:
    """A run in which a third of the attempts fail fails the gate, whatever its times are."""
    base = connect_run(tmp_path / "base.jsonl", seed=1)
    failures = dict.fromkeys(range(1, 31, 3), "join_timeout")
    comparison = compare(base, connect_run(tmp_path / "new.jsonl", seed=1, failures=failures))
    assert comparison.regressions == ["more attempts fail: 0 of 30 → 10 of 30"]


def test_a_stage_that_is_gone_fails_the_gate(tmp_path: Path) -> None:
    """A new run in which nothing was reached fails the gate stage by stage."""
    base = connect_run(tmp_path / "base.jsonl", trials=10)
    failures = dict.fromkeys(range(11), "no_worker")
    comparison = compare(base, connect_run(tmp_path / "new.jsonl", trials=10, failures=failures))
    assert any("join was measured in the base and not" in w for w in comparison.regressions)
    json.dumps(comparison.to_json(), allow_nan=False)


def test_arms_are_compared_by_name(tmp_path: Path) -> None:
    """With the same arms on both sides, each is compared with its namesake."""
    arms: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    base = connect_run(tmp_path / "base.jsonl", trials=40, arms=arms, seed=1)
    new = connect_run(tmp_path / "new.jsonl", trials=40, arms=arms, seed=2, slower_arm=1.4)
    comparison = compare(base, new)
    verdicts = {row.arm: row.verdict for row in comparison.stages if row.stage == "connection"}
    assert verdicts == {"a": "no difference shown", "b": "slower"}
    assert all(" of b " in words for words in comparison.regressions)


def test_runs_of_different_kinds_are_refused(tmp_path: Path) -> None:
    """Connections are not compared with turns."""
    with pytest.raises(RunFileError, match="differ in kind: connect and turns"):
        compare(connect_run(tmp_path / "a.jsonl", trials=2), turns_run(tmp_path / "b.jsonl"))


def test_runs_of_different_hosts_are_refused_unless_meant(tmp_path: Path) -> None:
    """Another core count is refused, and compared where the user says so."""
    base = connect_run(tmp_path / "base.jsonl", trials=12)
    new = connect_run(tmp_path / "new.jsonl", trials=12, host={**HOST, "cores": 16})
    with pytest.raises(RunFileError, match="different hosts: cores 2 and 16") as caught:
        compare(base, new)
    assert "allow_different_hosts" in caught.value.hint
    comparison = compare(base, new, allow_different_hosts=True)
    assert "host cores: 2 → 16" in comparison.differences


def test_different_arms_and_empty_bases_are_refused(tmp_path: Path) -> None:
    """What has no counterpart is not compared."""
    plain = connect_run(tmp_path / "plain.jsonl", trials=4)
    armed = connect_run(tmp_path / "armed.jsonl", trials=4, arms={"a": {}, "b": {}})
    with pytest.raises(RunFileError, match="different arms"):
        compare(plain, armed)
    empty = connect_run(
        tmp_path / "empty.jsonl", trials=4, failures=dict.fromkeys(range(5), "error")
    )
    with pytest.raises(RunFileError, match="measured nothing"):
        compare(empty, plain)
    with pytest.raises(UsageError, match="is negative"):
        compare(plain, plain, max_regression=-0.1)


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_too_few_calls_are_inconclusive_and_do_not_pass(tmp_path: Path, trials: int) -> None:
    """Three times as slow or the same: a handful of calls proves neither, and the gate says so."""
    base = connect_run(tmp_path / "base.jsonl", trials=trials, seed=1)
    for slower in (1.0, 3.5):
        path = tmp_path / f"new-{slower}.jsonl"
        comparison = compare(base, connect_run(path, trials=trials, seed=2, slower=slower))
        headline = {row.verdict for row in comparison.stages if row.stage == "connection"}
        assert headline == {"inconclusive"}
        assert not comparison.passed
        assert "measure at least" in comparison.conclusion
        assert comparison.to_json()["inconclusive"]


def test_what_is_needed_suffices_to_show_a_difference(tmp_path: Path) -> None:
    """With as many calls as the message asks for, twice as slow is found."""
    few = connect_run(tmp_path / "few.jsonl", trials=2)
    needed = compare(few, few).stages[0].needed
    base = connect_run(tmp_path / "base.jsonl", trials=needed, seed=1)
    new = connect_run(tmp_path / "new.jsonl", trials=needed, seed=2, slower=2.0)
    verdicts = {row.stage: row.verdict for row in compare(base, new).stages}
    assert verdicts["connection"] == "slower"


def test_the_same_thing_fails_the_gate_no_more_often_than_its_level(tmp_path: Path) -> None:
    """Of 40 comparisons of a run with its like, judged without tolerance, hardly one fails."""
    runs = [connect_run(tmp_path / f"{seed}.jsonl", trials=12, seed=seed) for seed in range(41)]
    pairs = itertools.pairwise(runs)
    failed = sum(bool(compare(base, new, max_regression=0).regressions) for base, new in pairs)
    assert failed <= 3


def test_every_difference_in_configuration_is_told_before_the_verdict(tmp_path: Path) -> None:
    """Model, endpointing and whatever else the arms' columns say are named in text and HTML."""
    old = {"llm": "paced", "min_endpointing_delay_s": 0.4, "stt": "moonshine-base"}
    new = {"llm": "small", "min_endpointing_delay_s": 3.0, "stt": "moonshine-base"}
    base = connect_run(tmp_path / "base.jsonl", trials=8, arms={"default": old})
    comparison = compare(base, connect_run(tmp_path / "n.jsonl", trials=8, arms={"default": new}))
    assert comparison.differences == [
        "llm of default: paced → small",
        "min_endpointing_delay_s of default: 0.4 → 3.0",
    ]
    for shown in (repr(comparison), comparison._repr_html_()):
        assert shown.index("paced → small") < shown.index("verdict")
    assert comparison.to_json()["differences"] == comparison.differences
    assert compare(base, base).differences == []
