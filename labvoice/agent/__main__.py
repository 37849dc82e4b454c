"""Runs one worker: `python -m labvoice.agent --port PORT`; everything else by environment."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from labvoice.agent.app import make_server
from labvoice.agent.memory_queue import MemoryQueue
from labvoice.errors import LabvoiceError
from labvoice.letta import new_client
from labvoice.settings import Settings, load_settings


async def _run(port: int, agent_name: str | None) -> None:
    settings = load_settings()
    if agent_name is not None:
        settings = settings.model_copy(update={"agent_name": agent_name})
    async with _writing_turns(settings):
        await _serve(settings, port)


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


async def _serve(settings: Settings, port: int) -> None:
    server = make_server(settings, port=port)
    running = asyncio.create_task(server.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: asyncio.ensure_future(server.aclose()))
    await running


def main() -> int:
    """Parses the arguments, runs the worker until a signal comes, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m labvoice.agent")
    parser.add_argument("--port", type=int, required=True, help="health and status on loopback")
    parser.add_argument("--agent-name", help="LABVOICE_AGENT_NAME; empty: serves every room")
    arguments = parser.parse_args()
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(arguments.port, arguments.agent_name))
    except LabvoiceError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
