"""The report: recorded runs in one HTML file that needs nothing else, network included."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from labvoice.errors import RunFileError, UsageError, writing
from labvoice.report import glossary, load, plots, style, turn_ends, turn_taking, view
from labvoice.report.style import Picture
from labvoice.runs import players
from labvoice.runs.run import Run

_ENVIRONMENT = Environment(
    loader=PackageLoader("labvoice.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGE_COLORS = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.PAPER: "none",
    style.BLUE: "var(--accent)",
}
_CAPTIONS: tuple[tuple[Callable[[Run], Picture], str], ...] = (
    (
        load.load_curve,
        "What each number of callers came to, from the intended start of each turn. The knee is "
        "the last level within the limit before the first that is not.",
    ),
    (
        turn_ends.end_of_turn_trade,
        "Each line is a detector over all pairs of delays, computed on the audio of the turns; "
        "each single point is a setting in calls. Bottom left is best. Vertical: Clopper and "
        "Pearson's 95 % interval of the share; horizontal: bootstrap 95 % interval of the mean "
        "delay.",
    ),
    (
        turn_taking.yield_trade,
        "Each arm by two shares: how often it yields to an interruption, and how often it goes on "
        "over a sound that asks for nothing. An agent that is never interrupted is at the bottom "
        "right, one that stops at every sound at the top left.",
    ),
    (
        turn_taking.who_speaks_when,
        "The first calls of each probe, by the caller's ear: what it sent, and when it heard the "
        "agent.",
    ),
    (
        plots.what_it_does,
        "Every stage by link and by sound of the caller: the median, its difference to the first "
        "arm, and the darker, the larger that is. Failed turns are in the last line and in no "
        "median.",
    ),
    (
        plots.turn_waterfall,
        "The turn nearest the median. LiveKit gives durations, not instants: hearing is placed "
        "forward from the end of speech, answering backward from its first audio, so work done "
        "ahead of the end of the turn shows as an overlap.",
    ),
    (
        plots.connection_waterfall,
        "The connection nearest the median. A worker's marks are moved to the caller's clock by "
        "the measured offset.",
    ),
    (plots.distributions, "Every measurement of every stage; each panel has its own scale."),
)


def write_report(runs: Sequence[Run], path: Path) -> Path:
    """Writes a report of runs as a single HTML file.

    Args:
        runs: In the order in which they are shown.
        path: The file; one that is there is replaced, its folder is made.

    Returns:
        The path.

    Raises:
        RunFileError: The file cannot be written.
        UsageError: There is no run.
    """
    if not runs:
        raise UsageError("a report needs at least one run", "name a run file")
    page = _ENVIRONMENT.get_template("report.html.j2").render(
        runs=runs,
        pictures=[
            [
                (inline_svg(figure, f"r{number}-{name}"), caption)
                for name, figure, caption in _drawn(run)
            ]
            for number, run in enumerate(runs)
        ],
        # The player's own template escapes the texts in it.
        players=[[Markup(each._repr_html_()) for each in players.players(run)] for run in runs],  # noqa: S704
        links=[players.links(run, path) for run in runs],
        view=view,
        sounds=[turn_taking.probe_table(run.probes) for run in runs],
        stages=glossary.STAGES,
        outcomes=glossary.OUTCOMES,
    )
    with writing(path, "choose another place with `--out`", RunFileError):
        path.write_text(page, encoding="utf-8")
    return path


def write_pictures(run: Run, folder: Path) -> list[Path]:
    """Writes each picture that the run has data for as `KIND-PICTURE.png`; returns their paths.

    Raises:
        RunFileError: The folder cannot be written.
    """
    written = []
    for name, figure, _ in _drawn(run):
        path = folder / f"{run.header.kind}-{name}.png"
        with writing(path, "choose another place", RunFileError):
            figure.savefig(path, dpi=110)
        written.append(path)
    return written


def inline_svg(figure: Picture, prefix: str) -> Markup:
    """Draws a figure as SVG for use inside a page: its colours and font, ids of its own.

    Args:
        prefix: Put before every id, which must be unique within a page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    # HTML knows SVG's namespaces; the prolog and the addresses in them are of no use there.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg, count=2)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', 'role="img" ', svg, count=1)
    svg = svg.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    svg = svg.replace("'DejaVu Sans'", "var(--sans)")
    for color, variable in _PAGE_COLORS.items():
        svg = svg.replace(color, variable)
    return Markup(svg)  # noqa: S704  # matplotlib escapes the texts in it


def _drawn(run: Run) -> Iterator[tuple[str, Picture, str]]:
    """Draws what the run has data for: name, picture, caption."""
    for draw, caption in _CAPTIONS:
        with suppress(RunFileError):
            yield draw.__name__.replace("_", "-"), draw(run), caption
