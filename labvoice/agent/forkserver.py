"""The forkserver of the job processes: forked from the worker, whose imported code they share."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker, util
from typing import Any

from labvoice.agent import _livekit
from labvoice.settings import Settings

SESSION = "labvoice.agent.session"
"""The modules of a call."""
PRELOADED = (SESSION, "labvoice.agent.preload")
"""Modules that every job needs: a call's modules, and the weights; imported once per worker."""


def start_forkserver(settings: Settings) -> None:
    """Starts it with livekit-agents' own preloaded modules and the weights.

    The standard library starts it as a new program, which would import again what the worker has,
    and keep a second copy. livekit-agents would start it later (1.8.9, worker.py, `run`); a running
    one is reused.

    Args:
        settings: Those of the worker; if its jobs are threads, nothing is started.
    """
    if settings.executor != "process" or sys.platform != "linux":
        return
    secret = settings.livekit_api_secret
    for name, value in (  # the jobs' clients read them; `run` would set them too late
        ("LIVEKIT_URL", settings.livekit_url),
        ("LIVEKIT_API_KEY", settings.livekit_api_key),
        ("LIVEKIT_API_SECRET", secret.get_secret_value() if secret else None),
    ):
        if value:
            os.environ[name] = value
    if settings.turn_detector in ("smart-turn", "vad"):
        os.environ.setdefault(_livekit.PRELOAD_DETECTORS, "0")  # 240 MiB of v1-mini's weights
    forkserver.set_forkserver_preload([*PRELOADED, *_livekit.PRELOADED])
    resource_tracker.ensure_running()  # not forked: it must not keep the worker's descriptors
    gc.freeze()  # a collection would write to every object, and so copy its page
    start_program = util.spawnv_passfds
    util.spawnv_passfds = _fork
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = start_program


def _fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """As `multiprocessing.util.spawnv_passfds`, for `python -c CODE` and without a new program."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        kept = {0, 1, 2, *passfds}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(int(name))
        exec(args[-1], {})  # noqa: S102
        status = 0
    except SystemExit:
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
