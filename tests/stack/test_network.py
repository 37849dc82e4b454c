"""What a lab asks of the network through a proxy."""

from __future__ import annotations

from pathlib import Path

from tests.stack.recording_proxy import RecordingProxy
from tests.stack.test_cli import labvoice

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_WITHOUT = {
    name: "" for upper in (*_PROXIES, "NO_PROXY") for name in (upper, upper.lower())
}  # whatever the tests' own environment says


async def test_nothing_of_an_embedded_stack_goes_through_a_proxy(tmp_path: Path) -> None:
    """Where all is on this machine a call works, and the proxy is asked for nothing."""
    proxy = RecordingProxy(9)
    async with proxy.serving():
        code, output = await labvoice(
            "call",
            "--llm=paced",
            cwd=tmp_path,
            env={**_WITHOUT, **dict.fromkeys(_PROXIES, proxy.url)},
        )
    assert code == 0, output
    assert proxy.asked == []
