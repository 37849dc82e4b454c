"""Shares of turn-taking: what a probe counts for, and how sure a share is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from labvoice.errors import RunFileError
from labvoice.report import turn_taking
from labvoice.report.html import write_report
from labvoice.runs.turn_taking import Share, shares
from tests.unit.recorded_runs import interrupt_run, turns_run

_OVER: dict[str, Any] = {"over_agent": True, "hang": False}


def _shares(name: str, stands: int, still_stands: int) -> dict[str, int]:
    return {name: stands, f"{name}_2s": still_stands, "hang": 0}


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (
            {**_OVER, "kind": "interruption", "yielded_after_s": 1.9, "answers": True},
            {"R_Y": 1, "answers": 1, "hang": 0},
        ),
        (
            {**_OVER, "kind": "interruption", "yielded_after_s": 2.1, "answers": True},
            {"R_Y": 0, "answers": 1, "hang": 0},
        ),
        (
            {**_OVER, "kind": "interruption", "yielded_after_s": None, "answers": False},
            {"R_Y": 0, "answers": 0, "hang": 0},
        ),
        (
            {**_OVER, "kind": "interruption", "yielded_after_s": 0.7, "hang": True},
            {"R_Y": 1, "hang": 1},
        ),
        ({**_OVER, "kind": "backchannel", "yielded_after_s": None}, _shares("S_BC", 1, 1)),
        ({**_OVER, "kind": "backchannel", "yielded_after_s": 0.9}, _shares("S_BC", 0, 0)),
        ({**_OVER, "kind": "vocal_tic", "yielded_after_s": 1.1}, _shares("S_VT", 1, 0)),
        ({**_OVER, "kind": "vocal_tic", "yielded_after_s": 2.1}, _shares("S_VT", 1, 1)),
        ({**_OVER, "kind": "non_directed", "yielded_after_s": 0.5}, _shares("S_ND", 0, 0)),
        ({"over_agent": False, "kind": "pause", "cut": True, "hang": False}, {"cut": 1, "hang": 0}),
        ({"over_agent": False, "kind": "interruption"}, {}),
    ],
)
def test_a_probe_counts_by_its_kind_and_window(
    note: dict[str, Any], expected: dict[str, int]
) -> None:
    """Two seconds to yield, one to stand, and two; where it did not speak counts for nothing."""
    found = shares(pd.DataFrame([{"arm": "default", **note}]))
    assert {name: share.k for name, share in found.items()} == expected
    assert all(share.n == 1 for share in found.values())


def test_shares_are_those_of_an_arm() -> None:
    """Each configuration has its own."""
    rows = [
        {"arm": arm, "kind": "interruption", "over_agent": True, "yielded_after_s": after_s}
        for arm, after_s in (("a", 0.5), ("a", None), ("b", 0.5))
    ]
    notes = pd.DataFrame(rows)
    assert shares(notes, "a")["R_Y"] == Share(1, 2)
    assert shares(notes, "b")["R_Y"] == Share(1, 1)
    assert shares(notes)["R_Y"] == Share(2, 3)


@pytest.mark.parametrize(
    ("share", "low", "high"),
    [(Share(0, 10), 0.0, 0.2775), (Share(10, 10), 0.7225, 1.0), (Share(5, 10), 0.2366, 0.7634)],
)
def test_a_share_has_wilsons_interval(share: Share, low: float, high: float) -> None:
    """As tables of it have it; it is never empty, and never leaves 0 to 1."""
    assert share.ci95 == pytest.approx((low, high), abs=1e-4)


def test_a_run_without_probes_has_no_shares() -> None:
    """Nor has one without notes."""
    assert shares(pd.DataFrame()) == {}
    assert shares(pd.DataFrame([{"arm": "a", "said": "Hi."}])) == {}


def test_a_run_tells_its_shares_and_stages(tmp_path: Path) -> None:
    """In text, in JSON and as stages; a hang is an outcome, and counts as a yield all the same."""
    run = interrupt_run(tmp_path / "i.jsonl")
    assert run.shares() == {
        "R_Y": Share(4, 4),
        "answers": Share(3, 4),
        "S_BC": Share(0, 4),
        "S_BC_2s": Share(0, 4),
        "S_VT": Share(0, 4),
        "S_VT_2s": Share(0, 4),
        "cut": Share(0, 4),
        "hang": Share(1, 16),
    }
    result = run.to_json()
    assert result["outcomes"] == {"ok": 15, "no_reply": 1}
    assert result["shares"]["R_Y"] == {"k": 4, "n": 4, "share": 1.0, "ci95": [0.510109, 1.0]}
    assert result["stages"]["yield_latency"]["p50_s"] == pytest.approx(0.6)
    assert result["stages"]["interruption_recovery"]["p50_s"] == pytest.approx(1.1)
    assert "R_Y 4 of 4 (51% to 100%) yields to an interruption within 2 s" in repr(run)
    assert "hang 1 of 16" in run._repr_html_()


def test_a_run_with_arms_has_shares_of_each(tmp_path: Path) -> None:
    """The arm that stops at everything yields always and stands nothing, the other one never."""
    run = interrupt_run(tmp_path / "i.jsonl", arms=("stops", "never"))
    assert run.shares("stops")["R_Y"] == run.shares("never")["S_BC"] == Share(4, 4)
    assert run.shares("stops")["S_BC"] == run.shares("never")["R_Y"] == Share(0, 4)
    assert run.to_json()["arms"]["never"]["shares"]["R_Y"]["k"] == 0


def test_a_report_shows_turn_taking(tmp_path: Path) -> None:
    """The table of shares, the sounds as what they are, and both pictures."""
    run = interrupt_run(tmp_path / "i.jsonl", arms=("stops", "never"))
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("R_Y", "4 of 4", "synthesised", "Who speaks when", "To yield, and to go on"):
        assert words in page
    (axes,) = turn_taking.who_speaks_when(run).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["question, stops", "question, never"]
    goes_on = [line for line in axes.lines if line.get_marker() == ">"]
    drawn = run.probes.groupby(["probe", "arm"]).head(3)
    assert len(goes_on) == drawn["agent_goes_on"].sum() > 0
    assert len(turn_taking.yield_trade(run).axes) == 1


def test_a_run_without_probes_has_no_pictures_of_them(tmp_path: Path) -> None:
    """They are refused in words."""
    run = turns_run(tmp_path / "t.jsonl")
    assert run.probes.empty
    assert run.turn_taking == []
    for draw in (turn_taking.who_speaks_when, turn_taking.yield_trade):
        with pytest.raises(RunFileError, match="bench interrupt"):
            draw(run)
