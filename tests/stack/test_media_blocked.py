"""A real server whose signalling answers and whose media reaches nobody."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr

from labvoice.errors import JoinTimeoutError, MediaBlockedError, ServerUnreachableError
from labvoice.health.doctor import examine
from labvoice.lab import Lab
from labvoice.settings import Settings, load_settings
from labvoice.stack.livekit.binary import find_or_build
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.processes import ManagedProcess, free_port
from tests.stack.test_troubleshooting import assert_documented

_NOWHERE = "192.0.2.1"  # RFC 5737: an address that no host has


@dataclass(frozen=True)
class Blocked:
    """A server as it is behind a firewall.

    Attributes:
        settings: Name it.
        udp_port: Where it announces media; nothing arrives there.
        tcp_port: Its fallback, likewise.
    """

    settings: Settings
    udp_port: int
    tcp_port: int


@pytest.fixture(scope="module")
async def blocked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Blocked]:
    """Its announced address is nobody's, and it only answers: it seeks no way to the caller."""
    folder = tmp_path_factory.mktemp("blocked")
    port, udp_port, tcp_port = free_port(), free_port(), free_port()
    secret = "a secret of thirty-two characters"
    config = {
        "port": port,
        "bind_addresses": ["127.0.0.1"],
        "keys": {"key": secret},
        "rtc": {
            "node_ip": _NOWHERE,
            "use_ice_lite": True,
            "enable_loopback_candidate": True,
            "interfaces": {"includes": ["lo"]},
            "ips": {"includes": ["127.0.0.1/32"]},
            "udp_port": udp_port,
            "tcp_port": tcp_port,
            "stun_servers": ["127.0.0.1:3478"],
        },
    }
    program = await find_or_build(load_settings(), lambda _: None)
    process = await ManagedProcess.start(
        "blocked LiveKit server",
        [program.path],
        log_path=folder / "livekit-server.log",
        env={"PATH": os.environ["PATH"], "LIVEKIT_CONFIG": json.dumps(config)},
        stop_step_s=2.0,
    )
    url = f"ws://127.0.0.1:{port}"
    settings = load_settings(
        livekit_url=url, livekit_api_key="key", livekit_api_secret=secret, llm="paced"
    )

    async def answers() -> bool:
        try:
            await LiveKitServer.check(url, "key", SecretStr(secret))
        except ServerUnreachableError:
            return False
        return True

    await process.until_ready(answers, timeout_s=30)
    yield Blocked(settings, udp_port, tcp_port)
    await process.stop()


@pytest.fixture(scope="module")
async def muted_lab(blocked: Blocked) -> AsyncIterator[Lab]:
    """A lab on that server."""
    async with Lab(settings=blocked.settings, workers=0, letta=False) as lab:
        yield lab


def names_the_ports(hint: str, blocked: Blocked) -> bool:
    """Whether a hint names where this server takes media."""
    announced = (f"UDP {_NOWHERE}:{blocked.udp_port}", f"TCP {_NOWHERE}:{blocked.tcp_port}")
    return all(address in hint for address in announced)


@pytest.mark.smoke
async def test_a_call_says_that_media_cannot_pass(blocked: Blocked, muted_lab: Lab) -> None:
    """The caller names the cause, and the ports that this server announces."""
    with pytest.raises(MediaBlockedError) as raised:
        await muted_lab.call()
    assert_documented(raised.value.observed, "media cannot pass between it and the caller")  # entry
    assert names_the_ports(raised.value.hint, blocked)


async def test_a_dispatch_says_that_media_cannot_pass(blocked: Blocked, muted_lab: Lab) -> None:
    """A worker takes the job, its agent reaches the server, and the cause is not the worker."""
    await muted_lab.add_workers(agent_name="muted-agent", program="labvoice.agent.noop")
    with pytest.raises(JoinTimeoutError) as raised:
        await muted_lab.dispatch("muted", "muted-agent")
    assert_documented(raised.value.observed, "media cannot pass between it and its worker")  # entry
    assert names_the_ports(raised.value.hint, blocked)


async def test_the_doctor_says_that_media_cannot_pass(blocked: Blocked) -> None:
    """The doctor says the same, and nothing of a worker that took no dispatch."""
    found = await examine(blocked.settings, port=free_port())
    checks = {check.name: check for check in found}
    assert checks["key"].ok
    assert checks["media"].ok is False
    assert_documented(checks["media"].observed, "media cannot pass between it and the caller")
    assert names_the_ports(checks["media"].hint, blocked)
    assert checks["dispatch"].ok is None
    assert not re.search("no worker took", "\n".join(map(str, found)))
