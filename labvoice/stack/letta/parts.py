"""The processes of an embedded Letta: database, scripted LLM, server; each restarted if it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from labvoice.memory.api import LettaApi
from labvoice.proxies import proxies_for_a_child
from labvoice.settings import DEFAULT_OPENAI_MODEL, Settings
from labvoice.speech.weights import Progress
from labvoice.stack.building import build_step
from labvoice.stack.letta.env import LETTA_VERSION, SERVE, LettaEnv
from labvoice.stack.letta.postgres import Postgres
from labvoice.stack.models import scripted_llm
from labvoice.stack.processes import ManagedProcess, free_port, http_answers

PROVIDER: Final = "lab"
"""Provider name of the lab's model in the embedded server. Handles are `lab/MODEL`, but
`openai-proxy/MODEL` for an endpoint that does not report its context length and is not OpenAI's own
(Letta 0.16.8, schemas/providers/openai.py)."""
_OPENAI_URL: Final = "https://api.openai.com/v1"
# A first start takes 11 s on an idle machine, 70 s on a busy one.
_READY_TIMEOUT_S: Final = 300.0
_MIGRATION_TIMEOUT_S: Final = 300.0
_LLM_TIMEOUT_S: Final = 60.0
_ENV_KEPT: Final = ("PATH", "LANG", "TMPDIR", "TZ", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(eq=False)
class LettaParts:
    """Database, scripted LLM and server on fixed ports, so that a restarted one keeps its address.

    Attributes:
        settings: Includes the model of the server.
        root: Folder of the data.
        state_dir: Folder of the logs.
        api: API of the server.
        port: Its port.
        key: The API key that it requires.
    """

    settings: Settings
    root: Path
    state_dir: Path
    api: LettaApi
    port: int
    key: SecretStr

    def __post_init__(self) -> None:
        self._postgres_port = free_port()
        self._llm_port = free_port()
        self._postgres: Postgres | None = None
        self._llm: ManagedProcess | None = None
        self._letta: ManagedProcess | None = None

    @property
    def processes(self) -> list[ManagedProcess]:
        """Those started so far: PostgreSQL, the scripted LLM, Letta."""
        postgres = self._postgres.process if self._postgres else None
        return [process for process in (postgres, self._llm, self._letta) if process]

    @property
    def _own_model(self) -> bool:
        return self.settings.resolved_llm != "openai"

    async def start(self, env: LettaEnv, progress: Progress) -> None:
        """Starts the parts that do not run; returns when the server answers and has its model.

        Raises:
            LabvoiceError: A part cannot be started.
        """
        for process in self.processes:
            if not process.running:
                await process.stop()  # closes what is left of it here
        if self._own_model and not (self._llm and self._llm.running):
            self._llm = await ManagedProcess.start(
                "scripted LLM",
                [sys.executable, "-P", "-m", scripted_llm.__name__, str(self._llm_port)],
                log_path=self.state_dir / "scripted-llm.log",
            )
            self._yield_to_calls(self._llm)
        if not (self._postgres and self._postgres.process.running):
            progress("Letta: starting its database")
            self._postgres = await Postgres.start(
                self.root / "postgres",
                env.postgres_bin,
                self.state_dir / "postgres.log",
                port=self._postgres_port,
            )
            self._yield_to_calls(self._postgres.process)
            await self._migrate(env, self._postgres, progress)
        if not (self._letta and self._letta.running):
            progress("Letta: starting its server")
            self._letta = await ManagedProcess.start(
                "Letta server",
                [env.python, SERVE, str(self.port)],
                log_path=self.state_dir / "letta-server.log",
                env=self._environment(f"{self._postgres.uri}?ssl=disable"),
            )
            self._yield_to_calls(self._letta)
        await self._letta.until_ready(self.api.check, timeout_s=_READY_TIMEOUT_S, interval_s=0.2)
        self.api.model = await self._register_model()

    def _yield_to_calls(self, process: ManagedProcess) -> None:
        """Gives calls, and workers that start meanwhile, the processor first.

        Not in letta mode, where callers wait for Letta.
        """
        if self.settings.mode != "letta":
            process.be_nice()

    async def any_ended(self) -> ManagedProcess:
        """Waits until one of the processes has ended; returns it."""
        waits = {asyncio.create_task(process.wait()): process for process in self.processes}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return waits[next(iter(done))]

    async def stop(self) -> None:
        """Stops all; the server first, because an orderly stop of the database waits for it."""
        for part in (self._letta, self._llm, self._postgres):
            if part is not None:
                await part.stop()

    async def _register_model(self) -> str:
        if self._llm is not None:
            url = f"http://127.0.0.1:{self._llm_port}"
            await self._llm.until_ready(
                lambda: http_answers(f"{url}/health"), timeout_s=_LLM_TIMEOUT_S
            )
            return await self.api.register_model(PROVIDER, f"{url}/v1", None, scripted_llm.MODEL)
        address = (self.settings.openai_base_url or _OPENAI_URL).rstrip("/")
        named = self.settings.llm_model
        return await self.api.register_model(
            PROVIDER,
            address,
            self.settings.openai_api_key,
            named or DEFAULT_OPENAI_MODEL,  # as for the agent, for an endpoint need not list it
            or_first=named is None,
        )

    async def _migrate(self, env: LettaEnv, postgres: Postgres, progress: Progress) -> None:
        """Migrates the database to this Letta's schema; an empty one from the cached SQL."""
        done = self.root / "schema-version"
        if done.exists() and done.read_text(encoding="utf-8") == LETTA_VERSION:
            return
        tables = await postgres.sql("select count(*) from pg_tables where schemaname = 'public'")
        if tables == "0" and env.schema.exists():
            await postgres.restore(env.schema)
        else:
            progress("Letta: preparing its database; this takes a moment once")
            await self._run_migrations(env, postgres.uri)
            if tables == "0":
                await asyncio.to_thread(_write_whole, env.schema, await postgres.dump())
        done.write_text(LETTA_VERSION, encoding="utf-8")

    async def _run_migrations(self, env: LettaEnv, uri: str) -> None:
        # Alembic's scripts are found from the folder it runs in. What Letta's own script prints
        # is the address with the password.
        script = 'cd "$1" && exec "$2" -m alembic upgrade head > /dev/null'
        await build_step(
            "Letta's migrations",
            ["sh", "-c", script, "-", env.migrations, env.python],
            self.state_dir / "letta-migrations.log",
            f"the data is in `{self.root}`",
            timeout_s=_MIGRATION_TIMEOUT_S,
            tell=lambda _: None,
            env=self._environment(uri),
        )

    def _environment(self, database_uri: str) -> Mapping[str, str]:
        """Returns Letta's whole environment: no keys of the user, no network access."""
        home = self.root / "home"
        home.mkdir(exist_ok=True, mode=0o700)
        env = {name: os.environ[name] for name in _ENV_KEPT if name in os.environ}
        if self._own_model:
            # A port where nothing listens: Letta would look for downloads in the background.
            nowhere = "http://127.0.0.1:9"
            env |= dict(zip(_PROXIES, (nowhere, nowhere, "127.0.0.1,localhost"), strict=True))
        else:
            env |= proxies_for_a_child()
        return env | {
            "ORT_DISABLE_TELEMETRY": "1",
            "HOME": str(home),
            "LETTA_PG_URI": database_uri,
            "LABVOICE_LETTA_TOKEN": self.key.get_secret_value(),
            "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
            "LETTA_PG_POOL_SIZE": "10",
            "LETTA_TRACK_PROVIDER_TRACE": "false",
            "LETTA_LLM_API_LOGGING": "false",
            "LETTA_DISABLE_TRACING": "true",
            "LETTA_ENABLE_DB_POOL_MONITORING": "false",
        }


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
