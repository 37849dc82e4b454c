"""Shared parts of all commands: options, output, signals, exit codes."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import inspect
import io
import json
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from labvoice.choices import Llm, RecordingFormat
from labvoice.errors import LabvoiceError, UsageError, writing

if TYPE_CHECKING:  # what takes time to import, which `--help` need not wait for
    from rich.console import Console

    from labvoice.runs.run import Run

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
WarmupOption = Annotated[
    int, typer.Option("--warmup", min=0, help="Warm-up trials before those that count.")
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


@dataclass(frozen=True)
class CallOptions:
    """The options of a command that makes calls: their model, their recordings, the run's files."""

    llm: LlmOption = None
    recording: RecordingOption = None
    no_recording: NoRecordingOption = False
    out: OutOption = None
    json_path: JsonOption = None

    @property
    def format(self) -> RecordingFormat | None:
        """The format that `--recording` and `--no-recording` ask for; None for neither.

        Raises:
            UsageError: They contradict each other.
        """
        if not self.no_recording:
            return self.recording
        if self.recording not in (None, "none"):
            raise UsageError(
                "both --recording and --no-recording are given", "leave one of them out"
            )
        return "none"


CALL_OPTIONS: Final = CallOptions()
"""Default of a parameter that :func:`command` replaces."""

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


@functools.cache
def console() -> Console:
    """Returns the console on which every command prints."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def tell(line: str) -> None:
    """Prints a line unchanged."""
    console().print(line, markup=False)


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Runs the work; SIGTERM and SIGINT cancel it, so that everything it started is stopped."""
    import asyncio

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


def tell_recordings(run: Run) -> None:
    """Prints where a run's recordings are."""
    for path in run.recordings["path"]:
        tell(f"recording: {path}")


async def send_traces(run: Run) -> None:
    """Sends a run's calls as traces where the environment names an endpoint.

    One that does not take them is told, and fails no command.
    """
    import asyncio

    from labvoice.protocol.tracing import traced

    if not traced():
        return
    from labvoice.traces import send

    try:
        sent = await asyncio.to_thread(send, run)
    except LabvoiceError as error:
        tell(f"warning: {error.observed}")
    else:
        tell(f"traces: {len(sent.trace_ids)}, sent to {sent.endpoint}")


def command(*left_out: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Makes a command of a coroutine function, whose result is the exit code.

    A parameter whose type is a dataclass of options becomes those options. A signal cancels the
    coroutine, so that it stops what it started.

    Args:
        left_out: Names of options of a dataclass that the command does not have.
    """

    def decorate(work: Callable[..., Coroutine[Any, Any, int]]) -> Callable[..., None]:
        own = inspect.signature(work, eval_str=True)
        groups: dict[str, tuple[type, list[str]]] = {}
        parameters: list[inspect.Parameter] = []
        for each in own.parameters.values():
            added = [each]
            if isinstance(each.annotation, type) and dataclasses.is_dataclass(each.annotation):
                options = inspect.signature(each.annotation, eval_str=True).parameters.values()
                added = [option for option in options if option.name not in left_out]
                groups[each.name] = each.annotation, [option.name for option in added]
            parameters += (one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in added)

        @functools.wraps(work)
        def run(**given: Any) -> None:
            for name, (group, options) in groups.items():
                given[name] = group(**{option: given.pop(option) for option in options})
            import asyncio

            raise typer.Exit(asyncio.run(_until_signal(work(**given))))

        run.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=parameters, return_annotation=None
        )
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Writes the machine-readable result to the file of `--json`."""
    if path is None:
        return
    with writing(path, "choose another file for `--json`"):
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    tell(f"wrote {path}")


def command_line() -> str:
    """Returns the command line, for the run file's header."""
    return shlex.join(["labvoice", *sys.argv[1:]])
