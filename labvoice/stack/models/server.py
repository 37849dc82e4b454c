"""Language models as child processes behind OpenAI-compatible HTTP: `small` and `paced`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import httpx

from labvoice.errors import ServerAnswerError, UsageError
from labvoice.proxies import http_client
from labvoice.settings import Settings
from labvoice.speech.weights import Progress, require
from labvoice.stack.models.script_model import SCRIPT_PATH
from labvoice.stack.processes import ManagedProcess, Server, free_port

Kind = Literal["small", "paced", "script"]
_READY_TIMEOUT_S: Final = 60.0


class ModelServer(Server):
    """A running model server; created by :meth:`start`.

    Attributes:
        kind: `small` (SmolLM2 in llama.cpp), `paced` (reference model with fixed timing) or
            `script` (answers by rules).
        model: Model name for requests.
        base_url: Base URL for an OpenAI client, such as `http://127.0.0.1:8080/v1`.
    """

    process: ManagedProcess

    def __init__(self, kind: Kind, base_url: str, process: ManagedProcess) -> None:
        self.kind = kind
        self.model: str = kind
        self.base_url = base_url
        self.process = process

    @classmethod
    async def start(
        cls,
        kind: Kind,
        settings: Settings,
        *,
        state_dir: Path,
        progress: Progress = lambda _: None,
        gguf: Path | None = None,
    ) -> ModelServer:
        """Starts a model server and waits until it has completed one token.

        Args:
            kind: Which model.
            settings: For the cache folder with the weights of `small`.
            progress: Called with progress messages while weights are downloaded.
            gguf: Weights for `small` to load instead of the pinned ones.

        Raises:
            WeightsError: The weights cannot be obtained.
            ProcessError: The model cannot be loaded, or the server did not become ready.
        """
        module = f"labvoice.stack.models.{kind}_model"
        command: list[str | Path] = [sys.executable, "-P", "-m", module]
        if kind == "small":
            if gguf is None:
                folder = await asyncio.to_thread(require, "smollm2", settings, progress)
                (gguf,) = folder.glob("*.gguf")
            command.append(gguf)
        port = free_port()
        process = await ManagedProcess.start(
            f"model server `{kind}`",
            [*command, str(port)],
            log_path=state_dir / f"model-{kind}.log",
            stop_step_s=2.0,
        )
        base_url = f"http://127.0.0.1:{port}/v1"

        async def completes() -> bool:
            question = {"role": "user", "content": "Hi"}
            body = {"model": kind, "messages": [question], "max_tokens": 1}
            async with http_client(base_url, timeout=10) as client:
                answer = await client.post(f"{base_url}/chat/completions", json=body)
            # llama.cpp answers 503 while it loads.
            return answer.status_code == 200 and "choices" in answer.json()

        await process.until_ready(
            completes,
            timeout_s=_READY_TIMEOUT_S,
            hint="see the last log lines; `--llm paced` needs no weights",
        )
        return cls(kind, base_url, process)

    async def give_script(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Gives the model `script` its rules, in place of those before.

        Args:
            rules: See :class:`labvoice.stack.models.script_model.Rule`.

        Raises:
            UsageError: This is another model.
            ServerAnswerError: It does not take them.
        """
        await self._script("PUT", {"rules": list(rules)})

    async def unanswered(self) -> list[str]:
        """Returns why requests since the last script had no answer of it, a sentence each.

        Raises:
            UsageError: This is another model.
            ServerAnswerError: It does not tell.
        """
        told: list[str] = (await self._script("GET", None))["unanswered"]
        return told

    async def _script(self, method: str, content: Any) -> Any:
        if self.kind != "script":
            raise UsageError(
                f"the language model {self.kind!r} takes no script", '`Lab(llm="script")`'
            )
        address = self.base_url.removesuffix("/v1") + SCRIPT_PATH
        async with http_client(address, timeout=5) as client:
            try:
                answer = await client.request(method, address, json=content)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                raise ServerAnswerError(
                    f"the scripted model does not take its script: {error}", "see its log"
                ) from None
        return answer.json()
