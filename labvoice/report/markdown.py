"""A summary of a run in GitHub's Markdown, for a pull request: results, medians, verdict, failures.

Names and words come from scenarios, agents and models: none of them can become markup.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pandas as pd

from labvoice.errors import RunFileError, UsageError, writing
from labvoice.runs import statistics
from labvoice.runs.compare import Comparison, StageComparison
from labvoice.runs.run import Run

_LONGEST_NAME: Final = 60
_LONGEST_TEXT: Final = 160
_MOST_ROWS: Final = 25
_MOST_FAILURES: Final = 8
"""With these bounds a summary fits in a comment of GitHub's: 65,536 characters."""
_NONE: Final = "–"
_MARK_OF_CALL: Final = ("agent_listening", "click")


def check_link(link: str) -> str:
    """Returns an address that a link may have.

    Raises:
        UsageError: It is no plain http or https address.
    """
    if link and not re.fullmatch(r"https?://[\w.:~/?#@!$&'*+,;=%-]+", link, re.ASCII):
        raise UsageError(f"--link: {link!r} is no address", "such as https://example.org/runs/7")
    return link


def escaped(text: str, longest: int = _LONGEST_TEXT) -> str:
    """Returns a text that GitHub shows as it is: no markup, mention, reference or link in it.

    Args:
        text: Any text; its white space becomes single spaces.
        longest: How many characters are kept.
    """
    plain = "".join(" " if unicodedata.category(each)[0] == "C" else each for each in text)
    plain = " ".join(plain.split())
    if len(plain) > longest:
        plain = plain[: longest - 1] + "…"
    return "".join(
        each
        if each.isalnum() or each in " ,"
        # GitHub looks for mentions and numbers of issues in the page that the text has become.
        else f"&#{ord(each)};" + ("&#8203;" if each in "@#" else "")
        for each in plain
    )


def summary(
    run: Run,
    folder: Path,
    *,
    comparison: Comparison | None = None,
    not_compared: str = "",
    report: Path | None = None,
    link: str = "",
) -> str:
    """Returns the summary of a run.

    Args:
        folder: Where the summary will lie; files are linked from there.
        comparison: With the base run, where there is one.
        not_compared: Why there is none.
        report: The run's report, to be linked.
        link: Address of the page that has the run's files, in place of links to each.
    """
    lines = [f"### labvoice {escaped(run.header.kind)}: {_result(run)}", ""]
    if comparison is not None:
        lines += [f"**Against the base run:** {escaped(comparison.conclusion, 600)}", ""]
    elif not_compared:
        lines += [f"**Not compared with a base run:** {escaped(not_compared, 600)}", ""]
    lines += _arms(run)
    lines += _stages(run, comparison)
    lines += _failures(run, folder, link)
    if link:
        lines += [f"[Run, report and recordings]({link})", ""]
    elif report is not None:
        lines += [f"[Report]({_relative(report, folder)})", ""]
    lines += [f"Run {escaped(run.header.run_id)}. " + " ".join(map(escaped, run.warnings[:3]))]
    return "\n".join(lines).rstrip() + "\n"


def write_markdown(path: Path, summaries: Sequence[str]) -> Path:
    """Writes summaries to a file.

    Raises:
        RunFileError: It cannot be written.
    """
    with writing(path, "choose another place with `--markdown`", RunFileError):
        path.write_text("\n".join(summaries), encoding="utf-8")
    return path


def _code(text: str, longest: int = _LONGEST_NAME) -> str:
    return f"<code>{escaped(text, longest)}</code>"


def _attempts(run: Run) -> pd.DataFrame:
    """Returns what counts: the calls of scenarios, the attempts of a benchmark."""
    if run.header.kind != "test":
        return run.attempts
    every = run.outcomes
    return every[~every["warmup"] & every["turn"].isna()]


def _result(run: Run) -> str:
    attempts = _attempts(run)
    what = "calls" if run.header.kind == "test" else "attempts"
    failed = int((attempts["outcome"] != "ok").sum())
    if not failed:
        return f"all {len(attempts)} {what} passed"
    return f"{failed} of {len(attempts)} {what} failed"


def _arms(run: Run) -> Iterator[str]:
    attempts = _attempts(run)
    yield from ("| | passed | outcomes |", "| --- | ---: | --- |")
    for arm in run.arms[:_MOST_ROWS]:
        outcomes = attempts.loc[attempts["arm"] == arm, "outcome"]
        passed = int((outcomes == "ok").sum())
        counts = outcomes[outcomes != "ok"].value_counts()
        words = ", ".join(f"{_code(str(name))} {count}" for name, count in counts.items() if count)
        yield f"| {_code(arm)} | {passed} of {len(outcomes)} | {words or 'ok'} |"
    if len(run.arms) > _MOST_ROWS:
        yield f"| and {len(run.arms) - _MOST_ROWS} more | | |"
    yield ""


def _stages(run: Run, comparison: Comparison | None) -> Iterator[str]:
    compared = {(row.stage, row.arm): row for row in comparison.stages} if comparison else {}
    keys = dict.fromkeys([*run.stage_summaries, *compared])
    rows = [key for key in keys if key[0] in statistics.HEADLINE]
    if not rows:
        return
    heads = ["stage", "", "n", "median (95 %), ms"]
    if comparison is not None:
        heads += ["base, ms", "ratio (95 %)", "verdict"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'|'.join(' --- ' for _ in heads)}|"
    for stage, arm in rows[:_MOST_ROWS]:
        found = run.stage_summaries.get((stage, arm))
        cells = [_code(stage), _code(arm), str(found.n) if found else "0"]
        cells.append(_median(found.p50_s, found.ci95_s) if found else _NONE)
        if comparison is not None:
            cells += _compared(compared.get((stage, arm)))
        yield f"| {' | '.join(cells)} |"
    if len(rows) > _MOST_ROWS:
        yield f"| and {len(rows) - _MOST_ROWS} more |{' |' * (len(heads) - 1)}"
    yield ""


def _median(p50_s: float, ci95_s: tuple[float, float]) -> str:
    if math.isnan(p50_s):
        return _NONE
    low_s, high_s = ci95_s
    interval = "" if math.isnan(low_s) else f" ({low_s * 1e3:,.0f} to {high_s * 1e3:,.0f})"
    return f"{p50_s * 1e3:,.0f}{interval}"


def _compared(row: StageComparison | None) -> list[str]:
    if row is None:
        return [_NONE, _NONE, "new"]
    (low, high), ratio = row.ratio.ci95, row.ratio.ratio
    words = _NONE if math.isnan(ratio) else f"× {ratio:.2f}"
    if not math.isnan(low):
        words += f" ({low:.2f} to {high:.2f})"
    base = _NONE if math.isnan(row.base_p50_s) else f"{row.base_p50_s * 1e3:,.0f}"
    strong = f"**{row.verdict}**" if row.verdict in ("slower", "faster") else row.verdict
    return [base, words, strong]


def _failures(run: Run, folder: Path, link: str) -> Iterator[str]:
    found = list(_failed_expectations(run))
    if not found:
        return
    yield from ("<details open><summary>What did not hold</summary>", "")
    recordings = {int(row["trial"]): row for row in run.recordings.to_dict("records")}
    marks = run.marks
    for trial, failure in found[:_MOST_FAILURES]:
        where = _code(str(failure.get("where", "")), _LONGEST_TEXT)
        expectation = _code(str(failure.get("expectation", "")), _LONGEST_TEXT)
        yield f"- {where}: {expectation}: {escaped(str(failure.get('observed', '')))}"
        if failure.get("judged_by"):
            yield f"  <br>judged by: {_code(str(failure['judged_by']))}"
        if failure.get("heard"):
            yield f"  <br>heard: {escaped(str(failure['heard']))}"
        if trial in recordings:
            recording = recordings[trial]
            at_s = _instant(marks, trial, failure.get("turn")) - float(recording["start_s"])
            name = escaped(Path(recording["path"]).name)
            if not link:
                name = f"[{name}]({_relative(Path(recording['path']), folder)})"
            yield f"  <br>listen: {name}" + (
                "" if math.isnan(at_s) else f" at {max(0.0, at_s):.1f} s"
            )
    if len(found) > _MOST_FAILURES:
        yield f"- and {len(found) - _MOST_FAILURES} more"
    yield from ("", "</details>", "")


def _failed_expectations(run: Run) -> Iterator[tuple[int, dict[str, Any]]]:
    """Returns what did not hold of each scenario's call, with the call's number."""
    notes = run.notes
    if run.header.kind != "test" or "failures" not in notes:
        return
    for row in notes.dropna(subset="failures").to_dict("records"):
        for failure in json.loads(str(row["failures"])):
            yield int(row["trial"]), failure


def _instant(marks: pd.DataFrame, trial: int, turn: int | None) -> float:
    """Returns when a turn began, or the call before its first; NaN if unknown."""
    of_call = marks[marks["trial"] == trial]
    of_turn = of_call[of_call["turn"].isna() if turn is None else of_call["turn"] == turn]
    for name in _MARK_OF_CALL if turn is None else ("user_speech_start",):
        found = of_turn.loc[of_turn["mark"] == name, "t_s"]
        if len(found):
            return float(found.iloc[0])
    return math.nan


def _relative(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path, folder)).as_posix())
