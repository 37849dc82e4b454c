"""The command line: `labvoice COMMAND`; every command exits 0, 1 or 2."""

from __future__ import annotations

import sys

import typer

from labvoice.cli.bench import bench_app, calibrate
from labvoice.cli.calls import call, dispatch
from labvoice.cli.common import show_anywhere
from labvoice.cli.runs import compare, export, import_runs, remeasure, report, runs_app
from labvoice.cli.scenarios import run_test
from labvoice.cli.stack import demo, doctor, lab, up, worker
from labvoice.cli.target import try_agent
from labvoice.errors import LabvoiceError, UsageError

app = typer.Typer(
    help="Launch, dispatch, call and measure LiveKit voice agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
for _command in (demo, lab, up, doctor, worker, dispatch, call, calibrate):
    app.command()(_command)
for _of_runs in (report, compare, remeasure, export):
    app.command()(_of_runs)
app.command("import")(import_runs)
app.command("try")(try_agent)
app.command("test")(run_test)
app.add_typer(bench_app, name="bench")
app.add_typer(runs_app, name="runs")


def main() -> None:
    """Runs the command line; a LabvoiceError is printed without a traceback."""
    show_anywhere()
    try:
        try:
            app()
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name in ("", "labvoice"):
                raise
            raise UsageError(
                f"this command needs the module {error.name}, which is not installed",
                'install an extra that contains it: `pip install "labvoice[all]"`',
            ) from None
    except LabvoiceError as error:
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
