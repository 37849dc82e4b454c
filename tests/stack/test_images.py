"""The commands of the images, where no image can be built: as their user, on a read-only root."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys

import pytest

from labvoice.settings import load_settings
from labvoice.stack.livekit.binary import find_or_build
from tests.unit.test_deploy import ROOT

_CONTAINER = """
ip link set lo up
ip link add out0 type veth peer name out1
ip addr add 10.99.0.2/24 dev out0
ip link set out0 up
ip link set out1 up
show() {  # a folder below the other /tmp: this one shows it too
  [ -e "$2" ] || { mkdir -p "$2"; mount --no-canonicalize --bind "/proc/self/fd/$1" "$2"; }
}
exec 3<. 4<"$CACHE"
mount -t tmpfs tmpfs /tmp
show 3 "$PWD"
show 4 "$CACHE"
exec 3<&- 4<&-
cd "$PWD"
mount -o remount,bind,ro /
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become the images' user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is Linux's")
async def test_the_commands_of_the_images_serve_a_call_and_drain() -> None:
    """Server, worker and service take a call; after SIGTERM the worker ends with it, not before."""
    settings = load_settings()
    livekit = await find_or_build(settings, lambda _: None)
    process = await asyncio.create_subprocess_exec(
        *(
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-ec",
            _CONTAINER,
            "sh",
        ),
        *(sys.executable, "-m", "tests.stack.images", str(livekit.path), str(settings.cache_dir)),
        cwd=ROOT,
        env={**os.environ, "CACHE": str(settings.cache_dir)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(300):
        output, errors = await process.communicate()
    if process.returncode and b"unshare" in errors:
        pytest.skip(f"no namespaces can be made: {errors.decode()}")
    assert process.returncode == 0, errors.decode()
    seen = json.loads(output)
    assert seen == {
        "dispatched": True,
        "reports_load": True,
        "uid": "65532",
        "dispatched_while_draining": False,
        "running_and_agents_while_draining": [None, 1],
        "worker_exit": 0,
        "service_exit": seen["service_exit"],
        "server_exit": 0,
    }
    assert seen["service_exit"] in (0, 143, -15)
