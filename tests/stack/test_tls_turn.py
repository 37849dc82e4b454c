"""A LiveKit server that was started by hand, with TLS in front and TURN on, as `LIVEKIT_URL`."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from livekit import rtc
from pydantic import SecretStr

from labvoice.dispatch.tokens import caller_token
from labvoice.errors import LabvoiceError
from labvoice.health.reach import measure, media_path, turn_answers
from labvoice.settings import load_settings
from labvoice.stack.livekit.binary import find_or_build
from labvoice.stack.processes import ManagedProcess, free_port
from tests.stack.talking import PATIENCE_S
from tests.stack.test_cli import labvoice

pytestmark = pytest.mark.debian
KEY, SECRET = "by-hand", "a-secret-of-the-operators-own-0123456789"


@dataclass
class ByHand:
    """What its operator knows of it."""

    plain: str
    turn_tls: int
    env: dict[str, str]


def certify(folder: Path) -> None:
    """Makes an authority and a certificate of it for this machine."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-subj")
    openssl(
        *new, "/CN=test authority", "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"
    )
    openssl(*new, "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    sign = ("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2")
    openssl(*sign, "-CAcreateserial", "-extfile", "names", "-out", "server.pem")


def nginx_config(folder: Path, port: int, behind: int) -> str:
    """TLS in front of a LiveKit server, as its own documentation asks for."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder / kind}; " for kind in kinds)
    return (
        f"daemon off; master_process off; pid {folder / 'pid'}; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n"
        "map $http_upgrade $connection_upgrade { default upgrade; '' close; }\n"
        f"server {{ listen 127.0.0.1:{port} ssl;\n"
        f"ssl_certificate {folder / 'server.pem'}; ssl_certificate_key {folder / 'server.key'};\n"
        f"location / {{ proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1;\n"
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Host $host;\n"
        "proxy_set_header Connection $connection_upgrade; proxy_read_timeout 600s; } } }\n"
    )


async def until_open(process: ManagedProcess, port: int) -> None:
    async def answers() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True

    await process.until_ready(answers, timeout_s=30, hint="its log tells")


@pytest.fixture(scope="module")
async def by_hand(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ByHand]:
    """LiveKit with TURN by UDP and by TLS, nginx with TLS before it, and one worker through it."""
    folder = tmp_path_factory.mktemp("by-hand")
    certify(folder)
    program = await find_or_build(load_settings(), lambda _: None)
    http, udp, turn_udp, turn_tls, tls = (free_port() for _ in range(5))
    config = {
        "port": http,
        "bind_addresses": ["127.0.0.1"],
        "keys": {KEY: SECRET},
        "rtc": {
            "node_ip": "127.0.0.1",
            "use_external_ip": False,
            "enable_loopback_candidate": True,
            "interfaces": {"includes": ["lo"]},
            "ips": {"includes": ["127.0.0.1/32"]},
            "udp_port": udp,
            "tcp_port": 0,
        },
        "turn": {
            "enabled": True,
            "domain": "127.0.0.1",
            "bind_addresses": ["127.0.0.1"],
            "udp_port": turn_udp,
            "tls_port": turn_tls,
            "cert_file": str(folder / "server.pem"),
            "key_file": str(folder / "server.key"),
            "allow_restricted_peer_cidrs": ["127.0.0.0/8"],
        },
    }
    env = {
        "LIVEKIT_URL": f"wss://127.0.0.1:{tls}",
        "LIVEKIT_API_KEY": KEY,
        "LIVEKIT_API_SECRET": SECRET,
        "SSL_CERT_FILE": str(folder / "ca.pem"),
    }
    started: list[ManagedProcess] = []
    try:
        started.append(
            await ManagedProcess.start(
                "LiveKit by hand",
                [program.path],
                log_path=folder / "livekit.log",
                env={"PATH": os.environ["PATH"], "LIVEKIT_CONFIG": json.dumps(config)},
                stop_step_s=2.0,
            )
        )
        await until_open(started[-1], http)
        (folder / "nginx.conf").write_text(nginx_config(folder, tls, http), encoding="utf-8")
        nginx = ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]
        started.append(await ManagedProcess.start("nginx", nginx, log_path=folder / "nginx.log"))
        await until_open(started[-1], tls)
        started.append(
            await ManagedProcess.start(
                "worker by hand",
                [sys.executable, "-m", "labvoice", "worker", "--llm", "paced"],
                log_path=folder / "worker.log",
                env={**os.environ, **env},
                cwd=folder,
                stop_step_s=3.0,
            )
        )
        yield ByHand(f"ws://127.0.0.1:{http}", turn_tls, env)
    finally:
        for process in reversed(started):
            await process.stop()


async def test_the_doctor_and_a_bench_by_tls(by_hand: ByHand, tmp_path: Path) -> None:
    """Round trip, clock, TURN and UDP are told; the worker is found by its dispatch, and measured.

    The server lists neither its log nor its workers, and labvoice starts nothing there.
    """
    arguments = ("--port", str(free_port()), "--json", "doctor.json", "--llm", "paced")
    code, output = 1, ""
    async with asyncio.timeout(180):  # until the worker, which loads its models, is registered
        while code:
            code, output = await labvoice("doctor", *arguments, cwd=tmp_path, env=by_hand.env)
            checks = json.loads((tmp_path / "doctor.json").read_text(encoding="utf-8"))["checks"]
            found = {check["name"]: check for check in checks}
            if {name for name, check in found.items() if check["ok"] is False} - {"dispatch"}:
                break
    assert code == 0, output
    assert "round trip" in found["network"]["observed"]
    assert "the server's clock is" in found["network"]["observed"]
    assert "?transport=udp answers in" in found["turn"]["observed"]
    assert "UDP to 127.0.0.1:" in found["media"]["observed"]
    assert "does not list its workers" in found["worker"]["observed"]
    bench = ("bench", "connect", "--agent", "name:letta-voice-agent", "--trials", "2")
    options = ("--warmup", "0", "--json", "run.json")
    code, output = await labvoice(*bench, *options, cwd=tmp_path, env=by_hand.env)
    assert code == 0, output
    assert json.loads((tmp_path / "run.json").read_text())["failed"] == 0


async def test_media_passes_by_turn_alone(by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """TURN answers by UDP and by TLS, and a participant that may use nothing else is connected."""
    room, name = rtc.Room(), f"relayed-{secrets.token_hex(4)}"
    token = caller_token(KEY, SecretStr(SECRET), name, "caller")
    reach = await measure(by_hand.plain, token)
    by_udp = next(url for url in reach.turn_urls if url.endswith("=udp"))
    assert await turn_answers(by_udp) > 0
    by_tls = f"turns:127.0.0.1:{by_hand.turn_tls}?transport=tcp"
    with pytest.raises(LabvoiceError, match="certificate"):
        await turn_answers(by_tls)  # nobody was told of its authority
    monkeypatch.setenv("SSL_CERT_FILE", by_hand.env["SSL_CERT_FILE"])
    assert await turn_answers(by_tls) > 0
    relay = rtc.RtcConfiguration(ice_transport_type=rtc.IceTransportType.TRANSPORT_RELAY)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await room.connect(by_hand.plain, token, rtc.RoomOptions(rtc_config=relay))
        assert (await media_path(room)).startswith("TURN over UDP")
    finally:
        await room.disconnect()
