"""A Letta server: the one the settings name, or our own with its database and its model."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TextIO

import httpx
from pydantic import SecretStr

from labvoice.errors import (
    CredentialsError,
    LabvoiceError,
    ProcessError,
    ServerUnreachableError,
    StageTimeoutError,
    UsageError,
)
from labvoice.settings import Settings
from labvoice.stack import memory_clerk
from labvoice.stack.letta_api import LettaApi
from labvoice.stack.letta_env import LETTA_VERSION, SERVE, LettaEnv, Progress, prepare_letta_env
from labvoice.stack.postgres import Postgres
from labvoice.stack.processes import ManagedProcess, free_port

State = Literal["preparing", "starting", "up", "failed", "external", "stopped"]

PROVIDER: Final = "lab"
"""Under this name the embedded server knows the lab's model; handles are `lab/MODEL`."""
_OPENAI_URL: Final = "https://api.openai.com/v1"
# From nothing it takes 16 s on an idle machine, 70 s on a busy one.
_READY_TIMEOUT_S: Final = 300.0
_MIGRATION_TIMEOUT_S: Final = 300.0
_CLERK_TIMEOUT_S: Final = 60.0
_ENV_KEPT: Final = ("PATH", "LANG", "TMPDIR", "TZ", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class LettaServer:
    """A Letta server, up or on its way; made by :meth:`start`.

    Attributes:
        base_url: Its address; known from the beginning.
        api_key: Its key; known from the beginning.
        state: `preparing` (the environment is installed), `starting`, `up`, `failed`,
            `stopped`, or `external` when the server is somebody else's.
        error: Why it failed.
        api: Its agents and models.
    """

    def __init__(self, settings: Settings, state_dir: Path, base_url: str, key: SecretStr | None):
        self.base_url = base_url
        self.api_key = key
        self.api = LettaApi(base_url, key)
        self.error: LabvoiceError | None = None
        self._state: State = "preparing"
        self._settings = settings
        self._state_dir = state_dir
        self._lock: TextIO | None = None
        self._throwaway: Path | None = None
        self._postgres: Postgres | None = None
        self._clerk: ManagedProcess | None = None
        self._letta: ManagedProcess | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        settings: Settings,
        state_dir: Path,
        *,
        fresh: bool = False,
        progress: Progress = lambda _: None,
    ) -> LettaServer:
        """Uses the server that the settings name, or begins to start one.

        Returns at once, with the address and the key that the server will have: calls do not
        wait for it. :meth:`until_up` does. Memories are kept in the user's data folder; one
        lab at a time can have them open.

        Args:
            settings: `letta_base_url`, `letta_api_key`, the folders, the model.
            state_dir: Takes the logs.
            fresh: Use an empty database that is deleted at the stop; the kept one stays as
                it is.
            progress: Told in words what is being done.

        Raises:
            ServerUnreachableError: The server that the settings name does not answer.
            CredentialsError: It refuses the key.
            UsageError: Another lab has the memories open.
        """
        if settings.letta_base_url:
            server = cls(settings, state_dir, settings.letta_base_url, settings.letta_api_key)
            server.api.model = settings.llm_model
            server._state = "external"
            try:
                await server.api.check()
            except LabvoiceError:
                await server.api.close()
                raise
            return server
        root = state_dir / "letta-data" if fresh else settings.data_dir / "letta"
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _only_user(root)
        key = SecretStr(secrets.token_urlsafe(32))
        server = cls(settings, state_dir, f"http://127.0.0.1:{free_port()}", key)
        server._lock = lock
        server._throwaway = root if fresh else None
        server._task = asyncio.create_task(server._bring_up(root, progress), name="letta")
        return server

    @property
    def state(self) -> State:
        """What it is doing; see the class."""
        if self._state == "up" and not all(process.running for process in self.processes):
            return "failed"
        return self._state

    @property
    def processes(self) -> list[ManagedProcess]:
        """Its processes so far: PostgreSQL, the memory clerk, Letta."""
        postgres = self._postgres.process if self._postgres else None
        return [process for process in (postgres, self._clerk, self._letta) if process]

    async def until_up(self, timeout_s: float = 1800.0) -> None:
        """Waits until the server answers.

        Args:
            timeout_s: How long, in seconds; the first installation takes minutes.

        Raises:
            StageTimeoutError: It is still not there.
            LabvoiceError: It failed; the reason.
        """
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=timeout_s)
            if not done:
                raise StageTimeoutError("letta server", timeout_s, f"its state is {self.state}")
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        """Stops what was started, the database last; safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._end_processes()
        await self.api.close()
        self._state = "stopped"
        if self._throwaway is not None:
            await asyncio.to_thread(shutil.rmtree, self._throwaway, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    async def _end_processes(self) -> None:
        # Letta first: an orderly stop of the database waits for its clients.
        for part in (self._letta, self._clerk, self._postgres):
            if part is not None:
                await part.stop()

    async def _bring_up(self, root: Path, progress: Progress) -> None:
        try:
            env = await prepare_letta_env(self._settings.cache_dir, progress)
            self._state = "starting"
            await self._launch(env, root, progress)
            self._state = "up"
        except (LabvoiceError, OSError) as error:
            self._state = "failed"
            self.error = (
                error
                if isinstance(error, LabvoiceError)
                else ProcessError(f"Letta cannot be started: {error}")
            )
            progress(f"Letta: failed; {self.error.observed}")
            await self._end_processes()

    async def _launch(self, env: LettaEnv, root: Path, progress: Progress) -> None:
        progress("Letta: starting its database")
        own_model = self._settings.resolved_llm != "openai"
        clerk_port = free_port()
        if own_model:
            self._clerk = await ManagedProcess.start(
                "memory clerk",
                [sys.executable, "-m", memory_clerk.__name__, str(clerk_port)],
                log_path=self._state_dir / "memory-clerk.log",
            )
        self._postgres = await Postgres.start(
            root / "postgres", env.postgres_bin, self._state_dir / "postgres.log"
        )
        await self._migrate(env, root, self._postgres, progress)
        progress("Letta: starting its server")
        self._letta = await ManagedProcess.start(
            "Letta server",
            [env.python, SERVE, self.base_url.rpartition(":")[2]],
            log_path=self._state_dir / "letta-server.log",
            env=self._letta_env(root, self._postgres.uri),
        )

        async def accepts_key() -> bool:
            try:
                await self.api.check()
            except (ServerUnreachableError, CredentialsError):
                return False
            return True

        await self._letta.until_ready(accepts_key, timeout_s=_READY_TIMEOUT_S, interval_s=0.2)
        if self._clerk is not None:
            url = f"http://127.0.0.1:{clerk_port}"
            await self._clerk.until_ready(lambda: _healthy(url), timeout_s=_CLERK_TIMEOUT_S)
            self.api.model = await self.api.register_model(
                PROVIDER, f"{url}/v1", None, memory_clerk.MODEL
            )
        else:
            address = (self._settings.openai_base_url or _OPENAI_URL).rstrip("/")
            self.api.model = await self.api.register_model(
                PROVIDER, address, self._settings.openai_api_key, self._settings.llm_model
            )

    async def _migrate(
        self, env: LettaEnv, root: Path, postgres: Postgres, progress: Progress
    ) -> None:
        """Brings the database to this Letta's schema; an empty one from the SQL of an earlier."""
        done = root / "schema-version"
        if done.exists() and done.read_text() == LETTA_VERSION:
            return
        empty = await postgres.sql("select count(*) from pg_tables where schemaname = 'public'")
        if empty == "0" and env.schema.exists():
            await postgres.restore(env.schema)
        else:
            progress("Letta: preparing its database; this takes a moment once")
            migration = await ManagedProcess.start(
                "Letta's migrations",
                # Alembic's scripts are found from the folder it runs in. What Letta's own
                # script prints is the address with the password.
                [
                    "sh",
                    "-c",
                    'cd "$1" && exec "$2" -m alembic upgrade head > /dev/null',
                    "-",
                    env.migrations,
                    env.python,
                ],
                log_path=self._state_dir / "letta-migrations.log",
                env=self._letta_env(root, postgres.uri, for_migrations=True),
            )
            try:
                async with asyncio.timeout(_MIGRATION_TIMEOUT_S):
                    status = await migration.wait()
            except TimeoutError:
                raise StageTimeoutError(
                    "letta migrations", _MIGRATION_TIMEOUT_S, "they still run"
                ) from None
            finally:
                await migration.stop()
            if status != 0:
                raise ProcessError(
                    f"Letta's migrations ended with status {status}",
                    f"the data is in `{root}`",
                    migration.log_tail(),
                )
            if empty == "0":
                await asyncio.to_thread(_write_whole, env.schema, await postgres.dump())
        done.write_text(LETTA_VERSION)

    def _letta_env(
        self, root: Path, uri: str, *, for_migrations: bool = False
    ) -> Mapping[str, str]:
        """The whole environment of Letta: nothing of the user's keys, no way out unasked."""
        home = root / "home"
        home.mkdir(exist_ok=True, mode=0o700)
        assert self.api_key is not None
        env = {name: os.environ[name] for name in _ENV_KEPT if name in os.environ}
        if self._settings.resolved_llm == "openai":
            env |= {name: os.environ[name] for name in _PROXIES if name in os.environ}
        else:
            # A port where nothing listens: Letta would look for downloads in the background.
            nowhere = "http://127.0.0.1:9"
            env |= dict(zip(_PROXIES, (nowhere, nowhere, "127.0.0.1,localhost"), strict=True))
        return env | {
            "HOME": str(home),
            # Letta's own parsing leaves this switch to its asynchronous driver.
            "LETTA_PG_URI": uri if for_migrations else f"{uri}?ssl=disable",
            "LABVOICE_LETTA_TOKEN": self.api_key.get_secret_value(),
            "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
            "LETTA_PG_POOL_SIZE": "10",
            "LETTA_TRACK_PROVIDER_TRACE": "false",
            "LETTA_LLM_API_LOGGING": "false",
            "LETTA_DISABLE_TRACING": "true",
            "LETTA_ENABLE_DB_POOL_MONITORING": "false",
        }


async def _healthy(url: str) -> bool:
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
        try:
            return (await client.get(f"{url}/health")).status_code == 200
        except httpx.HTTPError:
            return False


def _only_user(root: Path) -> TextIO:
    """Takes the lock on a data folder; it ends with this process at the latest.

    Raises:
        UsageError: Another lab holds it.
    """
    lock = (root / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise UsageError(
            f"another lab (process {holder}) has the memories in `{root}` open",
            "stop it, use an empty database with `--fresh`, or set LABVOICE_DATA_DIR to "
            "another folder",
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)
