"""Runs one worker process: arguments, signals, and the writing of finished turns to Letta."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from livekit.agents import AgentServer

from labvoice.agent.memory_queue import MemoryQueue
from labvoice.errors import LabvoiceError
from labvoice.letta import new_client
from labvoice.settings import Settings, load_settings


class MakeServer(Protocol):
    """Builds a worker from its settings."""

    def __call__(self, settings: Settings, *, port: int) -> AgentServer:
        """Builds it; `port` is where it tells its health and status, on loopback."""


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
        asyncio.run(_run(make, settings, arguments.port))
    except LabvoiceError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


async def _run(make: MakeServer, settings: Settings, port: int) -> None:
    async with _writing_turns(settings):
        await _serve(make(settings, port=port))


@asynccontextmanager
async def _writing_turns(settings: Settings) -> AsyncIterator[None]:
    """Brings finished turns of all jobs, and those that an earlier worker left, to Letta."""
    if not (settings.letta_base_url and settings.letta_turns_path):
        yield
        return
    client = new_client(settings.letta_base_url, settings.letta_api_key)
    queue = MemoryQueue(settings.letta_turns_path, client)
    queue.start()
    try:
        yield
    finally:
        await queue.close()
        await client.close()


async def _serve(server: AgentServer) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: asyncio.ensure_future(server.aclose()))
    await server.run()
