"""Plots of turn-taking: speech of both sides over time, and false yields against yields."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from labvoice.errors import RunFileError
from labvoice.protocol.vocabulary import STAND_WINDOW_S, YIELD_WINDOW_S
from labvoice.report import style
from labvoice.report.style import BLUE, GRID, INK, MUTED, ORANGE, VERMILION, Picture
from labvoice.runs.run import Run
from labvoice.runs.turn_taking import LATE, Share

_ROWS: Final = 3
"""How many calls of each probe and arm are drawn."""
_BEFORE_S: Final = 2.5
_AFTER_S: Final = 9.0
_STANDS: Final = (
    ("S_BC", "o", "backchannels"),
    ("S_VT", "s", "coughs and laughs"),
    ("S_ND", "D", "speech to others"),
)


def who_speaks_when(run: Run) -> Picture:
    """Draws the first calls of each probe and arm: when the caller spoke, and when the agent.

    Raises:
        RunFileError: The run has no probes.
    """
    probes = run.probes
    if probes.empty or "agent_spoke" not in probes:
        raise RunFileError("the run has no probes of turn-taking", "see `labvoice bench interrupt`")
    groups = []
    for probe in dict.fromkeys(probes["probe"]):
        for arm in run.arms:
            rows = probes[(probes["probe"] == probe) & (probes["arm"] == arm)].head(_ROWS)
            if len(rows):
                name = f"{probe}, {arm}" if len(run.arms) > 1 else str(probe)
                groups.append((name, rows.to_dict("records")))
    count = sum(len(rows) for _, rows in groups) + 0.5 * len(groups)
    with style.picture(9.6, 1.5 + 0.2 * count) as figure:
        axes = figure.add_subplot()
        y, ticks = 0.0, []
        for name, rows in groups:
            ticks.append((y + (len(rows) - 1) / 2, name))
            for row in rows:
                _call(axes, y, row)
                y += 1
            y += 0.5
        axes.axvline(0, color=INK, linewidth=1, zorder=0)
        for at_s in (STAND_WINDOW_S, YIELD_WINDOW_S):
            axes.axvline(at_s, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.6)
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        axes.set_ylim(y - 0.3, -0.8)
        axes.set_xlim(-_BEFORE_S, _AFTER_S)
        axes.set_xlabel("seconds since the caller spoke over the agent", fontsize=8.5)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color=GRID)
        axes.legend(
            handles=[Patch(color=ORANGE, label="caller"), Patch(color=BLUE, label="agent")],
            loc="lower right",
            bbox_to_anchor=(1, 1),
            borderaxespad=2.4,
            ncols=2,
            frameon=False,
            fontsize=8,
        )
        style.title(
            axes,
            "Who speaks when",
            f"up to {_ROWS} calls of each probe; dashed: {STAND_WINDOW_S:g} s to go on, "
            f"{YIELD_WINDOW_S:g} s to yield; arrow: it goes on; red cross: it said nothing more",
        )
    return figure


def _call(axes: Axes, y: float, row: dict[str, Any]) -> None:
    for spans, color, offset in (
        (row["agent_spoke"], BLUE, 0.17),
        (row["caller_spoke"], ORANGE, -0.17),
    ):
        inside = [
            (max(begin_s, -_BEFORE_S), min(end_s, _AFTER_S))
            for begin_s, end_s in spans
            if end_s > -_BEFORE_S and begin_s < _AFTER_S
        ]
        axes.broken_barh(
            [(begin_s, end_s - begin_s) for begin_s, end_s in inside],
            (y + offset - 0.17, 0.34),
            color=color,
        )
    end_s = row["agent_spoke"][-1][1] if row["agent_spoke"] else _AFTER_S
    if row.get("agent_goes_on") is True and end_s < _AFTER_S:
        axes.plot(end_s + 0.12, y + 0.17, marker=">", color=BLUE, markersize=5)
    if row.get("hang") is True:
        axes.plot(_AFTER_S - 0.15, y, marker="x", color=VERMILION, markersize=5)


def yield_trade(run: Run) -> Picture:
    """Draws each arm by how often it yields to an interruption and goes on over other sounds.

    Raises:
        RunFileError: The run has not both, interruptions and sounds that ask for nothing.
    """
    shares = {arm: run.shares(arm) for arm in run.arms}
    drawn = [
        (
            arm,
            found["R_Y"],
            [(found[name], found[name + LATE], mark) for name, mark, _ in _STANDS if name in found],
        )
        for arm, found in shares.items()
        if "R_Y" in found
    ]
    drawn = [each for each in drawn if each[2]]
    if not drawn:
        raise RunFileError(
            "the run has not both interruptions and sounds that ask for nothing",
            "see `labvoice bench interrupt --probes`",
        )
    with style.picture(9.6, 5.4) as figure:
        axes = figure.add_subplot()
        for number, (_, yields, stands) in enumerate(drawn):
            color = style.ARMS[number % len(style.ARMS)]
            # Points that lie on each other are told apart by a shift of the size of a marker.
            shift = 0.012 * (number - (len(drawn) - 1) / 2)
            for place, (stood, late, marker) in enumerate(stands):
                at = stood.share + shift, yields.share + shift - 0.018 * place
                if late != stood:
                    over = [at[0], late.share + shift], [at[1], at[1]]
                    axes.plot(*over, ":", color=color, linewidth=1, zorder=1.5)
                    axes.plot(over[0][1], at[1], marker, color=color, markerfacecolor="white")
                _point(axes, at, stood, yields, color, marker, first=not place)
        axes.plot(1, 1, marker="*", markersize=13, color=GRID, zorder=0)
        axes.set_xlim(-0.05, 1.08)
        axes.set_ylim(-0.05, 1.08)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(color=GRID)
        axes.tick_params(labelsize=8)
        axes.set_xlabel(f"goes on for {STAND_WINDOW_S:g} s over a sound that asks for nothing")
        axes.set_ylabel(f"yields to an interruption within {YIELD_WINDOW_S:g} s")
        there = {marker for _, _, stands in drawn for *_, marker in stands}
        # The arms' names stand here: beside points that lie on each other they would, too.
        handles = [
            Patch(color=style.ARMS[number % len(style.ARMS)], label=arm)
            for number, (arm, _, _) in enumerate(drawn)
        ] + [
            axes.plot([], [], marker, color=MUTED, markersize=6, label=words)[0]
            for _, marker, words in _STANDS
            if marker in there
        ]
        axes.legend(handles=handles, loc="lower left", frameon=False, fontsize=8)
        style.title(
            axes,
            "To yield, and to go on",
            "one colour an arm, one mark a kind of sound, hollow: still going on after "
            f"{YIELD_WINDOW_S:g} s; bars: 95 % intervals; best: top right",
        )
    return figure


def _point(
    axes: Axes,
    at: tuple[float, float],
    stood: Share,
    yields: Share,
    color: str,
    marker: str,
    *,
    first: bool,
) -> None:
    x, y = at
    spread = [
        [[max(0.0, share.share - share.ci95[0])], [max(0.0, share.ci95[1] - share.share)]]
        for share in (stood, yields)
    ]
    axes.errorbar(
        x,
        y,
        xerr=spread[0],
        yerr=spread[1] if first else None,
        fmt=marker,
        color=color,
        markersize=8 if first else 5.5,
        elinewidth=1,
        alpha=1.0 if first else 0.7,
    )


def probe_table(probes: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns what sounds a run used, and what each is: probe, said, sound, source, count."""
    if probes.empty:
        return []
    keys = ["probe", "said", "sound", "source"]
    counts = probes.groupby(keys, sort=False, dropna=False).size().reset_index(name="count")
    return [{str(name): value for name, value in row.items()} for row in counts.to_dict("records")]
