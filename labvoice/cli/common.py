"""Shared parts of all commands: options, output, signals, exit codes."""

from __future__ import annotations

import asyncio
import codecs
import io
import json
import shlex
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from labvoice.errors import UsageError
from labvoice.settings import Llm, RecordingFormat

if TYPE_CHECKING:  # it takes a second to import, which `--help` need not wait for
    from labvoice.runs.run import Run

console = Console(highlight=False, soft_wrap=True)

JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", dir_okay=False, help="Also write the machine-readable result to this file."
    ),
]
LlmOption = Annotated[
    Llm | None, typer.Option("--llm", help="Language model behind the agent (LABVOICE_LLM).")
]
RecordingOption = Annotated[
    RecordingFormat | None,
    typer.Option("--recording", help="Format of the calls' recordings (LABVOICE_RECORDING)."),
]
NoRecordingOption = Annotated[
    bool, typer.Option("--no-recording", help="Keep no recording, as --recording none.")
]
TrialsOption = Annotated[int, typer.Option("--trials", min=1, help="Number of measured trials.")]
ArmsOption = Annotated[str, typer.Option("--arms", help="Configurations to compare: a,b,…")]


def _new_file(path: Path | None) -> Path | None:
    if path is not None:
        from labvoice.runs.writer import check_new  # takes a second, `--help` need not wait

        check_new(path)  # raises before anything is started
    return path


OutOption = Annotated[
    Path | None, typer.Option("--out", callback=_new_file, help="The run file to write.")
]
AgentNameOption = Annotated[
    str | None, typer.Option("--agent-name", help="Name of the agent (LABVOICE_AGENT_NAME).")
]
PortOption = Annotated[
    int, typer.Option("--port", min=1, max=65535, help="Port of the HTTP service.")
]
LettaOption = Annotated[
    bool, typer.Option("--letta/--no-letta", help="With or without memory by Letta.")
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Use an empty Letta database, deleted at the end.")
]
LettaAgentOption = Annotated[
    str | None, typer.Option("--letta-agent", help="Letta agent by id or name.")
]


AGENT_HELP: Final = (
    "path/agent.py, path/agent.py@REVISION, a command line, name:NAME at LIVEKIT_URL, "
    "bot:COMMAND with {url} {token} {room}, own, stock or stock-naive."
)
_PLAIN: Final = {"✓": "+", "✗": "x", "–": "-", "—": "-", "→": "->", "…": "...", "’": "'", "µ": "u"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replaces characters that the terminal cannot show by similar ones."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in text), error.end


def show_anywhere() -> None:
    """Makes output work in any encoding, without a traceback."""
    codecs.register_error("labvoice-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="labvoice-plain")


def tell(line: str) -> None:
    """Prints a line unchanged."""
    console.print(line, markup=False)


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Runs the work; SIGTERM and SIGINT cancel it, so that everything it started is stopped."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    got: list[int] = []

    def stop(number: int) -> None:
        got.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not got:
            raise
        tell("stopped")
        return 128 + got[0]


def recording_of(recording: RecordingFormat | None, no_recording: bool) -> RecordingFormat | None:
    """Returns the format that `--recording` and `--no-recording` ask for; None for neither.

    Raises:
        UsageError: They contradict each other.
    """
    if not no_recording:
        return recording
    if recording not in (None, "none"):
        raise UsageError("both --recording and --no-recording are given", "leave one of them out")
    return "none"


def tell_recordings(run: Run) -> None:
    """Prints where a run's recordings are."""
    for path in run.recordings["path"]:
        tell(f"recording: {path}")


def run_command(work: Coroutine[Any, Any, int]) -> None:
    """Runs a command's work and ends with its exit code; a signal stops what it started."""
    raise typer.Exit(asyncio.run(_until_signal(work)))


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Writes the machine-readable result to the file of `--json`."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", "choose another file for `--json`"
        ) from None
    tell(f"wrote {path}")


def command_line() -> str:
    """Returns the command line, for the run file's header."""
    return shlex.join(["labvoice", *sys.argv[1:]])
