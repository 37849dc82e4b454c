"""OpenTelemetry traces from the click through the service to the worker, if an endpoint is set."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Mapping
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

TRACES_PATH: Final = "/v1/traces"
"""Where a collector takes spans by HTTP."""
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def traced() -> bool:
    """Returns whether the environment names an endpoint for spans."""
    return any(os.environ.get(name) for name in _ENDPOINTS)


@functools.cache
def set_up_traces(service_name: str) -> TracerProvider | None:
    """Sends this process's spans to the OTLP endpoint of the environment; once per process.

    Args:
        service_name: Name of the process in traces.

    Returns:
        The provider, to shut down at the end; None without an endpoint.
    """
    if not traced():
        return None
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def current_traceparent() -> str | None:
    """Returns the current span as a W3C `traceparent`; None without tracing."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent")


def new_traceparent() -> str:
    """Returns the W3C `traceparent` of a span that is still to be made."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def context_of(traceparent: str | None) -> Context:
    """Returns the context of a remote parent span."""
    return propagate.extract({"traceparent": traceparent} if traceparent else {})


def start_span(
    tracer: trace.Tracer,
    name: str,
    at_s: float,
    context: Context | None = None,
    attributes: Mapping[str, str | bool | int | float] | None = None,
) -> trace.Span:
    """Returns a span that began at an instant, in seconds since 1970; :func:`end_span` ends it."""
    return tracer.start_span(name, context, start_time=_ns(at_s), attributes=attributes)


def end_span(span: trace.Span, at_s: float) -> None:
    """Ends a span at an instant, in seconds since 1970."""
    span.end(_ns(at_s))


def _ns(at_s: float) -> int:
    return round(at_s * 1e9)
