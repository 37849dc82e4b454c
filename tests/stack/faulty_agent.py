"""A worker that goes wrong in the way that its name says; run by the tests of causes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from livekit.agents import AgentServer, AutoSubscribe, JobContext, JobExecutorType, JobProcess

from labvoice.agent.app import on_request, report_registration
from labvoice.agent.reports import report_event
from labvoice.agent.worker import run_worker
from labvoice.proxies import proxy_for
from labvoice.settings import Settings, load_settings

SLOW_S = 8.0
"""The slow agent is in the room after so long."""


async def entrypoint(context: JobContext) -> None:
    """Fails before it joins, or joins late, or never."""
    if context.job.agent_name == "raising-agent":
        raise ValueError("no such voice: baritone")
    if context.job.agent_name in ("slow-agent", "plain-agent"):
        await asyncio.sleep(SLOW_S if context.job.agent_name == "slow-agent" else 0)
        await context.connect(auto_subscribe=AutoSubscribe.SUBSCRIBE_NONE)
        return
    await asyncio.sleep(60)


def prepare(process: JobProcess) -> None:
    """Loads models that are there for the first process only."""
    weights = Path(load_settings().data_dir) / "weights"
    if weights.exists():
        weights.unlink()
        return
    report_event("failed", reason="the weights of the voice are gone")
    raise FileNotFoundError("the weights of the voice are gone")


def make_faulty_server(settings: Settings, port: int) -> AgentServer:
    """Builds the worker."""
    assert settings.livekit_api_secret
    broken = settings.agent_name == "broken-agent"
    server = AgentServer(
        job_executor_type=JobExecutorType.PROCESS if broken else JobExecutorType.THREAD,
        load_fnc=lambda _: 0.0,
        ws_url=settings.livekit_url,
        api_key=settings.livekit_api_key,
        api_secret=settings.livekit_api_secret.get_secret_value(),
        load_threshold=0.99,
        num_idle_processes=1,
        host="127.0.0.1",
        port=port,
        http_proxy=proxy_for(settings.livekit_url or ""),
    )
    if broken:
        server.setup_fnc = prepare
    plain = settings.agent_name == "plain-agent"  # takes whatever is asked of it
    server.rtc_session(
        entrypoint,
        agent_name=settings.agent_name,
        on_request=None if plain else lambda request: on_request(server, request, heartbeat=False),
    )
    report_registration(server, settings.agent_name)
    return server


if __name__ == "__main__":
    sys.exit(run_worker(make_faulty_server))
