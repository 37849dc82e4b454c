"""Middleware of every request: checks its host, hardens its response, logs and counts it."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any, Final

from opentelemetry import propagate, trace
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labvoice.web.errors import HttpError, body_of
from labvoice.web.logs import log_event
from labvoice.web.metrics import Metrics
from labvoice.web.security import Gate
from labvoice.web.settings import WebSettings

logger = logging.getLogger("labvoice.web")
tracer = trace.get_tracer("labvoice.web")

_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_REPORTS: Final = "/api/calls/"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
"""Labels of a metric: a client may send any word as its method."""
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class Guard:
    """The outermost layer of the application.

    Args:
        settings: Allowed hosts and origins.
        gate: Counts the requests of an address.
        metrics: Counts requests.
        max_body: Maximum Content-Length, in bytes.
    """

    def __init__(
        self, app: ASGIApp, settings: WebSettings, gate: Gate, metrics: Metrics, max_body: int
    ) -> None:
        self._max_body = max_body
        self._app = app
        self._gate = gate
        self._hosts = settings.hosts
        self._origins = settings.origins
        self._metrics = metrics
        # Only for listed origins: Starlette answers the others' preflights in plain text.
        self._cors = CORSMiddleware(
            app,
            allow_origins=sorted(self._origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Traceparent"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = dict(scope["headers"])
        request_id = secrets.token_hex(8)
        facts: dict[str, Any] = {"request_id": request_id}
        scope.setdefault("state", {})["facts"] = facts
        started_s = time.monotonic()
        status = 0

        async def harden(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in {**_HEADERS, "x-request-id": request_id}.items()
                        if name.encode() not in present
                    ),
                ]
            await send(message)

        carrier = {"traceparent": headers.get(b"traceparent", b"").decode("latin-1")}
        context = propagate.extract(carrier)
        with (
            trace.use_span(trace.get_current_span(context))
            if scope["path"].startswith(_REPORTS)  # several a second; their content becomes spans
            else tracer.start_as_current_span(
                f"{scope['method']} {scope['path']}", context=context, kind=trace.SpanKind.SERVER
            )
        ) as span:
            if span.get_span_context().is_valid:
                facts["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            try:
                await self._answer(scope, receive, harden, headers)
            except Exception:  # already answered; logged with its request id
                logger.exception("fault", extra={"facts": facts})
            route = getattr(scope.get("route"), "path", "unmatched")
            span.update_name(f"{scope['method']} {route}")
            for name in ("room", "dispatch_id", "job_id", "agent_name", "outcome"):
                if value := facts.get(name):
                    span.set_attribute(f"labvoice.{name}", value)
            span.set_attribute("http.response.status_code", status)
        seconds = time.monotonic() - started_s
        method = scope["method"] if scope["method"] in _METHODS else "?"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        log_event(
            logger,
            logging.DEBUG if route in _QUIET and status == 200 else logging.INFO,
            "request",
            method=scope["method"],
            route=route,
            status=status,
            seconds=round(seconds, 6),
            client=scope["client"][0] if scope.get("client") else None,
            **facts,
        )

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]
    ) -> None:
        try:
            self._admit(scope, headers)
        except HttpError as error:
            self._metrics.refused.labels(error.code).inc()
            answer = JSONResponse(body_of(error), error.status, error.headers)
            await answer(scope, receive, send)
            return
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        await (self._cors if origin in self._origins else self._app)(scope, receive, send)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = _HOST.fullmatch(headers.get(b"host", b"").decode("latin-1"))
        if host is None or host[1].lower() not in self._hosts:
            # DNS rebinding: a page of another site gets nothing.
            raise HttpError(
                421,
                "wrong_host",
                "this service is not served under that host name",
                "add the name to LABVOICE_ALLOWED_HOSTS",
            )
        if scope["path"] != "/healthz" and not scope["path"].startswith("/static/"):
            self._gate.admit_address(scope["client"][0] if scope.get("client") else "")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body:  # unannounced: while it is read
            words = f"the body is longer than {self._max_body} bytes"
            raise HttpError(413, "too_large", words, "send less at once")
