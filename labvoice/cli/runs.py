"""Commands on recorded runs: report, compare, remeasure, export, import, the folder of runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final

import typer

from labvoice.cli.common import (
    CallOptions,
    JsonOption,
    NoRecordingOption,
    OutOption,
    RecordingOption,
    command_line,
    console,
    tell,
    tell_recordings,
    write_json,
)
from labvoice.errors import RunFileError, UsageError

runs_app = typer.Typer(help="The recorded runs in a folder.", no_args_is_help=True)
_FOLDER: Final = Path("runs")
FolderArgument = Annotated[Path, typer.Argument(help="The folder; folders in it count too.")]
MarkdownOption = Annotated[
    Path | None,
    typer.Option(
        "--markdown", dir_okay=False, help="Also write a summary for a pull request there."
    ),
]
LinkOption = Annotated[
    str,
    typer.Option(
        "--link", metavar="URL", help="Page with the run's files, which the summary links to."
    ),
]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run files.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Also write the plots as PNG to this folder.")
    ] = None,
    markdown: MarkdownOption = None,
    link: LinkOption = "",
    json_path: JsonOption = None,
) -> None:
    """Writes a single-file HTML report of recorded runs.

    Example: labvoice report runs/turns.jsonl --out report.html
    """
    from labvoice.report.html import write_pictures, write_report
    from labvoice.report.markdown import check_link, summary, write_markdown
    from labvoice.runs.run import Run

    check_link(link)
    loaded = [Run.load(path) for path in runs]
    written = write_report(loaded, out).resolve()
    tell(f"report: {written}")
    drawn = [path for run in loaded if pictures for path in write_pictures(run, pictures)]
    for path in drawn:
        tell(f"picture: {path}")
    if markdown is not None:
        found = [summary(run, markdown.parent, report=written, link=link) for run in loaded]
        tell(f"wrote {write_markdown(markdown, found)}")
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
    markdown: MarkdownOption = None,
    link: LinkOption = "",
    json_path: JsonOption = None,
) -> None:
    """Compares two runs; exits 1 if a headline stage regressed.

    The summary of `--markdown` is written also where they cannot be compared, and says why.

    Example: labvoice compare base.jsonl new.jsonl --max-regression 0.10
    """
    from labvoice.report.markdown import check_link, summary, write_markdown
    from labvoice.runs.compare import compare as compare_runs
    from labvoice.runs.run import Run

    check_link(link)
    run, comparison, why = Run.load(new), None, None
    try:
        comparison = compare_runs(
            Run.load(base), run, max_regression, allow_different_hosts=allow_different_hosts
        )
        tell(repr(comparison))
    except RunFileError as error:
        why = error
    if markdown is not None:
        text = summary(
            run,
            markdown.parent,
            comparison=comparison,
            not_compared=why.observed if why else "",
            link=link,
        )
        tell(f"wrote {write_markdown(markdown, [text])}")
    if comparison is None:
        assert why is not None
        raise why
    write_json(json_path, comparison.to_json())
    raise typer.Exit(0 if comparison.passed else 1)


def remeasure(
    run: Annotated[Path, typer.Argument(help="Run file, with its recordings beside it.")],
    json_path: JsonOption = None,
) -> None:
    """Finds the ear's marks again in the recordings alone, and prints both.

    Exits 1 if fewer than 95 % of the turns agree within 20 ms; of `bench interrupt` the marks, of
    a run without turns the calls' greetings.

    Example: labvoice remeasure runs/turns.jsonl
    """
    import pandas as pd
    from rich.table import Table

    from labvoice.runs.remeasure import AGREES_S
    from labvoice.runs.remeasure import remeasure as remeasure_run
    from labvoice.runs.run import Run

    found = remeasure_run(Run.load(run))
    table = Table("call.turn", "mark")
    for head in ("live, ms since click", "recorded", "difference"):
        table.add_column(head, justify="right")
    known = found.marks.dropna(subset=["live_s", "recorded_s"], how="all")
    for row in known.to_dict("records"):
        live_ms, recorded_ms, apart_ms = (
            float(row[name]) * 1e3 for name in ("live_s", "recorded_s", "difference_s")
        )
        figures = ["–" if math.isnan(each) else f"{each:.0f}" for each in (live_ms, recorded_ms)]
        apart = "–" if math.isnan(apart_ms) else f"{apart_ms:+.0f}"
        beyond = " !" if abs(apart_ms) > AGREES_S * 1e3 else ""
        turn = row["turn"]
        name = f"{row['trial']}" + ("" if pd.isna(turn) else f".{int(turn) + 1}")
        table.add_row(name, str(row["mark"]), *figures, apart + beyond)
    console().print(table)
    tell(repr(found))
    write_json(json_path, found.to_json())
    raise typer.Exit(0 if found.passed else 1)


def export(
    run: Annotated[Path, typer.Argument(help="Run file.")],
    to: Annotated[str, typer.Option("--to", help="Format: audacity, otlp or parquet.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder (audacity) or file; beside the run.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Collector's base address (otlp); OTEL_EXPORTER_OTLP_ENDPOINT's."),
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Send what was spoken as well (otlp).")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Writes a run in another program's format: Audacity's label tracks, or Parquet.

    Or sends it by OTLP, for Jaeger, Langfuse or another collector: a trace for each call.

    Example: labvoice export runs/turns.jsonl --to audacity

    Example: labvoice export runs/turns.jsonl --to otlp --endpoint http://127.0.0.1:4318
    """
    from labvoice.runs.export import export as export_run
    from labvoice.runs.run import Run

    if to != "otlp" and (endpoint is not None or words):
        raise UsageError("--endpoint and --words are for `--to otlp`", "leave them out")
    if to != "otlp":
        written = export_run(Run.load(run), to, out)
        for path in written:
            tell(f"wrote {path}")
        write_json(json_path, {"to": to, "files": [str(path) for path in written]})
        return
    if out is not None:
        raise UsageError("`--to otlp` writes no file", "leave out `--out`; see `--endpoint`")
    from labvoice.traces import send

    sent = send(Run.load(run), endpoint, words=words)
    tell(f"sent {len(sent.trace_ids)} traces, {sent.spans} spans, to {sent.endpoint}")
    write_json(json_path, {"to": to, **sent._asdict()})


def import_runs(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Session reports (JSON) and recordings with two channels."),
    ] = None,
    caller: Annotated[
        Path | None, typer.Option("--caller", help="A call's recording of the caller alone.")
    ] = None,
    agent: Annotated[
        Path | None, typer.Option("--agent", help="The same call's recording of the agent alone.")
    ] = None,
    agent_delay: Annotated[
        float,
        typer.Option("--agent-delay", help="How much later the agent's file begins, in seconds."),
    ] = 0.0,
    caller_channel: Annotated[
        str, typer.Option("--caller-channel", help="The caller's channel: left or right.")
    ] = "left",
    arm: Annotated[str, typer.Option("--arm", help="Name of the configuration.")] = "production",
    recording: RecordingOption = None,
    no_recording: NoRecordingOption = False,
    out: OutOption = None,
    json_path: JsonOption = None,
) -> None:
    """Measures calls that were recorded elsewhere, and writes them as a run.

    A call is a session report of livekit-agents, a recording (of egress, or of the agent), or both:
    a report belongs to the recording that it names, or that has its name. The caller is on the left
    channel, as livekit-agents records; egress with DUAL_CHANNEL_AGENT has it on the right.

    Example: labvoice import calls/*.json calls/*.ogg --out runs/last-week.jsonl

    Example: labvoice import call.ogg --caller-channel right

    Example: labvoice import --caller caller.ogg --agent agent.ogg --agent-delay 0.35
    """
    from labvoice.bench.imports import find_calls, import_calls

    if caller_channel not in ("left", "right"):
        raise UsageError(f"there is no channel {caller_channel!r}", "left or right")
    if (caller is None) != (agent is None):
        raise UsageError("one side of a call is given", "give `--caller` and `--agent`")
    calls = find_calls(
        files or [],
        (caller, agent) if caller is not None and agent is not None else None,
        caller="left" if caller_channel == "left" else "right",
        agent_delay_s=agent_delay,
    )
    run = import_calls(
        calls,
        out,
        arm=arm,
        command=command_line(),
        recording=CallOptions(recording=recording, no_recording=no_recording).format or "ogg",
    )
    tell(repr(run))
    for notice in run.notes.get("notice", []):
        if isinstance(notice, str) and notice:
            tell(f"notice: {notice}")
    tell(f"run: {run.path}")
    tell_recordings(run)
    write_json(json_path, run.to_json())


@runs_app.command("list")
def runs_list(folder: FolderArgument = _FOLDER, json_path: JsonOption = None) -> None:
    """Lists runs, newest first, with their sizes.

    Example: labvoice runs list
    """
    from rich.table import Column, Table

    from labvoice.runs.stored import size_text, stored_runs

    runs = stored_runs(folder)
    # Without borders a path of the usual length is whole on a line of 80 characters.
    table = Table(Column("file", overflow="fold"), "kind", "recordings", "in all", box=None)
    for run in runs:
        table.add_row(
            str(run.path) + (" (under way)" if run.under_way else ""),
            run.kind,
            f"{len(run.recordings)}, {size_text(run.recordings_size)}",
            size_text(run.size),
        )
    console().print(table)
    total = size_text(sum(run.size for run in runs))
    tell(f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {total}")
    facts = [
        {
            "path": str(run.path),
            "run_id": run.run_id,
            "kind": run.kind,
            "started_at": run.started.isoformat(),
            "under_way": run.under_way,
            "recordings": [str(path) for path in run.recordings],
            "size_bytes": run.size,
            "recordings_bytes": run.recordings_size,
        }
        for run in runs
    ]
    write_json(json_path, {"runs": facts})


@runs_app.command("prune")
def runs_prune(
    folder: FolderArgument = _FOLDER,
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="So many of the newest runs stay.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Older ones go: 14d, 12h, 2w.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="The oldest go until the rest fits: 2GB.")
    ] = None,
    recordings_only: Annotated[
        bool, typer.Option("--recordings-only", help="Remove recordings, keep the run files.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json_path: JsonOption = None,
) -> None:
    """Removes old runs with their recordings, and nothing that labvoice did not make.

    Example: labvoice runs prune --older-than 14d --max-size 2GB --dry-run
    """
    from labvoice.runs import stored

    runs = stored.stored_runs(folder)
    chosen = stored.to_remove(
        runs,
        keep=keep,
        older_than=None if older_than is None else stored.parse_age(older_than),
        max_size=None if max_size is None else stored.parse_size(max_size),
        recordings_only=recordings_only,
    )
    verb = "would remove" if dry_run else "removed"
    freed = 0
    for run in chosen:
        size = run.recordings_size if recordings_only else run.size
        if not dry_run:
            stored.remove(run, recordings_only=recordings_only)
        freed += size
        what = f"{len(run.recordings)} recordings of " if recordings_only else ""
        tell(f"{verb} {what}{run.path}, {stored.size_text(size)}")
    left = sum(run.size for run in runs) - freed
    tell(
        f"{verb} {len(chosen)} of {len(runs)} runs, {stored.size_text(freed)}; "
        f"{stored.size_text(left)} {'would stay' if dry_run else 'stay'}"
    )
    write_json(
        json_path,
        {
            "dry_run": dry_run,
            "removed": [str(run.path) for run in chosen],
            "freed_bytes": freed,
            "left_bytes": left,
        },
    )
