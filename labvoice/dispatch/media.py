"""Where a server takes media, by its own announcement: what has to be open for a call."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

import aiohttp
import psutil
from livekit.protocol.rtc import SignalResponse

from labvoice.proxies import http_session

_TIMEOUT_S: Final = 3.0
_CANDIDATE: Final = re.compile(r"candidate:\S+ \d+ (udp|tcp) \d+ (\S+) (\d+) typ", re.IGNORECASE)


async def announced_addresses(url: str, token: str) -> list[str] | None:
    """Asks a server by its signalling where it takes media.

    Args:
        token: Of a participant; it joins for the while, without media.

    Returns:
        Addresses such as `UDP 127.0.0.1:7882`, those of TURN servers among them; none where the
        server names none within 3 s; None where its signalling does not answer.
    """
    addresses: list[str] | None = None
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with (
            asyncio.timeout(_TIMEOUT_S),
            http_session(url) as client,
            client.ws_connect(
                f"{url.rstrip('/')}/rtc?protocol=16",  # the first offer is then the server's
                headers={"Authorization": f"Bearer {token}"},
            ) as signalling,
        ):
            async for message in signalling:
                if message.type != aiohttp.WSMsgType.BINARY:
                    continue
                response = SignalResponse.FromString(message.data)
                addresses = addresses or []
                for server in response.join.ice_servers:
                    addresses += [each for each in server.urls if each.startswith("turn")]
                words = f"{response.offer.sdp}\n{response.trickle.candidateInit}"
                for protocol, host, port in _CANDIDATE.findall(words):
                    host = f"[{host}]" if ":" in host else host
                    addresses.append(f"{protocol.upper()} {host}:{port}")
                if response.trickle.final:
                    break
    return addresses if addresses is None else list(dict.fromkeys(addresses))


def has_network() -> bool:
    """Whether an interface besides loopback is up: WebRTC's client uses no loopback interface."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return any(
        not ipaddress.ip_address(each.address.partition("%")[0]).is_loopback
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if name in up and each.family in (socket.AF_INET, socket.AF_INET6)
    )


def media_hint(addresses: Sequence[str]) -> str:
    """Returns what to open so that media passes.

    Args:
        addresses: As :func:`announced_addresses` returns them.
    """
    known = f"; this server announces {', '.join(addresses)}" if addresses else ""
    fallback = (
        "and TCP `rtc.tcp_port` as the fallback"
        if not addresses or any(each.startswith("TCP") for each in addresses)
        else "or set `rtc.tcp_port` (7881) on it and open that, for it has no TCP fallback"
    )
    return (
        f"open the server's media ports from the caller and from the worker{known}: UDP "
        "`rtc.udp_port`, or all of `rtc.port_range_start` to `rtc.port_range_end` (50000 to 60000 "
        f"where neither is set), {fallback}; an address that cannot be reached at all is "
        "corrected by `rtc.node_ip`"
    )
