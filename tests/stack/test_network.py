"""What a lab asks of the network: proxies, and the world outside."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labvoice.settings import load_settings
from tests.stack.alone import CONTROL_ADDRESS, CONTROL_NAME
from tests.stack.recording_proxy import RecordingProxy
from tests.stack.test_cli import labvoice

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_LOWER = tuple(name.lower() for name in _PROXIES)
_WITHOUT = dict.fromkeys((*_PROXIES, *_LOWER, "NO_PROXY", "no_proxy"), "")
"""Whatever the tests' own environment says."""


async def test_nothing_of_an_embedded_stack_goes_through_a_proxy(tmp_path: Path) -> None:
    """Where all is on this machine a call works, and the proxy is asked for nothing."""
    proxy = RecordingProxy(9)
    async with proxy.serving():
        code, output = await labvoice(
            "call",
            "--llm=paced",
            cwd=tmp_path,
            # In both cases: an empty variable in lower case hides the other one.
            env={**_WITHOUT, **dict.fromkeys(_PROXIES + _LOWER, proxy.url)},
        )
    assert code == 0, output
    assert proxy.asked == []


def _why_no_namespace() -> str:
    """Why no network of its own can be made here; empty where one can."""
    if sys.platform != "linux":
        return "a network namespace is Linux's"
    command = ["unshare", "--net", "--mount", "ip", "link", "add", "out0", "type", "veth"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return tried.stderr.strip() if tried.returncode else ""


async def test_a_demo_asks_for_nothing_outside(tmp_path: Path) -> None:
    """A whole demo looks up no name, sends no packet outside, and leaves no telemetry file."""
    if reason := _why_no_namespace():
        pytest.skip(f"no network namespace can be made: {reason}")
    home = tmp_path / "home"
    home.mkdir()
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "--mount", sys.executable, "-m", "tests.stack.alone", tmp_path),
        *(sys.executable, "-m", "labvoice", "demo", "--trials=1", "--calls=1", "--fresh"),
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
            **_WITHOUT,
            "HOME": str(home),  # where a library would keep files of its own
            "LABVOICE_CACHE_DIR": str(load_settings().cache_dir),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(400):
        output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked == {"names": [CONTROL_NAME], "addresses": [CONTROL_ADDRESS]}, output
    assert not (home / ".cache" / "Microsoft").exists()
    assert (tmp_path / "runs" / "demo").is_dir(), output
