"""Runs one worker: `python -m labvoice.agent --port PORT`; everything else by environment."""

import sys

from labvoice.agent.app import make_server
from labvoice.agent.worker import run_worker

if __name__ == "__main__":
    sys.exit(run_worker(make_server))
