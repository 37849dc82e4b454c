"""Runs one worker: `python -m labvoice.agent --port PORT`; all settings from the environment."""

import contextlib
import sys

from labvoice.agent.app import make_server
from labvoice.agent.forkserver import start_forkserver
from labvoice.agent.worker import run_worker
from labvoice.errors import LabvoiceError
from labvoice.memory.client import import_client
from labvoice.settings import load_settings

if __name__ == "__main__":
    with contextlib.suppress(LabvoiceError):  # `run_worker` reports it
        settings = load_settings()
        if settings.letta_base_url:
            import_client()
        start_forkserver(settings)
    sys.exit(run_worker(make_server))
