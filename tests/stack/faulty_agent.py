"""A worker that goes wrong in the way that its name says; run by the tests of causes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from livekit.agents import AgentServer, JobContext, JobExecutorType, JobProcess

from labvoice.agent.app import report_event, report_registration
from labvoice.agent.worker import run_worker
from labvoice.settings import Settings, load_settings


async def entrypoint(context: JobContext) -> None:
    """Fails before it joins, or never joins."""
    if context.job.agent_name == "raising-agent":
        raise ValueError("no such voice: baritone")
    await asyncio.sleep(60)


def prepare(process: JobProcess) -> None:
    """Loads models that are there for the first process only."""
    weights = Path(load_settings().data_dir) / "weights"
    if weights.exists():
        weights.unlink()
        return
    report_event("failed", reason="the weights of the voice are gone")
    raise FileNotFoundError("the weights of the voice are gone")


def make_faulty_server(settings: Settings, *, port: int) -> AgentServer:
    """Builds the worker."""
    broken = settings.agent_name == "broken-agent"
    server = AgentServer(
        job_executor_type=JobExecutorType.PROCESS if broken else JobExecutorType.THREAD,
        load_fnc=lambda _: 0.0,
        load_threshold=0.99,
        num_idle_processes=1,
        host="127.0.0.1",
        port=port,
    )
    if broken:
        server.setup_fnc = prepare
    server.rtc_session(entrypoint, agent_name=settings.agent_name)
    report_registration(server, settings.agent_name)
    return server


if __name__ == "__main__":
    sys.exit(run_worker(make_faulty_server))
