"""Runs one worker process: arguments, signals, and the writing of finished turns to Letta."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from livekit.agents import AgentServer

from labvoice.agent import _livekit
from labvoice.errors import LabvoiceError
from labvoice.settings import Settings, load_settings

logger = logging.getLogger("labvoice.agent")


MakeServer = Callable[[Settings, int], AgentServer]
"""Builds a worker from its settings and the loopback port of its health and status service."""


def run_worker(make: MakeServer) -> int:
    """Parses the arguments, runs the worker until a signal comes, and returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="health and status")
    parser.add_argument("--host", default="127.0.0.1", help="address of health and metrics")
    parser.add_argument("--metrics-port", type=int, help="Prometheus; none if absent")
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

        async def work() -> None:
            async with _writing_turns(settings):
                server = make(settings, arguments.port)
                _livekit.listen(server, arguments.host, arguments.metrics_port)
                await _serve(server, settings.drain_timeout_s)

        asyncio.run(work())
    except LabvoiceError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


@asynccontextmanager
async def _writing_turns(settings: Settings) -> AsyncIterator[None]:
    """Writes finished turns of all jobs, and those left by an earlier worker, to Letta."""
    if not (settings.letta_base_url and settings.letta_turns_path):
        yield
        return
    from labvoice.memory.client import new_client
    from labvoice.memory.queue import MemoryQueue

    client = new_client(settings.letta_base_url, settings.letta_api_key)
    queue = MemoryQueue(settings.letta_turns_path, client, own_server=settings.letta_embedded)
    queue.start()
    try:
        yield
    finally:
        await queue.close()
        await client.close()


async def _serve(server: AgentServer, drain_timeout_s: float) -> None:
    """Runs the worker; SIGTERM drains its calls first, SIGINT or a second SIGTERM does not."""
    loop = asyncio.get_running_loop()
    draining: asyncio.Task[None] | None = None
    closing: asyncio.Task[None] | None = None

    async def drain() -> None:
        try:
            async with asyncio.timeout(drain_timeout_s):
                await server.drain(None)
        except TimeoutError:
            logger.warning("%d jobs outlive the drain and are shut down", len(server.active_jobs))

    def close(_: object = None) -> None:
        nonlocal closing
        closing = closing or asyncio.ensure_future(server.aclose())

    def stop_now() -> None:
        if draining is None or draining.done():
            close()
        else:
            draining.cancel()  # it holds the lock needed to close

    def on_term() -> None:
        nonlocal draining
        if draining is None:
            draining = asyncio.ensure_future(drain())
            draining.add_done_callback(close)
        else:
            stop_now()

    loop.add_signal_handler(signal.SIGTERM, on_term)
    loop.add_signal_handler(signal.SIGINT, stop_now)
    await server.run()
    if closing is not None:
        await closing
