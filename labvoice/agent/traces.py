"""A job's spans as part of the trace of the request that asked for the agent."""

from __future__ import annotations

import asyncio

from livekit.agents import JobContext, telemetry
from opentelemetry import context as otel_context
from opentelemetry import trace

from labvoice.protocol.tracing import context_of, set_up_traces

_FLUSH_MS = 2000


def set_up() -> None:
    """Exports livekit-agents' spans to the endpoint of the environment, without transcripts."""
    provider = set_up_traces("labvoice-agent")
    if provider is not None:
        telemetry.set_tracer_provider(provider, allow_pii=False)


def follow(context: JobContext, traceparent: str | None) -> None:
    """Makes the next session and its turns part of the caller's trace.

    The job's own span began before the job's code ran; it is linked instead.

    Args:
        traceparent: From the dispatch's metadata; None when nothing is traced.
    """
    provider = set_up_traces("labvoice-agent")
    if provider is None or traceparent is None:
        return
    parent = context_of(traceparent)
    caller = trace.get_current_span(parent).get_span_context()
    trace.get_current_span().add_link(caller)
    otel_context.attach(parent)

    async def flush() -> None:
        await asyncio.to_thread(provider.force_flush, _FLUSH_MS)

    context.add_shutdown_callback(flush)
