"""A client of the HTTP service over the stub, without sockets."""

from __future__ import annotations

from pydantic import SecretStr
from starlette.testclient import TestClient

from labvoice.web.app import create_app
from labvoice.web.guard import Guard
from labvoice.web.security import Keyring
from labvoice.web.settings import WebSettings
from labvoice.web.stub import StubBackend

KEY = "owner-key-0123456789"
READ_KEY = "read-key-0123456789"
FRONT_KEY = "front-key-0123456789"
OWNER = {"Authorization": f"Bearer {KEY}"}


def settings_with(**values: object) -> WebSettings:
    """Settings with three keys and a generous rate limit."""
    return WebSettings(
        **{
            "api_key": SecretStr(KEY),
            "api_keys": SecretStr(f"dash:read:{READ_KEY} front:dispatch+token:{FRONT_KEY}"),
            "rate_limit_hz": 1000.0,
            **values,
        }  # type: ignore[arg-type]
    )


def app_with(backend: StubBackend | None = None, **values: object) -> Guard:
    """The application over a stub."""
    settings = settings_with(**values)
    return create_app(backend or StubBackend(), settings, Keyring(settings))


def client_with(backend: StubBackend | None = None, **values: object) -> TestClient:
    """A client of such an application, which asks as `http://localhost:9000`."""
    return TestClient(app_with(backend, **values), base_url="http://localhost:9000")
