"""The stock agent without prewarm: it loads its models in the job.

Otherwise it is :mod:`labvoice.bench.stock_agent`. Run as
`python -m labvoice.bench.stock_naive_agent --port PORT --agent-name NAME`.
"""

from __future__ import annotations

import sys

from livekit.agents import AgentServer, AgentSession, JobContext

from labvoice.agent.worker import run_worker
from labvoice.bench.stock_agent import load_models, make_server, talk
from labvoice.settings import Settings


async def entrypoint(context: JobContext) -> None:
    """Connects, loads the models, starts the session, greets."""
    await context.connect()
    await talk(context, AgentSession(**load_models()))


def make_stock_naive_server(settings: Settings, port: int) -> AgentServer:
    """Builds the worker."""
    return make_server(settings, port, entrypoint)


if __name__ == "__main__":
    sys.exit(run_worker(make_stock_naive_server))
