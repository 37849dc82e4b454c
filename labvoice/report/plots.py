"""Pictures of a run: where the time of a connection and of a turn goes, and how it scatters."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from labvoice.errors import RunFileError
from labvoice.protocol.vocabulary import (
    CONNECTION_STAGES,
    FAILOVER_STAGES,
    HEARD_STAGES,
    TRANSPORT,
    TURN_STAGES,
)
from labvoice.report import style
from labvoice.report.style import BLUE, GREEN, GRID, INK, MUTED, ORANGE, VERMILION, Picture
from labvoice.runs import statistics
from labvoice.runs.placement import measured_stages, place
from labvoice.runs.run import Run
from labvoice.runs.statistics import milliseconds

_HEARD, _ANSWER = (stage.name for stage in TURN_STAGES)
_COLORS: Final = {
    _HEARD: GREEN,
    _ANSWER: GREEN,
    "e2e_latency": MUTED,
    "transcription_delay": BLUE,
    "end_of_turn_delay": BLUE,
    "on_user_turn_completed_delay": BLUE,
    "llm_node_ttft": ORANGE,
    "llm_node_ttfs": ORANGE,
    "tts_node_ttfb": ORANGE,
    "playback_latency": ORANGE,
    TRANSPORT: VERMILION,
}
_DOTS: Final = 2000
"""Measurements of a stage and arm that are drawn one by one; more than these only blacken."""


def connection_waterfall(run: Run, trial: int | None = None) -> Picture:
    """Draws one connection: its headline stages, then every mark, the caller's and the worker's.

    Args:
        trial: Which one; when not given, the one nearest the median connection.

    Raises:
        RunFileError: The run has no such connection.
    """
    frame = run.frame
    of_connections = frame[frame["turn"].isna()]
    trial = _typical(run, of_connections, "connection") if trial is None else trial
    measured = measured_stages(of_connections[of_connections["trial"] == trial])
    marks = run.marks
    marks = marks[(marks["trial"] == trial) & marks["turn"].isna()].sort_values("t_s")
    if marks.empty:
        raise RunFileError(f"the run has no connection in trial {trial}", "see `run.marks`")
    spans = [
        (stage.name, *measured[stage.name])
        for stage in CONNECTION_STAGES + FAILOVER_STAGES
        if stage.name in measured
    ]
    groups = [
        (name, color, marks[marks["clock"] == clock])
        for name, clock, color in (("caller", "caller", BLUE), ("worker", "worker", ORANGE))
        if (marks["clock"] == clock).any()
    ]
    rows = len(spans) + sum(1 + len(group) for _, _, group in groups)
    with style.picture(9.6, 1.25 + 0.235 * rows) as figure:
        axes = figure.add_subplot()
        labels: list[tuple[float, str, str]] = []
        y = 0.0
        for name, start_s, duration_s in spans:
            axes.barh(y, duration_s * 1e3, 0.62, left=start_s * 1e3, color=GREEN, alpha=0.85)
            _after(
                axes, (start_s + duration_s) * 1e3, y, f"{milliseconds(duration_s)} ms", bold=True
            )
            labels.append((y, name, INK))
            y += 1
        for name, color, group in groups:
            y += 0.35
            labels.append((y, f"marks of the {name}", color))
            y += 1
            at, around = (group[name].to_numpy(float) * 1e3 for name in ("t_s", "uncertainty_s"))
            steps = np.diff(at, prepend=at[0])
            for mark, at_ms, around_ms, step_ms in zip(
                group["mark"], at, around, steps, strict=True
            ):
                axes.barh(y, step_ms, 0.3, left=at_ms - step_ms, color=color, alpha=0.35)
                axes.errorbar(
                    at_ms,
                    y,
                    xerr=around_ms or None,
                    fmt="o",
                    markersize=5,
                    color=color,
                    elinewidth=1,
                )
                _after(axes, at_ms, y, f"{at_ms:,.0f}", f"+{step_ms:,.0f}" if step_ms else "")
                labels.append((y, str(mark), INK))
                y += 1
        _rows(axes, labels, y)
        end_ms = max(1.0, float(marks["t_s"].max()) * 1e3)  # a click alone has an axis too
        axes.set_xlim(min(0.0, float(marks["t_s"].min()) * 1e3) - 0.005 * end_ms, end_ms * 1.11)
        _time_axis(axes, "milliseconds since the click")
        uncertainty_s = float(marks["uncertainty_s"].max())
        moved = (
            f"; worker's clock moved, ± {milliseconds(uncertainty_s)} ms" if uncertainty_s else ""
        )
        style.title(
            axes,
            f"From the click to an agent that listens: trial {trial}{_of_arm(run, trial)}",
            f"bars: headline stages; dots: marks, with the step since the last one{moved}",
        )
    return figure


def turn_waterfall(
    run: Run, trial: int | None = None, turn: int | None = None, *, arm: str | None = None
) -> Picture:
    """Draws one turn: what the ear waited for, and LiveKit's own figures inside it.

    They lie where :func:`labvoice.runs.placement.place` puts them, so work done ahead of the end
    of turn shows as an overlap.

    Args:
        trial: Which trial; when not given, the one with the turn nearest the median.
        turn: Which turn of it; when not given, its turn nearest the median.
        arm: Of which arm, where no trial is given; of all when not given.

    Raises:
        RunFileError: The run has no such turn that was answered.
    """
    frame = run.frame
    frame = frame[frame["turn"].notna()]
    if trial is not None:
        frame = frame[frame["trial"] == trial]
    elif arm is not None:
        frame = frame[frame["arm"] == arm]
    if turn is not None:
        frame = frame[frame["turn"] == turn]
    heard = frame[(frame["stage"] == _HEARD) & frame["duration_s"].notna()]
    heard = statistics.measured(heard) if len(statistics.measured(heard)) else heard
    if heard.empty:
        raise RunFileError("the run has no such turn that was answered", "see `run.outcomes`")
    nearest = _nearest_median(heard)
    trial, turn = (int(heard[name].to_numpy(int)[nearest]) for name in ("trial", "turn"))
    total_ms = float(heard["duration_s"].to_numpy(float)[nearest]) * 1e3
    spans = place(measured_stages(frame[(frame["trial"] == trial) & (frame["turn"] == turn)]))
    with style.picture(9.6, 1.35 + 0.3 * len(spans)) as figure:
        axes = figure.add_subplot()
        labels = []
        for y, (name, start_s, duration_s) in enumerate(spans):
            color, rest = _COLORS[name], name == TRANSPORT
            axes.barh(
                y,
                duration_s * 1e3,
                0.62,
                left=start_s * 1e3,
                color="none" if rest else color,
                edgecolor=color,
                linewidth=1,
                hatch="////" if rest else None,
                alpha=0.85,
            )
            words = f"{milliseconds(duration_s)} ms"
            _after(axes, (start_s + max(duration_s, 0)) * 1e3, y, words, bold=name == _HEARD)
            labels.append((float(y), f"{name} (the rest)" if rest else name, INK))
        _rows(axes, labels, len(spans))
        for at_ms in (0.0, total_ms):
            axes.axvline(at_ms, color=INK, linewidth=1, zorder=0)
        low_ms = min(0.0, *(start_s * 1e3 for _, start_s, _ in spans))
        answers_ms = [took_s * 1e3 for name, _, took_s in spans if name == _ANSWER]
        high_ms = max([total_ms, *answers_ms])
        axes.set_xlim(low_ms - 0.01 * high_ms, high_ms * 1.12)
        _time_axis(axes, "milliseconds since the last voiced sample left the caller")
        style.title(
            axes,
            f"From the end of speech to the reply at the ear: trial {trial}, turn {turn}"
            f"{_of_arm(run, trial)}",
            "green: at the caller's ear; grey and colours: LiveKit's own figures; "
            "hatched: what they do not explain",
        )
    return figure


def distributions(run: Run) -> Picture:
    """Draws every measurement of every stage, with its quartiles, median and p95, by arm.

    Warm-ups are hollow; failures are named. Each panel has its own scale. Of more than 2000
    measurements, 2000 are dots, spread evenly over the ranks from the least to the greatest.

    Raises:
        RunFileError: Nothing was measured.
    """
    frame = run.frame[list(statistics.SUMMARISED)]
    frame = frame[frame["plausible"]]
    shown = frame["duration_s"].notna() & ((frame["outcome"] == "ok") | frame["warmup"])
    names = sorted(frame.loc[shown, "stage"].unique(), key=statistics.stage_order)
    if not names:
        raise RunFileError("the run measured nothing that could be drawn", "see `run.outcomes`")
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    arms = run.arms
    with style.picture(3.4 * columns, lines * (0.9 + 0.42 * len(arms)) + 0.4) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(grid.flat, names, strict=False):
            _panel(axes, frame[frame["stage"] == name], run)
            axes.set_title(name, loc="left", fontsize=9.5, fontweight="bold")
        for axes in grid[:, 0] if len(arms) > 1 else []:
            axes.set_yticks(range(len(arms)), arms)
        figure.supxlabel(
            "dot: one measurement (hollow: warm-up); box: quartiles; line: median; dashed: p95",
            fontsize=8,
            color=MUTED,
        )
    return figure


def what_it_does(run: Run) -> Picture:
    """Draws what each link and each sound of the caller does to every stage, against the first arm.

    Each cell is a median with its difference to the first arm's. It is coloured where the interval
    of the rounds' ratio excludes 1 and the difference exceeds the instrument's error, and the
    darker, the larger the difference is beside the first arm's median. The last two lines are the
    word error rate and the turns that failed.

    Raises:
        RunFileError: The arms differ neither in their links nor in how their callers sound.
    """
    arms = run.header.arms
    conditions = [
        [str(columns[key]) for key in ("link", "voice") if columns.get(key)]
        for columns in arms.values()
    ]
    if len(arms) < 2 or not any(conditions):
        raise RunFileError(
            "the run compares neither links nor sounds of the caller", "see `--link` and `--noise`"
        )
    medians = {
        stage: [
            summary.p50_s * 1e3 if (summary := run.stage_summaries.get((stage, arm))) else math.nan
            for arm in arms
        ]
        for stage in sorted({stage for stage, _ in run.stage_summaries}, key=statistics.stage_order)
    }
    attempts = run.attempts
    bad = attempts["outcome"] != "ok"
    rates = {
        "word error rate": [_percent(run.word_error_rate(arm)) for arm in arms],
        "failed": [float(bad[attempts["arm"] == arm].mean()) * 100 for arm in arms],
    }
    rows = [*((name, values, "ms") for name, values in medians.items())]
    rows += [(name, values, "%") for name, values in rates.items()]
    ratios = run.ratios()
    error_ms = (run.instrument_error_s or 0.0) * 1e3
    with style.picture(2.6 + 1.75 * len(arms), 1.5 + 0.26 * len(rows)) as figure:
        axes = figure.add_subplot()
        for y, (stage, values, unit) in enumerate(rows):
            for x, (arm, value) in enumerate(zip(arms, values, strict=True)):
                if math.isnan(value):
                    continue
                change = value - values[0]
                ratio = ratios.get(f"{arm}/{next(iter(arms))}", {}).get(stage)
                shown = ratio is not None and not ratio.ci95[0] <= 1 <= ratio.ci95[1]
                if shown and abs(change) > (error_ms if stage in HEARD_STAGES else 0.0):
                    color = VERMILION if change > 0 else GREEN
                    shade = 0.5 * min(1.0, abs(change) / values[0]) if values[0] else 0.0
                    axes.barh(y, 0.96, 0.92, left=x - 0.48, color=color, alpha=shade)
                words = f"{value:,.0f}" if unit == "ms" else f"{value:.1f} %"
                words += f" ({change:+,.0f})" if x and not math.isnan(change) else ""
                axes.text(x, y, words, ha="center", va="center", fontsize=8)
        about = [
            "\n".join(dict.fromkeys([arm, *own])) for arm, own in zip(arms, conditions, strict=True)
        ]
        axes.set_xticks(range(len(arms)), about)
        axes.xaxis.tick_top()
        axes.set_xlabel("coloured: the 95 % interval of the rounds' ratio excludes 1", fontsize=8)
        axes.tick_params(axis="x", labelsize=8, labelcolor=INK, length=0)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        figure.suptitle(
            "What each does to every stage: medians in ms, and the difference to the first",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
    return figure


def _percent(share: float | None) -> float:
    return math.nan if share is None else share * 100


def _panel(axes: Axes, rows: pd.DataFrame, run: Run) -> None:
    """Draws one stage: a line of points for each arm."""
    jitter = np.random.default_rng(0)
    for y, arm in enumerate(run.arms):
        color = style.ARMS[y % len(style.ARMS)]
        of_arm = rows[rows["arm"] == arm]
        values = statistics.measured(of_arm)["duration_s"].to_numpy() * 1e3
        warm = of_arm.loc[of_arm["warmup"], "duration_s"].dropna().to_numpy() * 1e3
        stage = str(rows["stage"].iloc[0])
        summary = run.stage_summaries.get((stage, arm)) or statistics.summarise(of_arm)
        for every, face in ((values, color), (warm, "none")):
            points = _spread(every)
            axes.scatter(
                points,
                y + jitter.uniform(-0.17, 0.17, len(points)),
                s=14,
                facecolors=face,
                edgecolors=color,
                linewidths=0.7,
                alpha=0.55 if len(points) < 200 else 0.25,
            )
        if len(values):
            quartiles = np.percentile(values, (25, 75))
            axes.barh(
                y, quartiles[1] - quartiles[0], 0.5, left=quartiles[0], color=color, alpha=0.18
            )
            p50, p95 = summary.p50_s * 1e3, summary.p95_s * 1e3
            axes.vlines(p50, y - 0.3, y + 0.3, color=INK, linewidth=2)
            axes.vlines(p95, y - 0.2, y + 0.2, color=INK, linewidth=1, linestyle=(0, (2, 1.5)))
        failed = f", {summary.failed} failed" if summary.failed else ""
        p95_text = f" · p95 {milliseconds(summary.p95_s)}" if len(values) else ""
        axes.annotate(
            f"p50 {milliseconds(summary.p50_s)}{p95_text} · n {summary.n}{failed}",
            (0, y - 0.33),
            xycoords=("axes fraction", "data"),
            ha="left",
            va="bottom",
            fontsize=7.5,
            color=VERMILION if failed else MUTED,
        )
    axes.set_ylim(len(run.arms) - 0.6, -0.75)
    axes.set_yticks([])
    axes.margins(x=0.06)
    _time_axis(axes, "ms", bins=5)


def _spread(values: statistics.Floats) -> statistics.Floats:
    """At most so many of the values as are drawn, the least and the greatest among them."""
    if len(values) <= _DOTS:
        return values
    return np.sort(values)[np.linspace(0, len(values) - 1, _DOTS).astype(np.int64)]


def _typical(run: Run, frame: pd.DataFrame, stage: str) -> int:
    """Finds the trial nearest the median of a stage; any trial where none has that stage."""
    rows = statistics.measured(frame[frame["stage"] == stage])
    if rows.empty:
        trials = run.marks["trial"].to_numpy(int)
        return int(trials[-1]) if len(trials) else -1
    return int(rows["trial"].to_numpy(int)[_nearest_median(rows)])


def _of_arm(run: Run, trial: int) -> str:
    """The trial's arm, for a title; empty where the run has one."""
    arms = run.outcomes.loc[run.outcomes["trial"] == trial, "arm"]
    return f", arm {arms.iloc[0]}" if len(run.arms) > 1 and len(arms) else ""


def _nearest_median(rows: pd.DataFrame) -> int:
    """Returns the position of the row whose duration is nearest the median."""
    durations = rows["duration_s"].to_numpy(float)
    return int(np.abs(durations - np.median(durations)).argmin())


def _after(axes: Axes, x: float, y: float, text: str, quiet: str = "", bold: bool = False) -> None:
    """Writes right of a point; the quieter text follows."""
    label = axes.annotate(
        text,
        (x, y),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        fontweight="bold" if bold else "normal",
    )
    if quiet:
        axes.annotate(
            quiet,
            (1, 0.5),
            xycoords=label,
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=MUTED,
        )


def _rows(axes: Axes, labels: list[tuple[float, str, str]], height: float) -> None:
    """Names the rows, top to bottom; a heading has the colour of its marks and is bold."""
    axes.set_yticks([y for y, _, _ in labels], [text for _, text, _ in labels])
    for tick, (_, _, color) in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_color(color)
        tick.set_fontweight("normal" if color == INK else "bold")
    axes.set_ylim(height - 0.4, -0.7)


def _time_axis(axes: Axes, label: str, bins: int = 9) -> None:
    axes.set_xlabel(label, fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color=GRID)
