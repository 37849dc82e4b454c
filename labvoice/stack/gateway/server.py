"""The gateway as a child process: models for agents that are not labvoice's, with no key."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from labvoice.proxies import http_client
from labvoice.settings import Settings
from labvoice.stack.processes import ManagedProcess, Server, free_port, http_answers
from labvoice.stack.workers.worker import worker_environment

if TYPE_CHECKING:
    from labvoice.stack.gateway.engines import Service

GATEWAY_KEY: Final = "LABVOICE_GATEWAY_KEY"
"""Name of the variable with the key that OpenAI's and Deepgram's clients send."""
_READY_TIMEOUT_S: Final = 90.0  # the speech models load cold from disk on two busy cores


@dataclass(eq=False)
class GatewayServer(Server):
    """A running gateway; created by :meth:`start`.

    Attributes:
        base_url: Base URL for `LIVEKIT_INFERENCE_URL` and OpenAI's clients; ends in `/v1`.
        key: API key for OpenAI's and Deepgram's clients.
    """

    base_url: str
    key: SecretStr
    process: ManagedProcess

    @classmethod
    async def start(cls, settings: Settings, *, state_dir: Path) -> GatewayServer:
        """Starts a gateway and waits until its models are loaded.

        Args:
            settings: Must contain the LiveKit server's key and secret, and the language model.

        Raises:
            ProcessError: It ended or was not ready in time; with its last log lines.
        """
        port, key = free_port(), SecretStr(secrets.token_urlsafe(24))
        process = await ManagedProcess.start(
            "gateway",
            [sys.executable, "-P", "-m", "labvoice.stack.gateway", f"--port={port}"],
            log_path=state_dir / "gateway.log",
            env={**worker_environment(settings), GATEWAY_KEY: key.get_secret_value()},
            stop_step_s=2.0,
        )
        root = f"http://127.0.0.1:{port}"
        await process.until_ready(
            lambda: http_answers(f"{root}/health"),
            timeout_s=_READY_TIMEOUT_S,
            hint="the log names the model that failed",
        )
        return cls(f"{root}/v1", key, process)

    async def report(self) -> dict[str, Any]:
        """Returns the agents' requests; see :meth:`labvoice.stack.gateway.engines.Engines.report`.

        Raises:
            httpx.HTTPError: The gateway does not answer.
        """
        report: dict[str, Any] = await self._ask("GET", "/labvoice/report")
        return report

    async def disturb(
        self, service: Service, *, delay_s: float = 0.0, status: int | None = None
    ) -> None:
        """Makes a model late, or refuse; without either, it answers as before.

        Args:
            service: `stt`, `llm` or `tts`.
            delay_s: How much later the model begins to answer, in seconds; of a recogniser, the
                final transcript.
            status: HTTP status with which every new request or socket is refused.

        Raises:
            httpx.HTTPError: The gateway does not answer.
        """
        asked = {"service": service, "delay_s": delay_s, "status": status}
        await self._ask("POST", "/labvoice/disturb", json=asked)

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        root = self.base_url.removesuffix("/v1")
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}"}
        async with http_client(root, timeout=5, headers=headers) as client:
            answer = await client.request(method, f"{root}{path}", **options)
        answer.raise_for_status()
        return answer.json()
