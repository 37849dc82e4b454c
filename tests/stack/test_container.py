"""Inside a container: no multicast, no route outside, a home that cannot be written, umask 077."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labvoice.settings import load_settings
from tests.stack.talking import LISTENS
from tests.stack.test_troubleshooting import assert_documented

_CONTAINER = """
ip link set lo up multicast off
ip link add out0 type veth peer name out1
ip addr add 10.99.0.2/24 dev out0
ip link set out0 up
ip link set out1 up
umask 077
mount --bind "$HOME" "$HOME"
mount -o remount,bind,ro "$HOME"
exec "$@"
"""


def _inside(*command: str) -> list[str]:
    """A command in namespaces of its own; as a user, where users may make them."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "sh", "-ec", _CONTAINER, "sh", *command]


async def _call(home: Path, env: dict[str, str]) -> tuple[int, str]:
    """Makes a call there, from a folder that can be written."""
    home.mkdir(exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "LABVOICE_"))
    }
    base = {**kept, "HOME": str(home)}
    tried = await asyncio.to_thread(
        subprocess.run, _inside("true"), env=base, capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no namespaces can be made: {tried.stderr.strip()}")
    process = await asyncio.create_subprocess_exec(
        *_inside(sys.executable, "-m", "labvoice", "call", "--llm=paced", "--say=Good morning."),
        cwd=home.parent,
        env={**base, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(180):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@LISTENS
@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
async def test_a_call_in_a_container(tmp_path: Path) -> None:
    """A call works with cache and data elsewhere, and writes nothing into the home."""
    cache, data = tmp_path / "cache", tmp_path / "data"
    cache.mkdir()
    (cache / "labvoice").symlink_to(load_settings().cache_dir)
    code, output = await _call(
        tmp_path / "home", {"XDG_CACHE_HOME": str(cache), "XDG_DATA_HOME": str(data)}
    )
    assert code == 0, output
    assert "reply_heard" in output
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
async def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Without another folder for its data the command says which setting names one."""
    code, output = await _call(
        tmp_path / "home", {"LABVOICE_CACHE_DIR": str(load_settings().cache_dir)}
    )
    assert code == 2, output
    assert_documented(output, "cannot be written: Read-only file system")  # entry
    assert "LABVOICE_DATA_DIR" in output
    assert "Traceback" not in output
