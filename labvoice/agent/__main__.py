"""Runs one worker: `python -m labvoice.agent --port PORT`; all settings from the environment."""

import contextlib
import sys

from labvoice.agent.forkserver import start_forkserver
from labvoice.errors import LabvoiceError
from labvoice.settings import load_settings

if __name__ == "__main__":
    with contextlib.suppress(LabvoiceError):  # `run_worker` reports it
        start_forkserver(load_settings())
    from labvoice.agent.app import make_server
    from labvoice.agent.worker import run_worker

    sys.exit(run_worker(make_server))
