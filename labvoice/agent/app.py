"""The program that a worker runs: request handler, prewarming, entrypoint.

Nothing here loads what only a call needs: that is `labvoice.agent.session`, which the job processes
have preloaded.
"""

from __future__ import annotations

import importlib

from livekit.agents import AgentServer, JobContext, JobExecutorType, JobProcess, JobRequest

from labvoice.agent import _livekit
from labvoice.agent.forkserver import PRELOADED, SESSION
from labvoice.agent.guard import duplicate_refusal
from labvoice.agent.reports import report_end, report_event
from labvoice.errors import LabvoiceError
from labvoice.protocol.metadata import (
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_HEARTBEAT,
    ATTRIBUTE_METADATA,
    ATTRIBUTE_WORKER_ID,
    carried,
    check_name,
    parse_metadata,
)
from labvoice.proxies import proxy_for
from labvoice.settings import Settings, load_settings
from labvoice.speech.engines import import_modules


def prewarm(process: JobProcess) -> None:
    """Loads the models into an idle job process."""
    from labvoice.agent import session, traces

    try:
        # The worker's proxy is for LiveKit; a job's requests through the framework go to Deepgram.
        process._http_proxy = proxy_for(load_settings().deepgram_base_url)
        traces.set_up()
        session.load_models()
    except Exception as error:
        report_event("failed", reason=str(error))
        raise
    report_event("prewarmed", pid=process.pid)


async def on_request(server: AgentServer, request: JobRequest, *, heartbeat: bool = True) -> None:
    """Accepts a job with a name and an identity, or rejects it with a reason.

    Args:
        request: The server's job request.
        heartbeat: Whether the agent sends heartbeats, so that a supervisor can watch it.
    """
    job = {"room": request.room.name, "dispatch_id": request.job.dispatch_id}
    try:
        check_name(request.room.name)
        metadata = parse_metadata(request.job.metadata)
    except LabvoiceError as error:
        report_event("rejected", reason=error.observed, **job)
        await request.reject()
        return
    if reason := await duplicate_refusal(_livekit.server_api(server), request.job):
        report_event("not_needed", reason=reason, **job)
        await request.reject()
        return
    resume = metadata.resume
    if resume is not None and server.id in resume.avoid_workers:
        await request.reject(terminate=False)  # the server asks the next worker
        return
    # By the worker itself: what a job process reports comes through it, and is lost with it.
    report_event("accepted", **job)
    await request.accept(
        name=request.agent_name,
        identity=f"agent-{request.id}",
        attributes={
            ATTRIBUTE_DISPATCH_ID: request.job.dispatch_id,
            ATTRIBUTE_WORKER_ID: server.id,
            ATTRIBUTE_METADATA: carried(metadata),
            **({ATTRIBUTE_HEARTBEAT: "0"} if heartbeat else {}),
        },
    )


async def entrypoint(context: JobContext) -> None:
    """Runs one call; an error is reported to the stack before LiveKit logs it.

    Raises:
        Exception: The call's error.
    """
    from labvoice.agent import session

    try:
        await session.serve(context)
    except Exception as error:
        report_end(context, f"{type(error).__name__}: {error}")
        raise


def report_registration(server: AgentServer, agent_name: str) -> None:
    """Makes the worker report its registration, agent name and load."""
    facts = {"agent_name": agent_name, "load_threshold": _livekit.load_threshold(server)}
    server.on(
        "worker_registered",
        lambda worker_id, _: report_event("registered", worker_id=worker_id, **facts),
    )


def make_server(settings: Settings, port: int) -> AgentServer:
    """Builds the worker: agent name, load from active jobs, job executor."""
    if settings.executor == "thread":
        importlib.import_module(SESSION)  # plugins must be registered on the main thread
        import_modules(settings)

    def load(server: AgentServer) -> float:
        return min(1.0, len(server.active_jobs) / settings.max_jobs)

    server = AgentServer(
        job_executor_type=JobExecutorType(settings.executor),
        setup_fnc=prewarm,
        load_fnc=load,
        load_threshold=0.99,  # the server needs a value below 1; full means all jobs taken
        num_idle_processes=settings.idle_processes,
        initialize_process_timeout=60.0,
        host="127.0.0.1",
        port=port,
        ws_url=settings.livekit_url,
        api_key=settings.livekit_api_key,
        api_secret=settings.livekit_api_secret.get_secret_value()
        if settings.livekit_api_secret
        else None,
        log_level=settings.log_level,
        # Its default is `HTTPS_PROXY`, regardless of `NO_PROXY` (livekit-agents 1.8.9, worker.py).
        http_proxy=proxy_for(settings.livekit_url or ""),
        preload_modules=list(PRELOADED),  # for a forkserver that is restarted
    )
    server.rtc_session(
        entrypoint,
        agent_name=settings.agent_name,
        on_request=lambda request: on_request(server, request),
    )
    report_registration(server, settings.agent_name)
    return server
