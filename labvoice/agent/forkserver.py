"""The forkserver of the job processes, started early: it loads in parallel with the worker."""

from __future__ import annotations

import os
from multiprocessing import forkserver

from labvoice.agent import _livekit
from labvoice.settings import Settings

SESSION = "labvoice.agent.session"
"""The modules of a call."""
PRELOADED = (SESSION, "labvoice.agent.preload")
"""Modules that every job needs: a call's modules, and the weights; imported once per worker."""


def start_forkserver(settings: Settings) -> None:
    """Starts it with livekit-agents' own preloaded modules and the weights.

    livekit-agents would start it after all imports of the worker (1.8.9, worker.py, `run`); a
    running one is reused.

    Args:
        settings: Those of the worker; if its jobs are threads, nothing is started.
    """
    if settings.executor != "process":
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
    forkserver.ensure_running()
