"""Doctor: checks every part and whether the agent really joins; each check has a hint."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Final

import httpx
import psutil
from livekit import api

from labvoice.agent._livekit import new_room
from labvoice.caller.connection import connect_room
from labvoice.dispatch import Dispatcher
from labvoice.dispatch.diagnosis import Evidence
from labvoice.dispatch.service_evidence import HTTP_PORT
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import (
    CredentialsError,
    LabvoiceError,
    ModelError,
    PortInUseError,
    ServerUnreachableError,
    UsageError,
)
from labvoice.health import reach
from labvoice.memory.api import LettaApi
from labvoice.protocol.model_errors import refusal_hint, sentence_of
from labvoice.proxies import http_client
from labvoice.settings import DEFAULT_OPENAI_MODEL, Settings
from labvoice.speech import engines
from labvoice.stack.processes import require_free_port
from labvoice.stack.stack import Stack
from labvoice.stack.workers.worker import WorkerStatus
from labvoice.targets.agent import TargetAgent
from labvoice.targets.bot import JOIN_TIMEOUT_S
from labvoice.targets.start import start_target
from labvoice.targets.target import BUILT_IN, Target

_PACKAGES: Final = ("labvoice", "livekit", "livekit-agents", "livekit-api", "onnxruntime")
_PINNED_AGENTS: Final = "1.8.9"
_MIN_FREE_BYTES: Final = 2 * 2**30
"""A lab with one worker and the small model takes 1.2 GiB; a second warm process 0.5 more."""
_ASK_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        ok: Whether it passed; None if it was skipped.
    """

    name: str
    ok: bool | None
    observed: str
    hint: str = ""
    duration_s: float = 0.0

    def __str__(self) -> str:
        sign = {True: "✓", False: "✗", None: "–"}[self.ok]
        line = f"{sign} {self.name:<12} {self.observed}"
        return line if not self.hint else f"{line}\n  hint: {self.hint}"


def to_json(checks: list[Check]) -> dict[str, Any]:
    """Returns the machine-readable result."""
    return {
        "format": 1,
        "ok": all(check.ok is not False for check in checks),
        "checks": [asdict(check) for check in checks],
    }


class _SkippedError(Exception):
    """A check cannot be made, which is no failure."""


async def examine(
    settings: Settings,
    on_check: Callable[[Check], None] = lambda _: None,
    *,
    port: int = HTTP_PORT,
    evidence: Evidence | None = None,
    target: Target | None = None,
) -> list[Check]:
    """Checks everything; starts the parts that the settings do not name, and stops them again.

    With `livekit_url` set, only the model is started, and the dispatched agent must be served by a
    worker of the user's. Without it the doctor starts a stack of its own.

    Args:
        on_check: Called with each check as it is done.
        evidence: Returns the status of the workers that serve `livekit_url`, if known.
        target: The agent that has to join; None: labvoice's own.

    Raises:
        SettingsError: `data_dir` cannot be written.
    """
    stack = Stack()
    stack.make_state_dir(settings, "doctor")
    doctor = _Doctor(settings, stack, on_check, port, evidence, target or Target("own"))
    try:
        await doctor.run()
    finally:
        await stack.aclose()
    return doctor.checks


@dataclass
class _Doctor:
    settings: Settings
    stack: Stack
    on_check: Callable[[Check], None]
    port: int
    evidence: Evidence | None
    target: Target
    checks: list[Check] = field(default_factory=list)
    dispatcher: Dispatcher | None = None
    agent: TargetAgent | None = None
    reached: reach.Reach | None = None

    async def run(self) -> None:
        self.stack.exits.push_async_callback(self.stack.pool.stop)
        external = self.settings.livekit_url is not None
        await self._look("versions", _versions)
        await self._look("memory", _memory)
        await self._look("http", lambda: _http_service(self.port))
        await self._look("microphone", lambda: _microphone_page(self.port), needs=("http",))
        await self._look_at_server()
        if external:
            await self._look("network", self._network, needs=("key",))
            await self._look("turn", self._turn, needs=("network",))
        await self._look("media", self._media, needs=("key",))
        await self._look("speech", self._speech)
        await self._look("model", self._model)
        await self._look("letta", self._letta)
        if self.target.kind == "named":
            self.settings = self.settings.model_copy(update={"agent_name": self.target.text})
        if not external or self.target.kind == "bot":
            await self._look("worker", self._worker, needs=("key", "speech", "model"))
            await self._look("dispatch", self._dispatch, needs=("media", "worker"))
        else:
            await self._look("worker", self._their_workers, needs=("key",))
            await self._look("dispatch", self._dispatch, needs=("key", "media"))

    async def _look(
        self, name: str, look: Callable[[], Awaitable[str]], needs: tuple[str, ...] = ()
    ) -> None:
        """Makes one check and records its result; skips it if one that it needs has failed."""
        bad = [check.name for check in self.checks if check.name in needs and not check.ok]
        if bad:
            self._record(Check(name, None, f"skipped, because it needs {', '.join(bad)}"))
            return
        started_s = time.monotonic()
        ok: bool | None = True
        hint = ""
        try:
            observed = await look()
        except _SkippedError as reason:
            ok, observed = None, str(reason)
        except LabvoiceError as error:
            ok, observed, hint = False, error.observed, error.hint
        self._record(Check(name, ok, observed, hint, time.monotonic() - started_s))

    def _record(self, check: Check) -> None:
        self.checks.append(check)
        self.on_check(check)

    # -- checks -------------------------------------------------------------------------

    async def _look_at_server(self) -> None:
        """Two checks of one answer: the server answers, and it accepts the key."""
        refusal: CredentialsError | None = None

        async def reach() -> str:
            nonlocal refusal
            try:
                self.settings = await self.stack.start_server(self.settings)
            except CredentialsError as error:
                refusal = error
                return f"a LiveKit server answers at {self.settings.livekit_url}"
            server = self.stack.server
            assert server is not None
            self.dispatcher = await self.stack.exits.enter_async_context(
                Dispatcher(server.url, server.api_key, server.api_secret, self._workers, server.log)
            )
            version = f"{server.version}, started" if server.version else "answers"
            return f"LiveKit server {version} at {server.url}"

        async def accept() -> str:
            if refusal is not None:
                raise refusal
            return f"key {self.settings.livekit_api_key} is accepted"

        await self._look("livekit", reach)
        await self._look("key", accept, needs=("livekit",))

    def _scratch_room(self) -> tuple[str, str]:
        """The server's address, and a token for a room that ends by itself."""
        server = self.stack.server
        assert server is not None
        name = f"doctor-{secrets.token_hex(4)}"
        return server.url, caller_token(server.api_key, server.api_secret, name, "doctor")

    async def _network(self) -> str:
        self.reached = await reach.measure(*self._scratch_room())
        reach.check_clock(self.reached)
        return str(self.reached)

    async def _turn(self) -> str:
        assert self.reached is not None
        if not (urls := self.reached.turn_urls):
            raise _SkippedError(
                "the server offers no TURN: where a firewall blocks its media ports, a call fails"
            )
        asked = await asyncio.gather(*map(reach.turn_answers, urls), return_exceptions=True)
        words = [
            f"{url} answers in {each * 1000:.1f} ms" if isinstance(each, float) else str(each)
            for url, each in zip(urls, asked, strict=True)
        ]
        said = "; ".join(" ".join(each.split()) for each in words)
        if not any(isinstance(each, float) for each in asked):
            raise ServerUnreachableError(
                f"no TURN server can be reached: {said}",
                "open its ports from here, or correct `turn.domain` and `rtc.node_ip` there",
            )
        return said

    async def _media(self) -> str:
        room = new_room()
        started_s = time.monotonic()
        try:
            await connect_room(room, *self._scratch_room())
            took_s = time.monotonic() - started_s
            path = await reach.media_path(room)
        finally:
            await room.disconnect()
        way = f" by {path}" if path else ""
        return (
            f"passes between the server and this machine{way}, connected in {took_s * 1000:.0f} ms"
        )

    async def _speech(self) -> str:
        return await engines.look(self.settings)

    async def _model(self) -> str:
        if self.settings.resolved_llm == "openai":
            return await self._remote_model()
        self.settings = await self.stack.start_model(self.settings)
        return f"the model `{self.settings.llm}` answers at {self.settings.openai_base_url}"

    async def _remote_model(self) -> str:
        base_url = (self.settings.openai_base_url or "https://api.openai.com/v1").rstrip("/")
        key = self.settings.openai_api_key
        hint = "compare OPENAI_BASE_URL, OPENAI_API_KEY and LABVOICE_LLM_MODEL with the provider's"
        # The fields of a call only: a model may refuse others.
        body: dict[str, Any] = {
            "model": self.settings.llm_model or DEFAULT_OPENAI_MODEL,
            "messages": [{"role": "user", "content": "Say yes."}],
            "stream": True,
        }
        if self.settings.llm_temperature is not None:
            body["temperature"] = self.settings.llm_temperature
        try:
            async with http_client(base_url, timeout=_ASK_TIMEOUT_S) as client:
                asking = client.stream(
                    "POST",
                    f"{base_url}/chat/completions",
                    json=body,
                    headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
                )
                async with asking as answer:
                    said = (
                        "" if answer.is_success else (await answer.aread()).decode(errors="replace")
                    )
        except httpx.HTTPError as error:
            raise ServerUnreachableError(
                f"no model answers at {base_url}: {error or type(error).__name__}", hint
            ) from None
        if answer.status_code != httpx.codes.OK:
            sentence = self.settings.masked(sentence_of(said))
            raise ModelError(
                f"the model at {base_url} answers {answer.status_code} to a question: {sentence}",
                refusal_hint(sentence, hint),
            )
        return f"{body['model']} answers at {base_url}"

    async def _letta(self) -> str:
        if not self.settings.letta_base_url:
            raise _SkippedError("LETTA_BASE_URL is not set: a lab starts a Letta of its own")
        async with LettaApi(self.settings.letta_base_url, self.settings.letta_api_key) as letta:
            await letta.check()
        return f"Letta answers at {self.settings.letta_base_url}"

    async def _workers(self) -> Sequence[WorkerStatus] | None:
        """The workers that can be asked: the doctor's own, or those of the given evidence."""
        if self.stack.pool.workers:
            return await self.stack.pool.statuses()
        return await self.evidence() if self.evidence is not None else None

    async def _worker(self) -> str:
        if self.target.kind == "named":
            raise UsageError(
                "an agent that is registered already needs LIVEKIT_URL",
                "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET",
            )
        assert self.dispatcher is not None
        self.agent = await start_target(self.target, self.stack, self.settings, self.dispatcher)
        if self.agent.bot is not None:
            return f"{self.target} is started when it is called"
        if self.target.kind not in BUILT_IN:
            return str(self.agent)
        worker = self.stack.pool.workers[-1]
        return f"worker {worker.worker_id} is registered as {worker.agent_name!r}"

    async def _their_workers(self) -> str:
        name = self.settings.agent_name
        workers = await self.evidence() if self.evidence is not None else None
        if workers is None:
            raise _SkippedError(
                "the LiveKit server does not list its workers; `dispatch` shows whether one "
                "serves the name (with LABVOICE_API_KEY set, a running `labvoice up` is asked)"
            )
        same = [worker for worker in workers if worker.agent_name == name]
        if not same:
            names = ", ".join(sorted({repr(worker.agent_name) for worker in workers})) or "none"
            raise LabvoiceError(
                f"no worker of the lab is registered as {name!r}; registered: {names}",
                f"`labvoice worker --agent-name {name}`, or correct LABVOICE_AGENT_NAME",
            )
        jobs = sum(worker.active_jobs for worker in same)
        return f"{len(same)} registered as {name!r}, with {jobs} jobs"

    async def _dispatch(self) -> str:
        assert self.dispatcher is not None
        room = f"doctor-{secrets.token_hex(4)}"
        agent = self.agent
        async with AsyncExitStack() as stack:
            started_s = time.monotonic()
            try:
                if agent is not None and agent.bot is not None:
                    joining = agent.bot.in_room(
                        room, "labvoice-doctor", JOIN_TIMEOUT_S, lambda _: None
                    )
                    done = await stack.enter_async_context(joining)
                else:
                    name = self.settings.agent_name if agent is None else agent.name
                    done = await self.dispatcher.dispatch(room, name)
                took_s = time.monotonic() - started_s
            finally:
                with contextlib.suppress(api.TwirpError):
                    request = api.DeleteRoomRequest(room=room)
                    await self.dispatcher.api.room.delete_room(request)
        name = done.agent_name or done.agent_identity
        return (
            f"{name!r} joined a scratch room after {took_s * 1000:.0f} ms, "
            f"brought by {done.worker_id or 'a worker that is not labvoice’s'}"
        )


async def _versions() -> str:
    agents = metadata.version("livekit-agents")
    if agents != _PINNED_AGENTS:
        raise LabvoiceError(
            f"livekit-agents {agents} is installed, and labvoice is written for {_PINNED_AGENTS}",
            f"`pip install livekit-agents=={_PINNED_AGENTS}`",
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return f"Python {sys.version.split()[0]}, {versions}"


async def _memory() -> str:
    free = psutil.virtual_memory().available
    words = f"{free / 2**30:.1f} GiB of memory are free"
    if free < _MIN_FREE_BYTES:
        raise LabvoiceError(
            f"only {words}", "close something; a lab with one worker takes about 1.2 GiB"
        )
    return words


async def _http_service(port: int) -> str:
    """The port of the HTTP service is its own, or free."""
    url = f"http://127.0.0.1:{port}/healthz"
    try:
        async with http_client(url, timeout=2.0) as client:
            answer = await client.get(url)
        if answer.status_code == httpx.codes.OK:
            return f"the HTTP service answers on port {port}"
    except httpx.ConnectError:
        require_free_port(port, "the HTTP service")
        return f"port {port} is free for the HTTP service, which does not run"
    except httpx.HTTPError:
        pass
    raise PortInUseError(
        f"something that is not labvoice listens on port {port}",
        f"stop it (`ss -ltnp 'sport = :{port}'` shows it), or use `labvoice up --port`",
    )


async def _microphone_page(port: int) -> str:
    """The microphone page is served, if the HTTP service runs."""
    url = f"http://127.0.0.1:{port}/debug"
    try:
        async with http_client(url, timeout=2.0) as client:
            answer = await client.get(url)
    except httpx.ConnectError:
        raise _SkippedError("the HTTP service, which serves its page, does not run") from None
    except httpx.HTTPError as error:
        raise ServerUnreachableError(
            f"the microphone page {url} does not answer: {error or type(error).__name__}",
            "restart `labvoice up`",
        ) from None
    if answer.status_code != httpx.codes.OK or "text/html" not in answer.headers["content-type"]:
        raise ServerUnreachableError(
            f"the microphone page {url} answers with status {answer.status_code}",
            "reinstall labvoice: the file of its page is missing",
        )
    return f"its page is served at {url}; the browser asks for the permission"
