"""The HTTP application: routes, pages, limits, and uniform errors."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from labvoice.errors import LabvoiceError
from labvoice.web import pages
from labvoice.web.backend import Backend
from labvoice.web.errors import CODES, body_of, error_body, status_of
from labvoice.web.guard import Guard
from labvoice.web.metrics import Metrics
from labvoice.web.routes import Service, router
from labvoice.web.security import Gate, Keyring
from labvoice.web.settings import WebSettings

MAX_BODY_BYTES: Final = 256 * 1024


def create_app(backend: Backend, settings: WebSettings, keyring: Keyring) -> Guard:
    """Builds the application."""
    app = FastAPI(
        title="labvoice",
        summary="Dispatches LiveKit voice agents, proves that they joined, and measures them.",
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BODY_BYTES,
        # The guard makes the spans: FastAPI's own would double them and contain request bodies.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    counted = Metrics()
    gate = Gate(keyring, settings.rate_limit_hz, settings.public_url)
    app.state.service = Service(backend, gate, counted, settings.secure)
    app.include_router(router)
    pages.add_pages(app, backend)

    def refuse(status: int, body: dict[str, dict[str, str]], headers: Any = None) -> JSONResponse:
        counted.refused.labels(body["error"]["code"]).inc()
        return JSONResponse(body, status, headers)

    @app.exception_handler(LabvoiceError)
    async def on_error(_: Request, error: LabvoiceError) -> JSONResponse:
        return refuse(status_of(error), body_of(error), getattr(error, "headers", None))

    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, error: HTTPException) -> JSONResponse:
        body = error_body(CODES.get(error.status_code, "error"), str(error.detail), "see `/docs`")
        return refuse(error.status_code, body, error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # The input is not repeated: it may be a key.
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        return refuse(422, error_body("invalid", "; ".join(problems), "see `/docs` for the schema"))

    @app.exception_handler(Exception)
    async def on_fault(request: Request, _: Exception) -> JSONResponse:
        request_id = request.state.facts["request_id"]
        hint = f"the service's log has it under request id {request_id}"
        return refuse(500, error_body("internal", "the service failed unexpectedly", hint))

    return Guard(app, settings, gate, counted, MAX_BODY_BYTES)
