"""Plot of a load: the latency of turns over the number of callers, up to the knee."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from labvoice.errors import RunFileError
from labvoice.report import style
from labvoice.report.style import BLUE, GRID, MUTED, ORANGE, VERMILION, Picture
from labvoice.runs.load import LIMIT_S, Level, knee, number
from labvoice.runs.run import Run


def load_curve(run: Run) -> Picture:
    """Draws median and 95th percentile of `voice_to_voice` over the number of callers.

    Raises:
        RunFileError: The run has no levels of load.
    """
    levels = run.levels
    if not any(math.isfinite(level.p50_s) for level in levels):
        raise RunFileError("the run has no levels of load", "see `labvoice bench load`")
    limit_s = number(run.header.config.get("limit_s"), LIMIT_S)
    with style.picture(9.6, 4.6) as figure:
        axes = figure.add_subplot()
        _line(axes, levels, "p50_s", BLUE, "median")
        _line(axes, levels, "p95_s", ORANGE, "95th percentile")
        axes.axhline(limit_s * 1e3, color=VERMILION, linewidth=1, linestyle=(0, (4, 3)))
        within = knee(levels, limit_s).within
        if within is not None:
            axes.axvline(within.callers, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xscale("log", base=2)
        axes.set_xticks(
            [level.callers for level in levels], [str(level.callers) for level in levels]
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("callers at once")
        axes.set_ylabel("voice to voice, milliseconds")
        axes.grid(axis="y", color=GRID)
        axes.legend(loc="upper left", frameon=False, fontsize=8)
        style.title(
            axes,
            "Latency under load",
            "bars: 95 % intervals, calls resampled; hollow: void, the callers were late; "
            "red: the limit; dotted: the last level within it",
        )
    return figure


def _line(axes: Axes, levels: Sequence[Level], name: str, color: str, label: str) -> None:
    drawn = [level for level in levels if math.isfinite(getattr(level, name))]
    at = [level.callers for level in drawn]
    values = [getattr(level, name) * 1e3 for level in drawn]
    axes.plot(at, values, color=color, linewidth=1.4, label=label)
    for x, y, level in zip(at, values, drawn, strict=True):
        low, high = getattr(level, name.replace("_s", "_ci95_s"))
        spread: list[list[float]] | None = None
        if math.isfinite(low):
            spread = [[max(0.0, y - low * 1e3)], [max(0.0, high * 1e3 - y)]]
        face = "none" if level.void else color
        axes.errorbar(
            x,
            y,
            yerr=spread,
            fmt="o",
            color=color,
            markerfacecolor=face,
            markersize=6,
            elinewidth=1,
        )
