"""Host facts for the header of every run."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

_PACKAGES = ("labvoice", "livekit-agents", "livekit", "onnxruntime", "xllamacpp", "streaming-vits")


def cores() -> int:
    """Returns how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def facts(
    livekit_server_version: str | None = None, *, load_1m: float | None = None
) -> dict[str, Any]:
    """Describes this machine and the installed versions; names neither host nor user.

    Args:
        livekit_server_version: Version of the LiveKit server in use, where it is known.
        load_1m: The 1-minute load average before the stack started; None: the current one.

    Returns:
        `cpu`, `cores`, `memory_bytes`, `load_1m`, `os`, `python` and
        `versions` (package name to version).
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if livekit_server_version:
        versions["livekit-server"] = livekit_server_version
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_1m": round(os.getloadavg()[0] if load_1m is None else load_1m, 2),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "versions": versions,
    }


_BUSY: Final = ("user", "nice", "system", "irq", "softirq", "steal")
_IDLE: Final = ("idle", "iowait")


class Busy:
    """Processor time of the whole machine, whoever uses it, since this was made."""

    def __init__(self) -> None:
        self._begun = _processor_times()

    def share(self) -> float:
        """Returns the share of all cores' time that was used, from 0 to 1."""
        busy_s, idle_s = (
            now - begun for now, begun in zip(_processor_times(), self._begun, strict=True)
        )
        return busy_s / (busy_s + idle_s) if busy_s + idle_s > 0 else 0.0


def _processor_times() -> tuple[float, float]:
    times = psutil.cpu_times()
    busy_s, idle_s = (
        sum(float(getattr(times, name, 0.0)) for name in names) for names in (_BUSY, _IDLE)
    )
    return busy_s, idle_s


def _cpu_model() -> str:
    """Reads the processor's name; `platform.processor()` is empty on most Linux systems."""
    try:
        for line in Path("/proc/cpuinfo").read_bytes().decode(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
