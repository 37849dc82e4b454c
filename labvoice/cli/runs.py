"""Commands on recorded runs: report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labvoice.cli.common import JsonOption, tell, write_json


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run files.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Also write the plots as PNG to this folder.")
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """Writes a single-file HTML report of recorded runs.

    Example: labvoice report runs/turns.jsonl --out report.html
    """
    from labvoice.report.html import write_pictures, write_report
    from labvoice.runs.run import Run

    loaded = [Run.load(path) for path in runs]
    written = write_report(loaded, out).resolve()
    tell(f"report: {written}")
    drawn = [path for run in loaded if pictures for path in write_pictures(run, pictures)]
    for path in drawn:
        tell(f"picture: {path}")
    figures = {run.header.run_id: run.to_json() for run in loaded}
    files = {"report": str(written), "pictures": [str(path) for path in drawn]}
    write_json(json_path, {**files, "runs": figures})


def compare(
    base: Annotated[Path, typer.Argument(help="Baseline run file.")],
    new: Annotated[Path, typer.Argument(help="New run file.")],
    max_regression: Annotated[
        float, typer.Option("--max-regression", min=0, help="Largest slowdown of p50 that passes.")
    ] = 0.10,
    allow_different_hosts: Annotated[
        bool, typer.Option("--allow-different-hosts", help="Allow runs of different machines.")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Compares two runs; exits 1 if a headline stage regressed.

    Example: labvoice compare base.jsonl new.jsonl --max-regression 0.10
    """
    from labvoice.runs.compare import compare as compare_runs
    from labvoice.runs.run import Run

    comparison = compare_runs(
        Run.load(base),
        Run.load(new),
        max_regression,
        allow_different_hosts=allow_different_hosts,
    )
    tell(repr(comparison))
    write_json(json_path, comparison.to_json())
    raise typer.Exit(0 if comparison.passed else 1)
