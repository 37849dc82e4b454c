"""The stock agent without prewarm: it loads its models in the job.

Otherwise it is :mod:`labvoice.bench.stock_agent`. Run as
`python -m labvoice.bench.stock_naive_agent --port PORT --agent-name NAME`.
"""

from __future__ import annotations

import sys

from livekit.agents import AgentServer, AgentSession, JobContext

from labvoice.agent.app import report_registration
from labvoice.agent.worker import run_worker
from labvoice.bench.stock_agent import load_models, no_load, talk
from labvoice.proxies import proxy_for
from labvoice.settings import Settings


async def entrypoint(context: JobContext) -> None:
    """Connects, loads the models, starts the session, greets."""
    await context.connect()
    await talk(context, AgentSession(**load_models()))


def make_stock_naive_server(settings: Settings, *, port: int) -> AgentServer:
    """Builds the worker; the address of its status and the signs of life are the bench's."""
    server = AgentServer(
        host="127.0.0.1",
        port=port,
        load_fnc=no_load,
        http_proxy=proxy_for(settings.livekit_url or ""),
    )
    server.rtc_session(entrypoint, agent_name=settings.agent_name)
    report_registration(server, settings.agent_name)
    return server


if __name__ == "__main__":
    sys.exit(run_worker(make_stock_naive_server))
