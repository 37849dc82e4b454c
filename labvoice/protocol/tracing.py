"""OpenTelemetry traces from the click through the service to the worker, if an endpoint is set."""

from __future__ import annotations

import functools
import os
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@functools.cache
def set_up_traces(service_name: str) -> TracerProvider | None:
    """Sends this process's spans to the OTLP endpoint of the environment; once per process.

    Args:
        service_name: Name of the process in traces.

    Returns:
        The provider, to shut down at the end; None without an endpoint.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
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


def context_of(traceparent: str | None) -> Context:
    """Returns the context of a remote parent span."""
    return propagate.extract({"traceparent": traceparent} if traceparent else {})
