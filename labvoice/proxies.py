"""Proxies from the environment: used for remote hosts, never for this machine."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # typeshed lacks the second
    getproxies_environment,
    proxy_bypass_environment,
)

import aiohttp
import httpx

if TYPE_CHECKING:
    from livekit import api

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_HTTP: Final = ("http_proxy", "HTTP_PROXY")
_ALL: Final = (*_HTTP, "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_EXCEPT: Final = ("no_proxy", "NO_PROXY")
_HTTP_KEPT: Final = "LABVOICE_PROXY_FOR_HTTP"
_CHANGED: Final = (*_HTTP, *_EXCEPT, _HTTP_KEPT)
_API_TIMEOUT_S: Final = 10.0
_lock = threading.Lock()
_entered = 0
_before: dict[str, str] = {}


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host in _LOOPBACK or host.startswith("127.")


def proxy_for(url: str) -> str | None:
    """Returns the environment's proxy for an address; None for a direct connection.

    Args:
        url: URL of the request; `ws` counts as `http`, `wss` as `https`.
    """
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass_environment(parts.hostname or ""):
        return None
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    proxies = getproxies_environment()
    kept = os.environ.get(_HTTP_KEPT) if scheme == "http" else None
    return proxies.get(scheme) or kept or proxies.get("all")


def http_client(url: str, **options: Any) -> httpx.AsyncClient:
    """Returns a client for one server, which uses its proxy if it has one."""
    if is_loopback(url):
        named = os.environ.get("SSL_CERT_FILE")  # httpx reads it together with the proxies only
        if named and url.startswith("https:"):
            options.setdefault("verify", ssl.create_default_context(cafile=named))
        return httpx.AsyncClient(trust_env=False, **options)
    return httpx.AsyncClient(proxy=proxy_for(url), **options)


def http_session(url: str, **options: Any) -> aiohttp.ClientSession:
    """Returns an aiohttp session for one server, through the proxy that is meant for it, if any."""
    proxy = proxy_for(url) or ""
    # It speaks HTTP proxies only.
    return aiohttp.ClientSession(proxy=proxy if proxy.startswith("http") else None, **options)


@asynccontextmanager
async def livekit_api(url: str, key: str, secret: str) -> AsyncIterator[api.LiveKitAPI]:
    """Context manager: a client of a LiveKit server's API, through the proxy that is meant for it.

    A job's own client (`JobContext.api`) shares the session that its plugins use, and its proxy.
    """
    from livekit import api

    async with http_session(url, timeout=aiohttp.ClientTimeout(total=_API_TIMEOUT_S)) as session:
        yield api.LiveKitAPI(url, key, secret, session=session)


def spare_loopback(environment: MutableMapping[str, str], livekit_url: str) -> None:
    """Changes an environment so that requests to this machine use no proxy.

    Most clients respect `NO_PROXY`. LiveKit's native client opens `ws://` through `HTTP_PROXY`
    regardless of `NO_PROXY`, also when it reconnects: if the server is on this machine, that
    variable is moved to another name, which :func:`proxy_for` reads.
    """
    if not any(environment.get(name) for name in (*_ALL, _HTTP_KEPT)):
        return
    listed = next((environment[name] for name in _EXCEPT if environment.get(name)), "")
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in _LOOPBACK if host not in hosts]
    environment.update(dict.fromkeys(_EXCEPT, ",".join(hosts)))
    if is_loopback(livekit_url):
        named = [value for name in _HTTP if (value := environment.pop(name, ""))]
        if named:
            environment[_HTTP_KEPT] = named[0]


@contextmanager
def loopback_spared(livekit_url: str) -> Iterator[None]:
    """Context manager: this process and its children use no proxy for this machine."""
    global _entered  # the environment is shared by the whole process
    with _lock:
        if not _entered:
            _before.clear()
            _before.update({name: os.environ[name] for name in _CHANGED if name in os.environ})
        _entered += 1
        spare_loopback(os.environ, livekit_url)
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                for name in _CHANGED:
                    os.environ.pop(name, None)
                os.environ.update(_before)


def proxies_for_a_child() -> dict[str, str]:
    """Returns the environment variables for a child process: proxies for remote hosts only."""
    proxies = getproxies_environment()
    if (kept := os.environ.get(_HTTP_KEPT)) is not None:
        proxies.setdefault("http", kept)
    environment = {f"{scheme}_proxy": address for scheme, address in proxies.items()}
    spare_loopback(environment, "")
    return environment
