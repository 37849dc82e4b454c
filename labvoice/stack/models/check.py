"""Health check of the language model's server."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Final

import httpx

from labvoice.errors import CredentialsError, ServerAnswerError, ServerUnreachableError
from labvoice.proxies import http_client
from labvoice.settings import Settings

_OPENAI: Final = "https://api.openai.com/v1"
_EXTERNAL_LIFETIME_S: Final = 30.0
"""Minimum interval between requests to an external server, in seconds: `/readyz` and each scrape
check it."""


class ModelCheck:
    """Checks an OpenAI-compatible server by its list of models, which is cheap.

    Args:
        settings: Address and key of the model.
    """

    def __init__(self, settings: Settings) -> None:
        self._address = (settings.openai_base_url or _OPENAI).rstrip("/")
        key = settings.openai_api_key
        self._headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._external = settings.resolved_llm == "openai"
        self._asked_s = float("-inf")

    async def ask(self) -> str:
        """Returns the result as text.

        Raises:
            CredentialsError: The server refuses the key.
            ServerAnswerError: It answers with an error.
            ServerUnreachableError: It does not answer.
        """
        if self._external and time.monotonic() - self._asked_s < _EXTERNAL_LIFETIME_S:
            return "answered within the last half minute"
        try:
            async with http_client(self._address, timeout=10) as client:
                answer = await client.get(f"{self._address}/models", headers=self._headers)
        except httpx.TransportError as error:
            raise ServerUnreachableError(
                f"no model answers at {self._address}: {error or type(error).__name__}",
                "start it, or correct OPENAI_BASE_URL" if self._external else "restart the lab",
            ) from None
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise CredentialsError(
                f"the model's server at {self._address} refuses the key", "check OPENAI_API_KEY"
            )
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ServerAnswerError(
                f"the model's server at {self._address} answered HTTP {answer.status_code}",
                "see its log",
            )
        self._asked_s = time.monotonic()
        # Not every compatible server lists its models; any answer is enough.
        return "answers"
