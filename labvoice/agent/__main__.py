"""Runs one worker: `python -m labvoice.agent --port PORT`; everything else by environment."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from typing import Protocol

from livekit.agents import AgentServer

from labvoice.agent.app import make_server
from labvoice.errors import LabvoiceError
from labvoice.settings import Settings, load_settings


class MakeServer(Protocol):
    """Builds a worker from its settings."""

    def __call__(self, settings: Settings, *, port: int) -> AgentServer:
        """Builds it; `port` is where it tells its health and status, on loopback."""


async def _run(server: AgentServer) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: asyncio.ensure_future(server.aclose()))
    await server.run()


def run_worker(make: MakeServer) -> int:
    """Parses the arguments, runs the worker until a signal comes, and returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="health and status on loopback")
    parser.add_argument("--agent-name", help="LABVOICE_AGENT_NAME; empty: serves every room")
    arguments = parser.parse_args()
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    try:
        settings = load_settings()
        if arguments.agent_name is not None:
            settings = settings.model_copy(update={"agent_name": arguments.agent_name})
        asyncio.run(_run(make(settings, port=arguments.port)))
    except LabvoiceError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run_worker(make_server))
