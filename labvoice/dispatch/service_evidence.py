"""Evidence for the diagnosis from the HTTP service of a lab on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import httpx
from pydantic import SecretStr

from labvoice.dispatch.diagnosis import Evidence
from labvoice.proxies import http_client
from labvoice.stack.workers.worker import WorkerStatus

HTTP_PORT: Final = 9000
_TIMEOUT_S: Final = 3.0


def service_evidence(
    livekit_url: str, api_key: SecretStr | None, port: int = HTTP_PORT
) -> Evidence | None:
    """Returns a function that asks the HTTP service for its workers; None without a key.

    The function returns None if nothing answers, the key is refused, or the workers serve another
    LiveKit server.

    Args:
        livekit_url: Address of the LiveKit server that dispatches.
        api_key: Of the HTTP service (LABVOICE_API_KEY).
    """
    if api_key is None:
        return None
    headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"}
    url = f"http://127.0.0.1:{port}/api/workers"

    async def ask() -> Sequence[WorkerStatus] | None:
        try:
            async with http_client(url, timeout=_TIMEOUT_S) as client:
                answer = await client.get(url, headers=headers)
            found = answer.raise_for_status().json()
            if found["livekit_url"].rstrip("/") != livekit_url.rstrip("/"):
                return None
            return [WorkerStatus(**worker) for worker in found["workers"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):  # none, or another program's
            return None

    return ask
