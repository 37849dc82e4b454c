"""What the user may set of the HTTP service; no worker process gets to know any of it."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from labvoice.settings import Settings

_PUBLIC_URL: Final = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")


class WebSettings(BaseSettings):
    """Settings of the HTTP service, read from the environment and from `.env`.

    Nothing needs to be set: without a key, one is made at each start.
    """

    model_config = Settings.model_config

    api_key: SecretStr | None = None
    """The key that may do everything; unset: one is made at start and printed once."""
    api_keys: SecretStr | None = None
    """Further keys that may do less, separated by blanks: `front:dispatch+token:KEY
    dashboards:read:KEY`."""
    allowed_hosts: str = ""
    """Host names, separated by commas, under which the service may be asked besides
    `localhost` and loopback addresses."""
    public_url: str = ""
    """Address under which a proxy with TLS shows the service, such as `https://lab.example`: its
    host is allowed, its pages are the service's own, and over https the cookie is `Secure`."""
    cors_origins: str = ""
    """Origins, separated by commas, whose pages may ask the service with a key."""
    rate_limit_hz: float = Field(50.0, validation_alias="LABVOICE_RATE_LIMIT", gt=0, le=100_000)
    """Requests per second that one key may make, twice as many at once; an address may make four
    times as many."""

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str) -> str:
        url = url.strip().rstrip("/").lower()
        if url and not _PUBLIC_URL.fullmatch(url):
            raise ValueError("must be `https://HOST` or `https://HOST:PORT`, without a path")
        return url

    @property
    def hosts(self) -> frozenset[str]:
        """The allowed host names, loopback's and the public address's included."""
        public = urlsplit(self.public_url).netloc
        public_host = public if public.endswith("]") else re.sub(r":[0-9]+$", "", public)
        names = {"localhost", "127.0.0.1", "[::1]", public_host, *_split(self.allowed_hosts)}
        return frozenset(names - {""})

    @property
    def secure(self) -> bool:
        """Whether the public address is reached by TLS."""
        return self.public_url.startswith("https:")

    @property
    def origins(self) -> frozenset[str]:
        """The allowed origins."""
        return frozenset(origin.rstrip("/") for origin in _split(self.cors_origins))

    def secrets(self) -> list[SecretStr]:
        """Every key that is set, each by itself."""
        more = self.api_keys.get_secret_value().split() if self.api_keys else []
        keys = [SecretStr(entry.rpartition(":")[2]) for entry in more]
        return [self.api_key, *keys] if self.api_key else keys


def _split(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split(",") if part.strip()]
