"""The pages: `/debug` to talk to an agent, `/docs` for the API, and what they load."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import fastapi_offline
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from labvoice.web.backend import Backend

_STATIC: Final = Path(__file__).parent / "static"
_WIDGETS: Final = Path(__file__).parents[1] / "widgets" / "static"
_SWAGGER: Final = Path(fastapi_offline.__file__).parent / "static"


def add_pages(app: FastAPI, backend: Backend) -> None:
    """Adds the pages to the application; they hold nothing that needs a key."""
    # The page speaks to this service and to the LiveKit server, and loads nothing else. The
    # call's program brings its styles in a style element, and its meter as a worklet in a blob.
    media = backend.media_url.rstrip("/")
    media_http = "http" + media.removeprefix("ws")
    page_policy = (
        "default-src 'none'; script-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; "
        f"connect-src 'self' {media} {media_http}; media-src 'self' blob: mediastream:; "
        "worker-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    # Swagger UI sets styles in its markup.
    docs_policy = (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/debug", 307)

    @app.get("/debug", include_in_schema=False)
    async def debug() -> HTMLResponse:
        html = (_STATIC / "debug.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"content-security-policy": page_policy})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        html = (_STATIC / "docs.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"content-security-policy": docs_policy})

    app.mount("/static/widgets", StaticFiles(directory=_WIDGETS, check_dir=False))
    app.mount("/static/swagger", StaticFiles(directory=_SWAGGER))
    app.mount("/static", StaticFiles(directory=_STATIC))
