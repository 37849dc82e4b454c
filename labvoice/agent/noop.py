"""A worker whose agents join and do nothing, to measure dispatch without loading models.

Run as `python -m labvoice.agent.noop --port PORT --agent-name NAME`. Its jobs are threads, so fifty
of them do not need fifty processes; it answers job requests like the real worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable

from livekit.agents import AgentServer, AutoSubscribe, JobContext, JobExecutorType

from labvoice.agent._livekit import keep_native_log
from labvoice.agent.app import on_request, report_registration
from labvoice.agent.guard import refused_by_server
from labvoice.agent.worker import run_worker
from labvoice.proxies import proxy_for
from labvoice.settings import Settings, load_settings

_IDLE_THREADS = 32
"""livekit-agents counts a job that is accepted and not yet running as one idle process's share of
the load threshold: with few idle processes a burst would find the worker full."""


async def entrypoint(context: JobContext) -> None:
    """Joins, unless the dispatch was withdrawn."""
    if await refused_by_server(load_settings(), context.job):
        context.shutdown()
        return
    await context.connect(auto_subscribe=AutoSubscribe.SUBSCRIBE_NONE)


def make_noop_server(
    settings: Settings, port: int, work: Callable[[JobContext], Awaitable[None]] = entrypoint
) -> AgentServer:
    """Builds the worker from the server's address and key in the settings."""
    assert settings.livekit_api_secret
    # The monitor wakes up a hundred times a second for each job and each thread that waits for one:
    # 0.06 cores for a worker without a call.
    os.environ.setdefault("LIVEKIT_AGENTS_LOOP_BLOCK_WARN_MS", "0")
    server = AgentServer(
        job_executor_type=JobExecutorType.THREAD,
        load_fnc=lambda server: min(1.0, len(server.active_jobs) / settings.max_jobs),
        load_threshold=0.99,
        num_idle_processes=min(_IDLE_THREADS, settings.max_jobs),
        host="127.0.0.1",
        port=port,
        http_proxy=proxy_for(settings.livekit_url or ""),
        ws_url=settings.livekit_url,
        api_key=settings.livekit_api_key,
        api_secret=settings.livekit_api_secret.get_secret_value(),
    )
    keep_native_log()
    server.rtc_session(
        work,
        agent_name=settings.agent_name,
        on_request=lambda request: on_request(server, request, heartbeat=False),
    )
    report_registration(server, settings.agent_name)
    return server


if __name__ == "__main__":
    sys.exit(run_worker(make_noop_server))
