"""The picture of the end-of-turn trade."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import PercentFormatter

from labvoice.errors import RunFileError
from labvoice.report import style
from labvoice.report.style import GRID, INK, MUTED, Picture
from labvoice.runs.run import Run
from labvoice.runs.turn_ends import BUDGET, fastest


def end_of_turn_trade(run: Run) -> Picture:
    """Draws the share of turns that are cut in on against the mean delay after the real end.

    Raises:
        RunFileError: The run has no ends of turns.
    """
    found = run.turn_ends
    if not found:
        raise RunFileError("the run has no ends of turns", "see `labvoice bench endpointing`")
    chosen = fastest([point for points in found.values() for point in points], BUDGET)
    with style.picture(9.6, 5.4) as figure:
        axes = figure.add_subplot()
        for number, (arm, points) in enumerate(found.items()):
            color = style.ARMS[number % len(style.ARMS)]
            delays = np.array([point.delay_s for point in points]) * 1e3
            shares = np.array([point.share for point in points])
            low, high = np.array([point.ci95 for point in points]).T
            early, late = np.array([point.delay_ci95_s for point in points]).T * 1e3
            if len(points) > 1:
                axes.fill_between(delays, low, high, color=color, alpha=0.07, linewidth=0)
            axes.errorbar(
                delays,
                shares,
                xerr=np.maximum(0, np.nan_to_num([delays - early, late - delays])),
                yerr=[shares - low, high - shares] if len(points) == 1 else None,
                marker="o" if number < len(style.ARMS) else "s",
                linestyle="-" if number < len(style.ARMS) else "--",
                markersize=4 if len(points) > 1 else 7,
                color=color,
                linewidth=1.6,
                elinewidth=0.7,
                label=arm,
            )
        axes.axhline(BUDGET, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        if chosen is not None:
            axes.plot(
                chosen.delay_s * 1e3, chosen.share, "o", markersize=13, fillstyle="none", color=INK
            )
        axes.set_ylim(bottom=-0.01)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(color=GRID)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("mean delay from the real end of the turn to its end for the agent, ms")
        axes.set_ylabel("turns that are cut in on")
        axes.legend(frameon=False, fontsize=8)
        style.title(
            axes,
            "The end of a turn: cut in, or late",
            "dashed: 5 % of turns; circle: the fastest setting below it",
        )
    return figure
