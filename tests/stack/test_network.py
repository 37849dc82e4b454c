"""What a lab asks of the network outside, with a proxy of the user's: nothing."""

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

PROXY = "http://192.0.2.2:3128"
"""Outside: whatever goes through it is seen."""
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
PROXIES = {
    # In both cases: an empty variable in lower case hides the other one.
    **dict.fromkeys((*NAMES, *(name.lower() for name in NAMES)), PROXY),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
}


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
    """A whole demo looks up no name, sends no packet outside, and leaves no telemetry file.

    Where all is on this machine, the user's proxy is asked for nothing either.
    """
    if reason := _why_no_namespace():
        pytest.skip(f"no network namespace can be made: {reason}")
    home = tmp_path / "home"
    home.mkdir()
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "--mount", sys.executable, "-m", "tests.stack.alone", tmp_path),
        *(
            sys.executable,
            "-m",
            "labvoice",
            "demo",
            "--trials=1",
            "--calls=1",
            "--warmup=0",
            "--fresh",
        ),
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
            **PROXIES,
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
