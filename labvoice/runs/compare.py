"""Compares two runs stage by stage, and decides a regression gate."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from labvoice.errors import RunFileError, UsageError
from labvoice.protocol.vocabulary import HEARD_STAGES
from labvoice.runs import statistics
from labvoice.runs.exact import more_often
from labvoice.runs.lines import FORMAT
from labvoice.runs.run import Run
from labvoice.runs.statistics import finite
from labvoice.runs.tables import template

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class StageComparison:
    """One stage of the base and of the new run; times in seconds.

    Attributes:
        stage: Its name.
        arm: Configuration of the new run.
        base_p50_s: Median of the base; NaN if it was not measured.
        new_p50_s: Median of the new run.
        ratio: Their ratio, its 95 % interval, and the test's p-value.
        calls: The smaller number of calls of the two sides.
        needed: Smallest number of calls per side that can show a difference.
        p_adjusted: The p-value, Holm-corrected for the number of headline stages; uncorrected for
            other stages.
        instrument_s: The larger instrument's error of the two runs, for what is heard; 0 where
            it is not known.
    """

    stage: str
    arm: str
    base_p50_s: float
    new_p50_s: float
    ratio: statistics.Ratio
    calls: int
    needed: int
    p_adjusted: float = math.nan
    instrument_s: float = 0.0

    @property
    def below_instrument(self) -> bool:
        """Whether the difference is smaller than the instrument's own error."""
        return abs(self.new_p50_s - self.base_p50_s) < self.instrument_s

    @property
    def verdict(self) -> str:
        """The verdict of interval and test together.

        `slower` or `faster` where both do, `no difference shown`, also for one below the
        instrument's error, or `inconclusive` for too few calls or a median of zero.
        """
        low, high = self.ratio.ci95
        if math.isnan(self.new_p50_s):
            return "not measured any more"
        if self.calls < self.needed or math.isnan(low) or math.isnan(self.p_adjusted):
            return "inconclusive"
        if self.below_instrument:
            return "no difference shown"
        if self.p_adjusted < _SIGNIFICANT and low > 1:
            return "slower"
        if self.p_adjusted < _SIGNIFICANT and high < 1:
            return "faster"
        return "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """A comparison of two runs; created by :func:`compare`.

    Attributes:
        base: The run to compare with.
        new: The new run.
        max_regression: Largest allowed increase of a headline stage's median, as a fraction.
        stages: Every stage that the base measured, by configuration.
    """

    base: Run
    new: Run
    max_regression: float
    stages: list[StageComparison]

    @cached_property
    def regressions(self) -> list[str]:
        """Why the gate fails, a sentence each; empty if it does not."""
        sentences = []
        arms = len({row.arm for row in self.stages}) > 1
        for row in self.stages:
            if row.stage not in statistics.HEADLINE:
                continue
            name = f"{row.stage} of {row.arm}" if arms else row.stage
            if math.isnan(row.new_p50_s):
                sentences.append(f"{name} was measured in the base and not in the new run")
            elif row.verdict == "slower" and row.ratio.ratio > 1 + self.max_regression:
                low, high = row.ratio.ci95
                sentences.append(
                    f"{name} is slower: p50 {row.base_p50_s * 1e3:,.0f} → "
                    f"{row.new_p50_s * 1e3:,.0f} ms, × {row.ratio.ratio:.2f} "
                    f"({low:.2f} to {high:.2f}, p {row.p_adjusted:.2g}), more than "
                    f"{self.max_regression:.0%} are allowed"
                )
        (base_failed, base_n), (new_failed, new_n) = map(_failures, (self.base, self.new))
        # A run must not pass because slow attempts failed.
        if more_often(new_failed, new_n, base_failed, base_n) < _SIGNIFICANT:
            sentences.append(
                f"more attempts fail: {base_failed} of {base_n} → {new_failed} of {new_n}"
            )
        return sentences

    @cached_property
    def unknown(self) -> list[str]:
        """What is inconclusive, a sentence each; then the gate does not pass."""
        sentences = []
        for row in self.stages:
            if row.stage not in statistics.HEADLINE or row.verdict != "inconclusive":
                continue
            if row.calls < row.needed:
                sentences.append(
                    f"{row.stage} of {row.arm}: {row.calls} calls a side are too few, measure at "
                    f"least {row.needed}"
                )
            else:
                sentences.append(
                    f"{row.stage} of {row.arm}: its median is zero or nearly so, which bounds no "
                    "ratio"
                )
        if not any(row.stage in statistics.HEADLINE for row in self.stages):
            sentences.append("no headline stage was measured in the base")
        return sentences

    @property
    def passed(self) -> bool:
        """Whether the gate passes: every headline stage was judged, and none regressed."""
        return not self.regressions and not self.unknown

    @cached_property
    def differences(self) -> list[str]:
        """Differences in configuration, host and versions between the runs, a sentence each."""
        sides = [
            {
                **{f"config {key}": value for key, value in run.header.config.items()},
                **{f"host {key}": run.header.host.get(key) for key in ("cpu", "cores", "python")},
                **dict(_versions(run)),
            }
            for run in (self.base, self.new)
        ]
        arms = [
            f"{column} of {new}: {old_columns.get(column)} → {new_columns.get(column)}"
            for old, new in _pairs(self.base, self.new)
            for old_columns, new_columns in [
                (self.base.header.arms[old], self.new.header.arms[new])
            ]
            for column in dict.fromkeys((*old_columns, *new_columns))
            if old_columns.get(column) != new_columns.get(column)
        ]
        names = dict.fromkeys(itertools.chain(*sides))
        return arms + [
            f"{name}: {sides[0].get(name)} → {sides[1].get(name)}"
            for name in names
            if sides[0].get(name) != sides[1].get(name) and name != "config command"
        ]

    @property
    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table: headings, and rows of cells."""
        heads = ["stage", "arm", "base p50 ms", "new p50 ms", "ratio", "95 %", "p", "verdict"]
        rows = [
            [
                row.stage,
                row.arm,
                _ms(row.base_p50_s),
                _ms(row.new_p50_s),
                _figure(row.ratio.ratio, ".3f"),
                f"{_figure(row.ratio.ci95[0], '.3f')} to {_figure(row.ratio.ci95[1], '.3f')}",
                _figure(row.p_adjusted, ".2g"),
                _judgement(row),
            ]
            for row in self.stages
        ]
        return heads, rows

    @property
    def conclusion(self) -> str:
        """The gate's result in one sentence, after what shows that a machine was the limit."""
        sides = (("base", self.base), ("new run", self.new))
        limits = [f"In the {name}: {run.overload}" for name, run in sides if run.overload]
        return " ".join([*limits, self._verdict])

    @property
    def _verdict(self) -> str:
        if self.regressions:
            return f"failed: {'; '.join(self.regressions)}."
        if self.unknown:
            return f"inconclusive: {'; '.join(self.unknown)}."
        return (
            f"passed: no headline stage is shown to be more than {self.max_regression:.0%} slower."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the machine-readable result, in seconds; None for a missing figure."""
        return {
            "format": FORMAT,
            "base": self.base.header.run_id,
            "new": self.new.header.run_id,
            "kind": self.base.header.kind,
            "max_regression": self.max_regression,
            "passed": self.passed,
            "regressions": self.regressions,
            "inconclusive": self.unknown,
            "differences": self.differences,
            "stages": [
                {
                    "stage": row.stage,
                    "arm": row.arm,
                    "base_p50_s": finite(row.base_p50_s),
                    "new_p50_s": finite(row.new_p50_s),
                    **row.ratio.to_json(),
                    "p_adjusted": finite(row.p_adjusted),
                    "verdict": row.verdict,
                    "instrument_error_s": row.instrument_s or None,
                }
                for row in self.stages
            ],
        }

    def __repr__(self) -> str:
        heads, rows = self.cells
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            f"{self.base.header.run_id} → {self.new.header.run_id}",
            *(f"differs in {sentence}" for sentence in self.differences),
            "",
            *(
                "  ".join(
                    cell.ljust(width) if column in (0, 1, len(heads) - 1) else cell.rjust(width)
                    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
                ).rstrip()
                for row in [heads, *rows]
            ),
            "",
            self.conclusion,
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return template("comparison.html.j2").render(comparison=self)


def compare(
    base: Run, new: Run, max_regression: float = 0.10, *, allow_different_hosts: bool = False
) -> Comparison:
    """Compares a run with another one, stage by stage, configuration by configuration.

    Args:
        base: The run to compare with.
        new: The new run.
        max_regression: Largest allowed increase of a headline stage's median: 0.1 is 10 %.
        allow_different_hosts: Compare even if CPU or core count differ.

    Raises:
        RunFileError: The runs differ in kind, loop, configurations or host, or the base
            measured nothing.
        UsageError: `max_regression` is negative.
    """
    if not max_regression >= 0:
        raise UsageError(
            f"a maximum regression of {max_regression} is negative",
            "use 0.10 for 10 %",
        )
    for what in ("kind", "loop"):
        old_value, new_value = getattr(base.header, what), getattr(new.header, what)
        if old_value != new_value:
            raise RunFileError(
                f"the runs differ in {what}: {old_value} and {new_value}",
                "compare runs of the same bench",
            )
    if not allow_different_hosts:
        _require_same_host(base, new)
    error_s = max(run.instrument_error_s or 0.0 for run in (base, new))
    good = [statistics.measured(run.frame) for run in (base, new)]
    rows = []
    for old_arm, new_arm in _pairs(base, new):
        old, now = (
            frame[frame["arm"] == arm] for frame, arm in zip(good, (old_arm, new_arm), strict=True)
        )
        for stage in sorted(old["stage"].unique(), key=statistics.stage_order):
            of_old, of_new = old[old["stage"] == stage], now[now["stage"] == stage]
            rows.append(
                StageComparison(
                    stage=stage,
                    arm=new_arm,
                    base_p50_s=statistics.percentile(of_old["duration_s"], 50),
                    new_p50_s=statistics.percentile(of_new["duration_s"], 50),
                    ratio=statistics.compare_medians(
                        of_old["duration_s"],
                        of_old["unit"],
                        of_new["duration_s"],
                        of_new["unit"],
                    ),
                    instrument_s=error_s if stage in HEARD_STAGES else 0.0,
                    calls=min(of_old["unit"].nunique(), of_new["unit"].nunique()),
                    needed=0,
                )
            )
    if not rows:
        raise RunFileError(
            f"the base run {base.header.run_id} measured nothing to compare with",
            "choose a base run with successful attempts",
        )
    return Comparison(base, new, max_regression, _judged(rows))


def _judgement(row: StageComparison) -> str:
    """The verdict in the table, with the instrument's error where that decided."""
    if row.verdict == "no difference shown" and row.below_instrument:
        return f"{row.verdict} (below the instrument's error of {_ms(row.instrument_s)} ms)"
    return row.verdict


def _judged(rows: list[StageComparison]) -> list[StageComparison]:
    """Adds what the number of headline stages demands: Holm's p-values, and the calls needed."""
    tested = sorted(
        (row for row in rows if row.stage in statistics.HEADLINE and row.ratio.p_value >= 0),
        key=lambda row: row.ratio.p_value,
    )
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, row in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * row.ratio.p_value))
        adjusted[id(row)] = highest
    headline = sum(row.stage in statistics.HEADLINE for row in rows)
    return [
        replace(
            row,
            needed=_calls_needed(headline if row.stage in statistics.HEADLINE else 1),
            p_adjusted=adjusted.get(id(row), row.ratio.p_value),
        )
        for row in rows
    ]


def _calls_needed(tests: int) -> int:
    """Returns the least number of calls a side at which so many tests can show anything.

    With n values a side the two-sided Mann–Whitney test has no p-value below 2 / C(2n, n).
    """
    return next(n for n in itertools.count(2) if 2 / math.comb(2 * n, n) < _SIGNIFICANT / tests)


def _require_same_host(base: Run, new: Run) -> None:
    for fact in ("cpu", "cores"):
        old_value, new_value = base.header.host.get(fact), new.header.host.get(fact)
        if old_value != new_value:
            raise RunFileError(
                f"the runs come from different hosts: {fact} {old_value or 'unknown'} "
                f"and {new_value or 'unknown'}",
                "measure both on one host, or allow it explicitly "
                "(`allow_different_hosts=True`, `--allow-different-hosts`)",
            )


def _pairs(base: Run, new: Run) -> list[tuple[str, str]]:
    """Pairs the configurations: by name, or the only one of each."""
    if set(base.arms) == set(new.arms):
        return [(arm, arm) for arm in base.arms]
    if len(base.arms) == len(new.arms) == 1:
        return [(base.arms[0], new.arms[0])]
    raise RunFileError(
        f"the runs have different arms: {', '.join(base.arms)} and {', '.join(new.arms)}",
        "measure the same `--arms` in both",
    )


def _failures(run: Run) -> tuple[int, int]:
    attempts = run.attempts
    return int((attempts["outcome"] != "ok").sum()), len(attempts)


def _versions(run: Run) -> list[tuple[str, object]]:
    versions = run.header.host.get("versions")
    return (
        [(f"version of {k}", v) for k, v in versions.items()] if isinstance(versions, dict) else []
    )


def _ms(value_s: float) -> str:
    return _figure(value_s * 1e3, ",.1f")


def _figure(value: float, style: str) -> str:
    return "–" if math.isnan(value) else format(value, style)
