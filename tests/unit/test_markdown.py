"""The summary for a pull request: figures and failures, and no markup of anybody else's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from labvoice.cli import app
from labvoice.errors import RunFileError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.report.markdown import check_link, escaped, summary
from labvoice.runs.compare import compare
from labvoice.runs.run import Run, RunWriter
from tests.unit.recorded_runs import connect_run

HOSTILE = (
    "a|b `x` <script>alert(1)</script> [l](https://e.org) ![i](https://e.org) www.e.org @admin "
    "#12 \\| **b** <!-- & \u202e\nnext --- |"
)


def rendered(text: str) -> str:
    """Returns Markdown as HTML, tables and raw HTML included, as GitHub reads it."""
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def scenario_run(path: Path, name: str = "greets", words: str = "good day") -> Run:
    """Records two calls of a scenario: one passes, one hears the wrong words."""
    with RunWriter(path, kind="test", config={}, arms={name: {}}) as run:
        for trial, outcome in enumerate(("ok", "assertion_failed")):
            run.trial(trial, f"room-{trial}", name)
            run.mark(trial, Mark("click", 10.0))
            run.mark(trial, Mark("agent_listening", 11.0))
            run.mark(trial, Mark("user_speech_start", 14.0), turn=0)
            failure = {
                "where": "a.scenario.yaml:4",
                "expectation": f"heard: {words}",
                "observed": "the pattern does not match",
                "heard": words,
                "turn": 0,
            }
            failures = [failure] if outcome != "ok" else []
            run.note(trial, scenario=name, failures=json.dumps(failures))
            run.note(trial, recording=f"{path.stem}/{trial:04}.ogg", recording_start_s=0.5)
            run.outcome(trial, outcome)
    for trial in range(2):
        recording = path.with_suffix("") / f"{trial:04}.ogg"
        recording.parent.mkdir(exist_ok=True)
        soundfile.write(recording, np.zeros((4800, 2)), 48_000, subtype="OPUS")
    return Run.load(path)


@pytest.mark.parametrize("text", [HOSTILE, "@team/a", "http://e.org", "GH-1", "&lt;b&gt;", "~~x~~"])
def test_foreign_words_are_shown_and_mean_nothing(text: str) -> None:
    """Escaped words become no tag, no link, no cell of a table, no mention and no reference."""
    page = rendered(f"| a | b |\n| --- | --- |\n| <code>{escaped(text)}</code> | end |\n")

    (row,) = re.findall("<tbody>(.*)</tbody>", page, re.DOTALL)
    assert re.findall("<(/?[a-z]+)", row) == (
        ["tr", "td", "code", "/code", "/td", "td", "/td", "/tr"]
    )
    assert not re.search(r"[@#]\w", row.replace("&#", ""))
    assert "\u202e" not in row


def test_a_scenarios_failure_says_where_what_and_where_to_listen(tmp_path: Path) -> None:
    """Step, expectation, what was heard, and a link to the recording with its second."""
    run = scenario_run(tmp_path / "runs" / "test.jsonl")

    page = rendered(summary(run, tmp_path, report=tmp_path / "report.html"))

    assert "1 of 2 calls failed" in page
    assert "<code>a.scenario.yaml:4</code>: <code>heard: good day</code>" in page
    assert "heard: good day" in page
    assert '<a href="runs/test/0001.ogg">0001.ogg</a> at 3.5 s' in page
    assert '<a href="report.html">Report</a>' in page


def test_hostile_names_and_words_stay_words(tmp_path: Path) -> None:
    """A scenario's name and an agent's words add no element to the page."""
    plain = rendered(summary(scenario_run(tmp_path / "plain.jsonl"), tmp_path))
    run = scenario_run(tmp_path / "hostile.jsonl", HOSTILE, HOSTILE)
    hostile = rendered(summary(run, tmp_path))

    assert re.findall("<[a-z]+", hostile) == re.findall("<[a-z]+", plain)


def test_one_page_stands_for_all_files(tmp_path: Path) -> None:
    """With the address of an upload, files are named and the page is linked once."""
    run = scenario_run(tmp_path / "test.jsonl")

    text = summary(run, tmp_path, link="https://example.org/runs/7")

    assert text.count("](") == 1
    assert "[Run, report and recordings](https://example.org/runs/7)" in text


@pytest.mark.parametrize("link", ["javascript:x", "https://e.org/)x", "runs/7", "https://a b"])
def test_a_link_is_an_address(link: str) -> None:
    """Nothing else becomes a link."""
    with pytest.raises(UsageError, match="is no address"):
        check_link(link)


def test_a_comparison_has_medians_intervals_and_a_verdict(tmp_path: Path) -> None:
    """Each headline stage stands beside the base's, and the gate's result above."""
    base = connect_run(tmp_path / "base.jsonl")
    new = connect_run(tmp_path / "new.jsonl", slower=2.0, seed=8)

    text = summary(new, tmp_path, comparison=compare(base, new))
    page = rendered(text)

    assert "<strong>Against the base run:</strong> failed: " in page
    row = next(line for line in text.splitlines() if line.startswith("| <code>connection"))
    assert re.search(r"\| \d[\d,]* \(\d[\d,]* to \d[\d,]*\) \| \d[\d,]* \| × [12]\.\d\d", row)
    assert row.endswith("| **slower** |")


def test_a_summary_of_much_that_failed_fits_in_a_comment(tmp_path: Path) -> None:
    """GitHub takes 65,536 characters."""
    path = tmp_path / "test.jsonl"
    names = [f"{number} {'|' * 300}" for number in range(100)]
    with RunWriter(path, kind="test", config={}, arms={name: {} for name in names}) as run:
        for trial, name in enumerate(names):
            run.trial(trial, f"room-{trial}", name)
            failure = dict.fromkeys(("where", "expectation", "observed", "heard"), "<" * 2000)
            run.note(trial, failures=json.dumps([failure] * 3))
            run.outcome(trial, "assertion_failed")

    assert len(summary(Run.load(path), tmp_path)) < 65_536


def test_the_summary_is_written_though_there_is_no_base(tmp_path: Path) -> None:
    """`compare` says in it why nothing was compared, and exits as without it."""
    scenario_run(tmp_path / "new.jsonl")
    found = tmp_path / "out" / "summary.md"

    runs = [str(tmp_path / "base.jsonl"), str(tmp_path / "new.jsonl")]
    result = CliRunner().invoke(app, ["compare", *runs, "--markdown", str(found)])

    assert isinstance(result.exception, RunFileError)
    page = rendered(found.read_text())
    assert "Not compared with a base run:" in page
    assert "base.jsonl" in page
    assert "1 of 2 calls failed" in page


def test_a_report_has_a_summary_too(tmp_path: Path) -> None:
    """`report --markdown` summarises every run, and links the report."""
    for name in ("one", "two"):
        connect_run(tmp_path / f"{name}.jsonl", trials=12)
    arguments = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    arguments += ["--out", str(tmp_path / "report.html"), "--markdown", str(tmp_path / "s.md")]

    result = CliRunner().invoke(app, ["report", *arguments])

    assert result.exit_code == 0, result.output
    text = (tmp_path / "s.md").read_text()
    assert text.count("### labvoice connect: all 12 attempts passed") == 2
    assert text.count("[Report](report.html)") == 2
