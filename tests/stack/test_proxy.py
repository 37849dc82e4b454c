"""The shipped configuration of a reverse proxy, in a real nginx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from labvoice.stack.processes import ManagedProcess, free_port
from labvoice.web.server import HttpServer, bind_port
from tests.unit.web_client import OWNER, app_with

CONFIG = Path(__file__).parents[2] / "deploy" / "nginx.conf"
pytestmark = pytest.mark.debian


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[int]:
    """Puts nginx before the stub, without TLS, with time-outs of one second; tells its port."""
    port = free_port()
    async with HttpServer(app_with(), bind_port("127.0.0.1", 0)) as server:
        text = CONFIG.read_text(encoding="utf-8")
        for shipped, here in (
            ("127.0.0.1:9000", f"127.0.0.1:{server.port}"),
            ("listen 443 ssl", f"listen 127.0.0.1:{port}"),
            ("ssl_certificate", "# ssl_certificate"),
            ("_timeout 10s", "_timeout 1s"),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        (tmp_path / "labvoice.conf").write_text(text, encoding="utf-8")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = "".join(f"{kind}_temp_path {tmp_path / kind}; " for kind in kinds)
        main = tmp_path / "main.conf"
        main.write_text(
            f"daemon off; master_process off; pid {tmp_path / 'pid'}; error_log stderr;\n"
            f"events {{}}\nhttp {{ access_log off; {folders}include labvoice.conf; }}\n",
            encoding="utf-8",
        )
        process = await ManagedProcess.start(
            "nginx",
            ["nginx", "-e", "stderr", "-c", main],
            log_path=tmp_path / "nginx.log",
        )
        try:

            async def answers() -> bool:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return True

            await process.until_ready(answers, timeout_s=20, hint="its log tells")
            yield port
        finally:
            await process.stop()


async def test_the_proxy_serves(proxy: int) -> None:
    """The public name is answered, with the host that the service checks."""
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://localhost:{proxy}"
        assert (await client.get(f"{url}/healthz")).status_code == 200
        answer = await client.post(
            f"{url}/api/dispatch-agent", headers=OWNER, json={"room": "room"}
        )
        assert answer.json()["success"]


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: local",
        b"POST /api/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
    ],
)
async def test_the_proxy_cuts_slow_clients_off(proxy: int, begun: bytes) -> None:
    """A connection whose request does not arrive is closed, and labvoice hears nothing of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
    writer.write(begun)
    async with asyncio.timeout(20):
        said = await reader.read()
    writer.close()
    assert said == b""


async def test_the_proxy_bounds_one_address(proxy: int) -> None:
    """One address does not ask more often than the limit, whatever its keys."""
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://localhost:{proxy}/healthz"
        answers = await asyncio.gather(*(client.get(url) for _ in range(200)))
    assert {answer.status_code for answer in answers} == {200, 429}
