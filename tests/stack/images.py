"""Runs what the images of `deploy/Dockerfile` run, as root of a network namespace of its own.

Started by `test_images.py` under `unshare`. Each command is run as the image's user, which has no
right of root's but to read (the checkout may be in a home), on a root that is read only, with the
image's variables. Prints what was seen, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import httpx
from livekit import rtc

from tests.unit.test_deploy import ROOT, image

_SECRET = "secret-of-this-test-0123456789abcdef"
_SERVICE_KEY = "a-key-of-the-users-own-0123456789"
_ADDRESS = "10.99.0.2"
_LIVEKIT = {
    "LIVEKIT_URL": "ws://127.0.0.1:7880",
    "LIVEKIT_API_KEY": "labvoice",
    "LIVEKIT_API_SECRET": _SECRET,
    "OPENAI_BASE_URL": "http://127.0.0.1:8999/v1",
    "OPENAI_API_KEY": "none",
    "LABVOICE_LLM": "openai",
    "LABVOICE_LLM_MODEL": "paced",
}
_GIVEN = {
    "server": {"LIVEKIT_KEYS": f"labvoice: {_SECRET}", "NODE_IP": _ADDRESS, "UDP_PORT": "7882"},
    "worker": _LIVEKIT,
    "service": {**_LIVEKIT, "LABVOICE_API_KEY": _SERVICE_KEY},
}


async def start(name: str, programs: Path, cache: Path) -> asyncio.subprocess.Process:
    """Starts an image's command as its user."""
    made = image(name)
    command = [str(programs / made.command[0]), *made.command[1:]]
    here = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LABVOICE_CACHE_DIR": str(cache)}
    env = {"HOME": "/", **made.env, **_GIVEN[name], **here}
    uid, _, gid = made.user.partition(":")
    rights = "-all,+dac_read_search"
    return await asyncio.create_subprocess_exec(
        *("setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs"),
        *("--inh-caps", rights, "--ambient-caps", rights, "--bounding-set", rights),
        *command,
        env=env,
        cwd="/",
        stdout=sys.stderr,
    )


async def ready(url: str) -> None:
    """Waits until an address answers with success, as a probe asks it."""
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(120):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(url)).is_success:
                    return
            await asyncio.sleep(0.2)


async def main(livekit: Path, cache: Path) -> None:
    """Starts all three, makes a call, and ends the worker during it."""
    model = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "labvoice.stack.models.paced_model", "8999"), stdout=sys.stderr
    )
    programs = Path(sys.executable).parent
    server = await start("server", livekit.parent, cache)
    headers = {"Authorization": f"Bearer {_SERVICE_KEY}"}
    await ready("http://127.0.0.1:7880/")
    worker = await start("worker", programs, cache)
    service = await start("service", programs, cache)
    await ready("http://127.0.0.1:8081/")
    await ready("http://127.0.0.1:9000/healthz")
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as client:
        api = "http://127.0.0.1:9000/api"
        given = (await client.post(f"{api}/token", json={"room": "call"})).json()
        room, heard = rtc.Room(), asyncio.Event()
        room.on("track_subscribed", lambda *_: heard.set())
        await room.connect(given["url"], given["token"])
        asked = {"room": "call", "timeout_s": 30}
        first = (await client.post(f"{api}/dispatch-agent", json=asked)).json()
        async with asyncio.timeout(30):
            await heard.wait()
        metrics = (await client.get("http://127.0.0.1:9100/metrics")).text
        status = Path(f"/proc/{worker.pid}/status").read_text()
        worker.send_signal(signal.SIGTERM)
        late = {"room": "late", "timeout_s": 5}
        second = (await client.post(f"{api}/dispatch-agent", json=late)).json()
        during = worker.returncode, len(room.remote_participants)
        await room.disconnect()
        async with asyncio.timeout(60):
            drained = await worker.wait()
        for process in (service, server, model):
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            ended = [await process.wait() for process in (service, server, model)]
    seen = {
        "dispatched": first.get("success"),
        "reports_load": "lk_agents_worker_load" in metrics,
        "uid": status.partition("\nUid:\t")[2].split()[0],
        "dispatched_while_draining": second.get("success", False),
        "running_and_agents_while_draining": list(during),
        "worker_exit": drained,
        "service_exit": ended[0],
        "server_exit": ended[1],
    }
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
