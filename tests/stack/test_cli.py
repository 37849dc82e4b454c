"""The command line as a process: exit codes, words, no traceback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from labvoice.lab import Lab
from labvoice.stack.processes import free_port


async def labvoice(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs the command line; returns its exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "labvoice",
        *arguments,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def server_of(lab: Lab) -> dict[str, str]:
    """The environment that names a lab's server."""
    assert lab.settings.livekit_url
    assert lab.settings.livekit_api_key
    assert lab.settings.livekit_api_secret
    return {
        "LIVEKIT_URL": lab.settings.livekit_url,
        "LIVEKIT_API_KEY": lab.settings.livekit_api_key,
        "LIVEKIT_API_SECRET": lab.settings.livekit_api_secret.get_secret_value(),
    }


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
        "bench connect",
        "bench turns",
    ],
)
async def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    """`--help` exits 0 and shows how to call it."""
    code, output = await labvoice(*command.split(), "--help", cwd=tmp_path)
    assert code == 0
    assert "Example:" in output


async def test_a_demo_whose_letta_is_down_still_reports(tmp_path: Path) -> None:
    """What was measured is in the report; what could not be shown is said, and the exit is 1."""
    code, output = await labvoice(
        *("demo", "--trials", "1", "--calls", "1", "--llm", "paced"),
        cwd=tmp_path,
        env={"LETTA_BASE_URL": "http://127.0.0.1:9"},
    )
    assert code == 1, output
    assert "memory: not shown: nothing answers at http://127.0.0.1:9" in output
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size
    assert (tmp_path / "runs" / "demo" / "summary.json").stat().st_size


async def test_a_dispatch_by_command_is_proved(lab: Lab, tmp_path: Path) -> None:
    """`labvoice dispatch` prints the agent that joined, and writes it as JSON."""
    code, output = await labvoice(
        "dispatch", "cli room", "--json", "out.json", cwd=tmp_path, env=server_of(lab)
    )
    assert code == 0, output
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["success"]
    assert result["outcome"] == "ok"
    assert result["agent_identity"] in output


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (["dispatch", "a/b"], {}, 2, "cannot be used as a room name"),
        (["dispatch", "room", "--agent-name", "nobody", "--timeout", "1"], {}, 1, "nobody"),
        (["dispatch", "room"], {"LIVEKIT_API_SECRET": "x" * 32}, 1, "refuses the key"),
        (["dispatch", "room"], {"LIVEKIT_API_KEY": "nokey"}, 1, "refuses the key"),
        (["dispatch", "room"], {"LIVEKIT_URL": "nonsense"}, 2, "LIVEKIT_URL"),
        (["worker"], {"LIVEKIT_API_SECRET": "x" * 32}, 1, "refuse"),
        (["report", "missing.jsonl"], {}, 2, "missing.jsonl"),
        (["compare", "missing.jsonl", "missing.jsonl"], {}, 2, "missing.jsonl"),
        (["bench", "connect", "--trials", "0"], {}, 2, "--trials"),
        (["lab"], {}, 2, "notebooks"),
    ],
)
async def test_bad_input_ends_in_one_clear_error(
    lab: Lab,
    tmp_path: Path,
    arguments: list[str],
    env: dict[str, str],
    code: int,
    words: str,
) -> None:
    """A user's mistake is one sentence with a hint and the right exit code, never a traceback."""
    got, output = await labvoice(*arguments, cwd=tmp_path, env={**server_of(lab), **env})
    assert got == code, output
    assert words in output
    assert "Traceback" not in output
    assert "hint:" in output or "Usage:" in output


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Every command that needs a server says which address does not answer."""
    url = f"ws://127.0.0.1:{free_port()}"
    env = {"LIVEKIT_URL": url, "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": "s" * 32}
    for arguments in (["dispatch", "room"], ["worker"], ["bench", "connect"]):
        code, output = await labvoice(*arguments, cwd=tmp_path, env=env)
        assert code == 1, output
        assert url.removeprefix("ws://") in output
        assert "hint:" in output
        assert "Traceback" not in output


async def test_a_wav_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A file that is no WAV, and one of an odd shape, end with exit code 2."""
    (tmp_path / "text.wav").write_text("this is text", encoding="utf-8")
    soundfile.write(tmp_path / "three.wav", np.zeros((100, 3), np.int16), 48000)
    for name in ("text.wav", "three.wav", "missing.wav"):
        code, output = await labvoice("call", "--wav", name, cwd=tmp_path)
        assert code == 2, output
        assert name in output
        assert "Traceback" not in output


async def test_ctrl_c_ends_all_of_it(lab: Lab, tmp_path: Path) -> None:
    """SIGINT to a command in mid-run stops everything that it started, and is no traceback."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "labvoice",
        "bench",
        "connect",
        "--llm",
        "paced",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(90):
        while "worker: starting" not in seen:
            seen += (await process.stdout.readline()).decode()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        rest, _ = await process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in rest.decode()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 20)
    assert alive == []
