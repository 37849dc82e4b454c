"""The command line as a process: exit codes, words, no traceback."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import soundfile
from pydantic import SecretStr

from labvoice.bench.calibrate import DELAYS_S
from labvoice.lab import Lab
from labvoice.protocol.vocabulary import (
    CALIBRATION_STAGES,
    CALLER_CONNECTION_MARKS,
    TURN_MARKS,
    TURN_STAGES,
)
from labvoice.runs.run import Run
from labvoice.settings import load_settings
from labvoice.speech.utterances import Utterance
from labvoice.stack.processes import free_port
from labvoice.web.app import create_app
from labvoice.web.lab_backend import LabBackend
from labvoice.web.security import Keyring
from labvoice.web.server import HttpServer, bind_port
from labvoice.web.settings import WebSettings
from tests.collector import collecting
from tests.stack.talking import LISTENS, PATIENCE_S

KEY = "a-key-of-the-users-own-0123456789"


async def labvoice(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 120
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
    async with asyncio.timeout(timeout_s):
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


@pytest.mark.smoke
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
        (["dispatch", "room", "--agent-name", "nobody", "--timeout", "1"], {}, 1, "nobody"),
        (["dispatch", "room"], {"LIVEKIT_API_SECRET": "x" * 32}, 1, "refuses the key"),
        (["dispatch", "room"], {"LIVEKIT_API_KEY": "nokey"}, 1, "refuses the key"),
        (["worker"], {"LIVEKIT_API_SECRET": "x" * 32}, 1, "refuse"),
    ],
)
async def test_what_the_server_refuses_ends_in_one_clear_error(
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


async def test_a_worker_whose_server_is_not_there(tmp_path: Path) -> None:
    """The worker's command says which address does not answer."""
    url = f"ws://127.0.0.1:{free_port()}"
    env = {"LIVEKIT_URL": url, "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": "s" * 32}
    code, output = await labvoice("worker", cwd=tmp_path, env=env)
    assert code == 1, output
    assert url.removeprefix("ws://") in output
    assert "hint:" in output
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
    async with asyncio.timeout(PATIENCE_S):
        rest, _ = await process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in rest.decode()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 20)
    assert alive == []


@pytest.mark.smoke
async def test_the_demo_reports_what_it_measured(tmp_path: Path) -> None:
    """The main job: stack up, connections and turns measured, report and summary written."""
    code, output = await labvoice(
        *("demo", "--trials", "1", "--calls", "1", "--warmup", "0", "--no-letta"),
        cwd=tmp_path,
        env={"LABVOICE_LLM": "paced"},
    )
    assert code == 0, output
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text(encoding="utf-8"))
    assert summary["connect"]["outcomes"] == {"ok": 1}
    assert summary["turns"]["outcomes"] == {"ok": 2}
    runs = [Run.load(path) for path in (tmp_path / "runs/demo").glob("*.jsonl")]
    assert [{arm["llm"] for arm in run.header.arms.values()} for run in runs] == [{"paced"}] * 2
    report = (tmp_path / "runs/demo/report.html").read_text(encoding="utf-8")
    assert summary["turns"]["run_id"] in report
    assert str(tmp_path / "runs/demo/report.html") in output


@LISTENS
async def test_a_call_by_command_shows_every_mark(
    recorded: list[Utterance], tmp_path: Path
) -> None:
    """A spoken file is answered; marks of the connection and of the turn are shown and written.

    Where an endpoint is set, the call and its agent's session are one trace.
    """
    soundfile.write(tmp_path / "said.wav", recorded[0].samples, recorded[0].sample_rate)
    with collecting() as collector:
        code, output = await labvoice(
            *("call", "--wav", "said.wav", "--llm", "paced", "--json", "call.json"),
            cwd=tmp_path,
            env={
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
                "OTEL_BSP_SCHEDULE_DELAY": "200",
            },
        )
    assert code == 0, output
    (root,) = (span for who, span in collector.spans if (who, span.name) == ("labvoice", "call"))
    (session,) = (span for _, span in collector.spans if span.name == "agent_session")
    assert (session.trace_id, session.parent_span_id) == (root.trace_id, root.span_id)
    call = json.loads((tmp_path / "call.json").read_text(encoding="utf-8"))
    (turn,) = call["turns"]
    assert turn["outcome"] == "ok"
    assert set(turn["marks"]) == set(TURN_MARKS) - {"answer_heard"}
    for mark in (*CALLER_CONNECTION_MARKS, *turn["marks"]):
        assert mark in output
    assert f"agent: {turn['reply']}" in output
    (path,) = (tmp_path / "runs").glob("*-call.jsonl")
    assert f"recording: {Path('runs') / path.stem / '0000.ogg'}" in output
    code, output = await labvoice("remeasure", str(path), cwd=tmp_path)
    assert code in (0, 1), output  # on a busy machine the live marks may be late
    assert "of 1 turns agree" in output


@LISTENS
async def test_runs_by_command_are_reported_and_compared(tmp_path: Path) -> None:
    """A bench writes its run; it is reported, too small for the gate, and is never written over.

    In the calibration each reply of known delay is heard, and what is read too much is its two
    ways' time.
    """
    made = ("calibrate", "--trials", "1", "--out", "run.jsonl", "--json", "run.json")
    code, output = await labvoice(*made, cwd=tmp_path)
    assert code == 0, output
    assert "voice_to_voice_error" in output
    result = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert result["outcomes"] == {"ok": len(DELAYS_S)}
    frame = Run.load(tmp_path / "run.jsonl").frame
    turns = frame[frame["turn"].notna()].pivot(index="turn", columns="stage", values="duration_s")
    assert {TURN_STAGES[0].name, *CALIBRATION_STAGES} <= set(turns.columns)
    error, uplink, downlink = (turns[name] for name in CALIBRATION_STAGES)
    assert ((error - uplink - downlink).abs() < 1e-6).all()
    assert (turns[["uplink", "downlink"]] > 0).all(axis=None)
    # No earlier than the reference answered; how much later is the figure, and no test's matter.
    assert (turns["voice_to_voice"] >= list(DELAYS_S)).all()
    code, output = await labvoice("report", "run.jsonl", "--json", "report.json", cwd=tmp_path)
    assert code == 0, output
    assert list(json.loads((tmp_path / "report.json").read_text())["runs"]) == [result["run_id"]]
    code, output = await labvoice("compare", "run.jsonl", "run.jsonl", cwd=tmp_path)
    assert code == 1, output
    assert "inconclusive: " in output
    assert "1 calls a side are too few, measure at least" in output
    code, output = await labvoice(*made, cwd=tmp_path)
    assert code == 2, output
    assert "never written over" in output
    assert "starting" not in output


@pytest.mark.parametrize("lacks", ["model", "server"])
async def test_what_cannot_be_obtained_ends_the_command(tmp_path: Path, lacks: str) -> None:
    """Weights that cannot be had, and neither a server nor Go to build it, end in one error."""
    env = {"LABVOICE_TEST_MARKER": secrets.token_hex(8), "LABVOICE_CACHE_DIR": str(tmp_path)}
    if lacks == "model":
        (tmp_path / "weights").write_text("a file where a folder should be", encoding="utf-8")
        built = load_settings().cache_dir / "livekit-server"
        (tmp_path / "livekit-server").symlink_to(built, target_is_directory=True)
        words = str(tmp_path / "weights")
    else:
        env |= {"PATH": str(tmp_path), "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "uv")}
        words = "neither a LiveKit server nor a Go toolchain"
    code, output = await labvoice("bench", "connect", "--llm", "paced", cwd=tmp_path, env=env)
    assert code == 1, output
    assert words in output
    assert "hint:" in output
    assert "Traceback" not in output
    marked = {"LABVOICE_TEST_MARKER": env["LABVOICE_TEST_MARKER"]}
    assert not [p for p in psutil.process_iter() if marked.items() <= _environment(p).items()]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


async def test_a_worker_by_command_serves_and_drains(lab: Lab, tmp_path: Path) -> None:
    """It registers, takes a dispatch, and after SIGTERM ends once its call is over."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "labvoice", "worker", "--agent-name", "by-command"),
        cwd=tmp_path,
        env={**os.environ, **server_of(lab), "LABVOICE_LLM": "paced"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        done = await lab.dispatcher.dispatch("by command", "by-command", timeout_s=90)
        assert done.worker_id
        process.send_signal(signal.SIGTERM)
        seen = ""
        async with asyncio.timeout(PATIENCE_S):
            while "draining: no new jobs" not in seen:
                seen += (await process.stdout.readline()).decode()
        with pytest.raises(TimeoutError):  # its call goes on, and so does it
            async with asyncio.timeout(1):
                await process.wait()
        await lab.dispatcher.end_room("by command", "by-command")
        async with asyncio.timeout(PATIENCE_S):
            rest, _ = await process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in rest.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_doctor_by_command_examines_a_stack_of_its_own(tmp_path: Path) -> None:
    """Without LIVEKIT_URL it starts everything, exits 0, and writes what it saw."""
    arguments = ("--llm", "paced", "--port", str(free_port()), "--json", "doctor.json")
    env = {"LIVEKIT_URL": "", "LETTA_BASE_URL": ""}
    code, output = await labvoice("doctor", *arguments, cwd=tmp_path, env=env)
    result = json.loads((tmp_path / "doctor.json").read_text(encoding="utf-8"))
    bad = {check["name"] for check in result["checks"] if check["ok"] is False}
    assert bad <= {"memory"}, output  # which other programs may need just now
    assert code == (1 if bad else 0)
    assert {check["name"] for check in result["checks"] if check["ok"]} >= {"worker", "dispatch"}


async def test_the_running_service_gives_a_failed_dispatch_its_cause(
    lab: Lab, tmp_path: Path
) -> None:
    """With the key of a lab's HTTP service, the command knows the names of the lab's workers."""
    settings = WebSettings(api_key=SecretStr(KEY))
    service = create_app(LabBackend(lab), settings, Keyring(settings))
    async with HttpServer(service, bind_port("127.0.0.1", 0)) as server:
        code, output = await labvoice(
            *("dispatch", "room", "--agent-name", "letta-voice-agnet", "--timeout", "1"),
            *("--port", str(server.port)),
            cwd=tmp_path,
            env={**server_of(lab), "LABVOICE_API_KEY": KEY},
        )
    assert code == 1
    assert "did you mean 'letta-voice-agent'?" in output
