"""`labvoice up` as a process: what it prints, what it hides, how it ends."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
from livekit import api
from pydantic import SecretStr

from labvoice.lab import Lab
from labvoice.report.html import write_report
from labvoice.stack.processes import free_port
from tests.collector import Collector, collecting
from tests.stack.talking import PATIENCE_S
from tests.stack.test_cli import server_of
from tests.stack.test_dispatch import agents_in

KEY = "a-key-of-the-users-own-0123456789"


class Up:
    """A running `labvoice up`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, key: str) -> None:
        self.process = process
        self.port = port
        self.key = key
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Authorization": f"Bearer {key}"}
        self.printed = ""

    async def end(self) -> int:
        """Presses Ctrl-C; returns the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            out, err = await self.process.communicate()
        self.printed += out.decode() + err.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def up(
    tmp_path: Path, env: dict[str, str], *options: str, port: int = 0
) -> AsyncIterator[Up]:
    """Runs `labvoice up` until the block ends."""
    import os

    port = port or free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "labvoice", "up", "--port", str(port), "--llm", "paced", "--no-letta", *options),
        cwd=tmp_path,
        env={**os.environ, "LABVOICE_DATA_DIR": str(tmp_path / "data"), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    running = Up(process, port, env.get("LABVOICE_API_KEY", ""))
    try:
        async with asyncio.timeout(90):
            while "Ctrl-C ends all of it" not in running.printed:
                line = (await process.stdout.readline()).decode()
                assert line, running.printed
                running.printed += line
        if found := re.search(r"#key=(\S+)", running.printed):
            running.key = found[1]
            running.headers = {"Authorization": f"Bearer {found[1]}"}
        yield running
    finally:
        await running.end()


async def assert_traced(collector: Collector, client: httpx.AsyncClient) -> None:
    """The page's trace goes on in the service and in the agent's session; no words are in it."""
    trace_id, click = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    def spans() -> set[tuple[str, str, str, str]]:
        """Service, name, trace and parent of all that came."""
        return {
            (service, span.name, span.trace_id.hex(), span.parent_span_id.hex())
            for service, span in list(collector.spans)
        }

    headers = {"traceparent": f"00-{trace_id}-{click}-01"}
    body = {"room": "traced"}
    done = (await client.post("/api/dispatch-agent", json=body, headers=headers)).json()
    assert done["success"], done
    await client.delete(f"/api/dispatches/{done['dispatch_id']}")
    turn = {"number": 0, "marks": {"user_speech_end": 4, "reply_heard": 5}}
    marks = {"click": 0, "agent_listening": 1.5}
    report = {"room": "traced", "sent_s": 6, "marks": marks, "turns": [turn]}
    await client.post("/api/calls/call-0001", json=report, headers=headers)
    of_service = {
        ("labvoice-service", name, trace_id, click)
        for name in ("POST /api/dispatch-agent", "connection", "voice_to_voice")
    }
    session = ("labvoice-agent", "agent_session", trace_id)
    async with asyncio.timeout(PATIENCE_S):
        # Spans come when their batch is due; there is nothing to be woken by.
        while not of_service <= spans() or session not in {span[:3] for span in spans()}:
            await asyncio.sleep(0.1)
    assert not [span for span in spans() if "/api/calls" in span[1]]
    assert b"how can I help" not in collector.bodies


async def test_up_serves_and_ctrl_c_ends_all(tmp_path: Path) -> None:
    """One worker, a key printed once, an agent on request, webhooks taken; then nothing is left.

    With an endpoint set, a request is traced into the job.
    """
    with collecting() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        async with (
            up(tmp_path, env) as running,
            httpx.AsyncClient(
                base_url=running.url, headers=running.headers, trust_env=False, timeout=30
            ) as client,
        ):
            assert running.printed.count(running.key) == 1
            assert len(running.key) >= 32
            assert (await client.get("/readyz")).json()["ready"]
            await assert_traced(collector, client)
            done = (await client.post("/api/dispatch-agent", json={"room": "up"})).json()
            assert done["success"]
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    text = (await client.get("/metrics")).text
                    if 'labvoice_webhooks_total{event="participant_joined"}' in text:
                        break
                    await asyncio.sleep(0.1)
            assert 'labvoice_agents{state="listening"}' in text
            assert "labvoice_worker_load_ratio" in text
            children = psutil.Process(running.process.pid).children(recursive=True)
            assert len(children) >= 3
            assert await running.end() == 128 + signal.SIGINT
    assert "Traceback" not in running.printed
    assert done["job_id"] in running.printed
    assert done["dispatch_id"] in running.printed
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 20)
    assert alive == []


async def test_no_secret_shows_anywhere(lab: Lab, tmp_path: Path) -> None:
    """Output, logs, pages, answers, process arguments, children's environments, files: no secret.

    The LiveKit secret reaches the worker by its environment, which only its own user can read.
    The service listens to all, says so, and answers at the address that it printed.
    """
    server = server_of(lab)
    secrets = [KEY, server["LIVEKIT_API_SECRET"]]
    options = ("--workers", "0", "--host", "0.0.0.0", "--allow-remote")  # noqa: S104
    async with up(tmp_path, {**server, "LABVOICE_API_KEY": KEY}, *options) as running:
        assert "warning: the service listens on 0.0.0.0" in running.printed
        printed = re.search(r"page: (\S+)/debug", running.printed)
        assert printed is not None
        seen: list[str] = []
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client:
            assert (await client.get(f"{printed[1]}/healthz")).status_code == 200
            paths = (await client.get("/openapi.json")).json()["paths"]
            for path in ["/", "/debug", "/docs", "/openapi.json", "/static/page.js", *paths]:
                url = path.format(room="r", dispatch_id="AD_x", call_id="call-0001")
                for headers in ({}, running.headers, {"Authorization": f"Bearer {KEY[:-1]}"}):
                    for method in ("GET", "POST", "DELETE"):
                        answer = await client.request(
                            method, url, headers=headers, json={"room": "r", "key": KEY}
                        )
                        seen += [answer.text, str(answer.headers)]
        own = psutil.Process(running.process.pid)
        children = own.children(recursive=True)
        assert children
        seen += [" ".join(process.cmdline()) for process in [own, *children]]
        for process in children:
            assert KEY not in process.environ().values()
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files
        seen += [path.read_text(encoding="utf-8", errors="replace") for path in files]
        assert await running.end() == 128 + signal.SIGINT
    seen.append(running.printed)
    for secret in secrets:
        assert [text for text in seen if secret in text] == []


async def test_no_provider_key_shows_anywhere(lab: Lab, tmp_path: Path) -> None:
    """A measured call with keys of OpenAI and Deepgram set: they are in nothing that is left.

    The endpoint's model is used, and the lab starts none of its own. The keys are not in the run
    file, the report, what a notebook shows, the logs of LiveKit, model and
    workers, or the arguments of any process. They reach the worker by its environment.
    """
    keys = {"openai": "sk-not-a-real-openai-key-0123456789", "deepgram": "dg-not-real-0123456789ab"}
    out, report = tmp_path / "run.jsonl", tmp_path / "report.html"
    seen: dict[str, str] = {}
    async with Lab(
        openai_base_url=lab.settings.openai_base_url,
        openai_api_key=SecretStr(keys["openai"]),
        deepgram_api_key=SecretStr(keys["deepgram"]),
        letta=False,
        data_dir=tmp_path / "data",
    ) as keyed:
        assert "external" in repr(keyed)
        assert "model server" not in repr(keyed)
        run = await keyed.bench.connect(1, warmup=0, out=out)
        write_report([run], report)
        children = psutil.Process().children(recursive=True)
        seen["arguments"] = "\n".join(" ".join(process.cmdline()) for process in children)
        workers = {worker.process.pid for worker in keyed.pool.workers}
        in_workers = [p.environ().values() for p in children if p.pid in workers]
        assert keys["openai"] in in_workers[0]
        for path in [out, report, *keyed.settings.data_dir.rglob("*")]:
            if path.is_file():
                seen[path.name] = path.read_text(encoding="utf-8", errors="replace")
        shown = [keyed, run, keyed.settings, keyed.pool.events, keyed.pool.frame(), run.frame]
        seen["notebook"] = "\n".join(repr(each) for each in shown) + keyed._repr_html_()
    assert {"run.jsonl", "report.html", "worker-1.log", "arguments"} <= seen.keys()
    for secret in keys.values():
        assert [name for name, text in seen.items() if secret in text] == []


async def test_a_restart_loses_no_accepted_dispatch(lab: Lab, tmp_path: Path) -> None:
    """Dispatches in flight when the service is told to end are answered; their agents stay."""
    server = {**server_of(lab), "LABVOICE_API_KEY": KEY}
    rooms = [f"restart-{number}" for number in range(2)]
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        async with up(tmp_path, server, "--workers", "0") as running:
            asked = [
                asyncio.create_task(
                    client.post(
                        f"{running.url}/api/dispatch-agent",
                        headers=running.headers,
                        json={"room": room, "timeout_s": 20},
                    )
                )
                for room in rooms
            ]
            await asyncio.sleep(0.1)
            await running.end()
        answered = [answer.json() for answer in await asyncio.gather(*asked)]
        answers = [answer for answer in answered if answer["success"]]
        assert answers, answered
        async with up(tmp_path, server, "--workers", "0") as running:
            for answer in answers:
                again = await client.post(
                    f"{running.url}/api/dispatch-agent",
                    headers=running.headers,
                    json={"room": answer["room"]},
                )
                assert again.json()["dispatch_id"] == answer["dispatch_id"]
    for answer in answers:
        assert await agents_in(lab, answer["room"]) == [answer["agent_identity"]]
    for room in rooms:
        await lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=room))
    await lab.wait_idle()
