"""What is not on this machine is asked for through the user's proxy, by every client."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from livekit import rtc
from livekit.protocol.agent import Job
from pydantic import SecretStr

import labvoice
from labvoice.agent.guard import refused_by_server
from labvoice.concurrency import cancel, poll
from labvoice.dispatch import Dispatcher
from labvoice.dispatch.media import announced_addresses
from labvoice.errors import LabvoiceError
from labvoice.proxies import http_client
from labvoice.settings import load_settings
from tests.unit.recording_proxy import RecordingProxy

HOST = "elsewhere.test:7880"  # a name that only the proxy could know
_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


async def _model() -> None:
    with contextlib.suppress(httpx.HTTPError):
        async with http_client(f"http://{HOST}", timeout=5) as client:
            await client.get(f"http://{HOST}/v1/models")


async def _api() -> None:
    with contextlib.suppress(LabvoiceError):
        async with Dispatcher(f"ws://{HOST}", "key", SecretStr("s" * 32)) as dispatcher:
            await dispatcher.dispatch("room", "agent", timeout_s=1)


async def _job(host: str = HOST) -> None:
    settings = load_settings(
        livekit_url=f"ws://{host}", livekit_api_key="key", livekit_api_secret="s" * 32
    )
    assert await refused_by_server(settings, Job(id="AJ_1", dispatch_id="AD_1")) == ""


async def _signalling() -> None:
    await announced_addresses(f"ws://{HOST}", "token")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    "ask", [_model, _api, _job, _signalling], ids=["model", "api", "job", "signalling"]
)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("spared", ["", "localhost,127.0.0.1", "elsewhere.test"])
async def test_the_users_proxy_is_asked(
    ask: Callable[[], Awaitable[None]], name: str, spared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the proxy, however it is named, unless `NO_PROXY` names the host."""
    proxy = RecordingProxy(9)
    async with proxy.serving():
        monkeypatch.setenv(name, proxy.url)
        if spared:
            monkeypatch.setenv("NO_PROXY", spared)
        await ask()
    assert any(HOST in line for line in proxy.asked) == (spared != "elsewhere.test")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
async def test_the_native_client_takes_the_users_proxy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit's native client too reaches a server elsewhere through the proxy."""
    proxy = RecordingProxy(9)
    async with proxy.serving():
        monkeypatch.setenv(name, proxy.url)
        connecting = asyncio.create_task(rtc.Room().connect(f"ws://{HOST}", "token"))
        asked = await poll(lambda: any(HOST in line for line in proxy.asked), 30.0, 0.05)
        await cancel(connecting)
    assert asked
    assert os.environ[name] == proxy.url


async def test_a_jobs_question_on_this_machine_takes_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job asks its server directly, whatever proxy is meant for the services of its plugins."""
    proxy = RecordingProxy(9)
    async with proxy.serving():
        for name in _NAMES[:3]:
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        await _job("127.0.0.1:9")
    assert proxy.asked == []


_NEEDED = {
    "ClientSession": {"trust_env", "proxy"},
    "AsyncClient": {"trust_env", "proxy"},
    "Client": {"trust_env", "proxy"},
    "LiveKitAPI": {"session"},
    "AsyncOpenAI": {"http_client"},
    "AsyncLetta": {"http_client"},
    "AgentServer": {"http_proxy"},
}
"""What says, to each client of HTTP, which proxy to take."""
_AT_ONCE = {"httpx": {"get", "post", "put", "request", "stream"}, "aiohttp": {"request"}}
_OTHER_CLIENTS = {"requests", "urllib3", "http.client"}


def _unruled(file: Path) -> Iterator[int]:
    """Lines that make a client which takes the environment's proxy, or none, by its own rule."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), keywords=given):
                if not _NEEDED.get(name, set()) <= {each.arg for each in given}:
                    yield node.lineno
                if name == "urlopen":
                    yield node.lineno
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                # A job's own client of the server goes through its plugins' proxy.
                if name in _AT_ONCE.get(module, set()) or (module, name) == ("context", "api"):
                    yield node.lineno
            case ast.Import(names=[ast.alias(name=module)]) | ast.ImportFrom(module=module):
                if module in _OTHER_CLIENTS:
                    yield node.lineno


def test_every_client_knows_the_rule() -> None:
    """Nothing in the package asks by HTTP but through what decides on the proxy by the address."""
    package = Path(labvoice.__file__).parent
    rule = package / "proxies.py"
    found = [
        f"{file.relative_to(package)}:{line}"
        for file in package.rglob("*.py")
        if file != rule
        for line in _unruled(file)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "aiohttp.ClientSession()",
        "httpx.AsyncClient(trust_env=False)",
        "LiveKitAPI(url, key, secret)",
        "context.api.room",
        "httpx.get(url)",
        "import requests",
    ],
)
def test_a_client_without_the_rule_is_found(source: str, tmp_path: Path) -> None:
    """The check sees each way to make one."""
    (tmp_path / "made.py").write_text(source)
    assert list(_unruled(tmp_path / "made.py")) == [1]
