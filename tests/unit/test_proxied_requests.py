"""What is not on this machine is asked for through the user's proxy, by every client."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

import httpx
import pytest
from livekit import rtc
from pydantic import SecretStr

from labvoice.dispatch import Dispatcher
from labvoice.dispatch.media import announced_addresses
from labvoice.errors import LabvoiceError
from labvoice.proxies import http_client
from tests.stack.recording_proxy import RecordingProxy

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


async def _signalling() -> None:
    await announced_addresses(f"ws://{HOST}", "token")


async def _native() -> None:
    with contextlib.suppress(rtc.ConnectError, TimeoutError):
        async with asyncio.timeout(2):
            await rtc.Room().connect(f"ws://{HOST}", "token")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("ask", [_model, _api, _signalling], ids=["model", "api", "signalling"])
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
        await _native()
    assert any(HOST in line for line in proxy.asked)
    assert os.environ[name] == proxy.url
