"""The command line in this process: help, wrong use, and what needs no stack."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from labvoice.cli import app
from labvoice.errors import LabvoiceError, ServerUnreachableError
from labvoice.runs.run import Run
from labvoice.stack.processes import free_port
from tests.unit.recorded_runs import connect_run, turns_run

OPEN = ("--host", "0.0.0.0", "--allow-remote")  # noqa: S104
SERVER = {
    "LIVEKIT_URL": "ws://127.0.0.1:9",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "s" * 32,
}


def labvoice(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Returns a command's exit code, and its output with the error that its process prints."""
    done = CliRunner().invoke(app, arguments, env=dict(env or {}))
    if isinstance(done.exception, LabvoiceError):
        return done.exception.exit_code, f"{done.output}error: {done.exception}"
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "call",
        "dispatch",
        "worker",
        "lab",
        "report",
        "compare",
        "remeasure",
        "export",
        "import",
        "runs list",
        "runs prune",
        "bench connect",
        "bench turns",
        "bench burst",
        "bench failover",
        "bench endpointing",
        "bench interrupt",
        "bench http",
        "bench leaks",
        "calibrate",
        "doctor",
        "up",
    ],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """`--help` exits 0 and shows how to call it."""
    code, output = labvoice(*command.split(), "--help")
    assert code == 0
    assert "Example:" in output


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (["dispatch", "a/b"], {}, 2, "cannot be used as a room name"),
        (["dispatch", "room"], {"LIVEKIT_URL": "nonsense"}, 2, "LIVEKIT_URL"),
        (["report", "missing.jsonl"], {}, 2, "missing.jsonl"),
        (["compare", "missing.jsonl", "missing.jsonl"], {}, 2, "missing.jsonl"),
        (["bench", "connect", "--trials", "0"], {}, 2, "--trials"),
        (["bench", "endpointing", "--arms", "soon"], {}, 2, "names no end of a turn"),
        (["calibrate", "--out", "."], {}, 2, "exists already"),
        (["calibrate", "--json", "."], {}, 2, "directory"),
        (["calibrate"], {"LABVOICE_DATA_DIR": "/proc/none"}, 2, "LABVOICE_DATA_DIR"),
        (["call", "--wav", "text.wav"], {}, 2, "text.wav"),
        (["call", "--wav", "three.wav"], {}, 2, "three.wav"),
        (["call", "--wav", "missing.wav"], {}, 2, "missing.wav"),
        (["up", "--host", "0.0.0.0"], {}, 2, "--allow-remote"),  # noqa: S104
        (["up", *OPEN], {"LABVOICE_API_KEY": "k" * 20}, 2, "32"),
        (["up"], {"LABVOICE_API_KEY": "short"}, 2, "at least 16"),
        (["up", "--port", "0"], {}, 2, "--port"),
        (["up", "--host", "203.0.113.1", "--allow-remote"], {}, 1, "203.0.113.1"),
    ],
)
def test_wrong_use_ends_in_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    env: dict[str, str],
    code: int,
    words: str,
) -> None:
    """A user's mistake is one sentence with a hint and its exit code; nothing was started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.wav").write_text("this is text", encoding="utf-8")
    soundfile.write(tmp_path / "three.wav", np.zeros((100, 3), np.int16), 48000)
    got, output = labvoice(*arguments, env={**SERVER, **env})
    assert got == code, output
    assert words in output
    assert "hint:" in output or "Usage:" in output
    assert "starting" not in output


def test_a_taken_port_is_told_before_anything_starts() -> None:
    """The port of another server ends the start at once, in words."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = labvoice("up", "--port", str(port))
    assert code == 1, output
    assert f"port {port}" in output
    assert "starting" not in output


@pytest.mark.parametrize(
    "arguments", [["dispatch", "room"], ["bench", "connect", "--llm", "paced"]]
)
def test_a_server_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """A command that needs a server says which address does not answer."""
    monkeypatch.chdir(tmp_path)
    address = f"127.0.0.1:{free_port()}"
    code, output = labvoice(*arguments, env={**SERVER, "LIVEKIT_URL": f"ws://{address}"})
    assert code == 1, output
    assert address in output
    assert "hint:" in output


def test_a_regression_fails_the_comparison(tmp_path: Path) -> None:
    """`compare` exits 1 when a headline stage became slower than allowed."""
    base, slow = str(tmp_path / "base.jsonl"), str(tmp_path / "slow.jsonl")
    connect_run(tmp_path / "base.jsonl", trials=20)
    connect_run(tmp_path / "slow.jsonl", trials=20, slower=1.5)
    assert labvoice("compare", slow, base)[0] == 0
    code, output = labvoice("compare", base, slow)
    assert code == 1
    assert "slower" in output


def test_a_demo_whose_letta_is_down_still_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is in the report; what could not be shown is said, and the exit is 1."""

    async def connect(trials: int, *, out: Path, **_: object) -> Run:
        return await asyncio.to_thread(connect_run, out, trials=trials)

    async def turns(calls: int, *, out: Path, turns: int, **_: object) -> Run:
        return await asyncio.to_thread(turns_run, out, calls=calls, turns=turns)

    async def never_up() -> None:
        raise ServerUnreachableError("nothing answers at http://127.0.0.1:9", "start Letta")

    @asynccontextmanager
    async def measured(**_: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(
            bench=SimpleNamespace(connect=connect, turns=turns),
            letta_server=SimpleNamespace(until_up=never_up),
            parts=list,
            setup_s=1.0,
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("labvoice.lab.Lab", measured)
    code, output = labvoice("demo", "--trials", "2", "--calls", "1")
    assert code == 1, output
    assert "memory: not shown: nothing answers at http://127.0.0.1:9" in output
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size
    summary = json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) == {"connect", "turns", "setup_s"}
