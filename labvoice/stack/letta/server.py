"""A Letta server: the external one of the settings, or an embedded one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Final, Literal

from filelock import FileLock, Timeout
from pydantic import SecretStr

from labvoice.concurrency import cancel
from labvoice.errors import (
    CredentialsError,
    LabvoiceError,
    ProcessError,
    ServerUnreachableError,
    StageTimeoutError,
    UsageError,
)
from labvoice.memory.api import LettaApi
from labvoice.memory.client import import_client
from labvoice.settings import Settings
from labvoice.speech.weights import Progress
from labvoice.stack.letta.env import prepare_letta_env
from labvoice.stack.letta.parts import LettaParts
from labvoice.stack.processes import ManagedProcess, free_port

State = Literal["preparing", "starting", "up", "failed", "unreachable", "external", "stopped"]

# A part that keeps ending has a cause that a restart does not repair.
_MOST_REVIVALS: Final = 5
_REVIVALS_WITHIN_S: Final = 300.0
_LONGEST_PAUSE_S: Final = 30.0
_EXTERNAL_POLL_S: Final = 2.0
_EXTERNAL_LOOK_S: Final = 5.0


class LettaServer:
    """A Letta server, running or starting; created by :meth:`start`.

    A process of an embedded server that ends unexpectedly is restarted on the same port and data;
    meanwhile the state is `starting`.

    Attributes:
        base_url: Its address; known before it runs.
        api_key: Its key; known before it runs.
        state: `preparing` (the environment is installed), `starting`, `up`, `failed`,
            `stopped`; for an external server `external`, or `unreachable` until it first answers.
        error: Why it failed or cannot be reached.
        api: API of its agents and models.
        turns_path: File of the turns not yet written to this server.
    """

    def __init__(
        self, settings: Settings, base_url: str, api_key: SecretStr | None, turns_path: Path
    ) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.turns_path = turns_path
        self.api = LettaApi(base_url, api_key)
        self.state: State = "preparing"
        self.error: LabvoiceError | None = None
        self._settings = settings
        self._parts: LettaParts | None = None
        self._lock: FileLock | None = None
        self._throwaway: Path | None = None
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()

    @classmethod
    async def start(
        cls,
        settings: Settings,
        state_dir: Path,
        *,
        fresh: bool = False,
        progress: Progress = lambda _: None,
    ) -> LettaServer:
        """Uses the server of the settings, or starts one in the background.

        Returns at once with the server's address and key; calls do not wait for it,
        :meth:`until_up` does. Memories are kept in the user's data folder, which one lab at a time
        can open.

        Args:
            settings: `letta_base_url`, `letta_api_key`, the folders, the model.
            fresh: Use an empty database that is deleted at the stop; the kept one is not changed.

        Raises:
            CredentialsError: The server of the settings refuses the key. One that does not answer
                is retried in the background.
            UsageError: Another lab has the memories open, or `fresh` is set with an external
                server.
        """
        if settings.letta_base_url and fresh:
            raise UsageError(
                f"`--fresh` is for the embedded Letta, and LETTA_BASE_URL names "
                f"{settings.letta_base_url}",
                "leave `--fresh` out, or unset LETTA_BASE_URL",
            )
        if settings.letta_base_url:
            return await cls._external(settings, settings.letta_base_url)
        root = state_dir / "letta-data" if fresh else settings.data_dir / "letta"
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _only_user(root)
        port, key = free_port(), SecretStr(secrets.token_urlsafe(32))
        server = cls(settings, f"http://127.0.0.1:{port}", key, root / "turns.sqlite")
        server._lock = lock
        server._throwaway = root if fresh else None
        server._parts = LettaParts(settings, root, state_dir, server.api, port, key)
        server._task = asyncio.create_task(
            server._keep_up(server._parts, progress), name="letta server"
        )
        return server

    @classmethod
    async def _external(cls, settings: Settings, base_url: str) -> LettaServer:
        # Agent ids differ between servers and accounts: each has its own file of turns.
        key = settings.letta_api_key.get_secret_value() if settings.letta_api_key else ""
        await asyncio.to_thread(import_client)
        name = hashlib.sha256(f"{base_url} {key}".encode()).hexdigest()[:12]
        turns = settings.data_dir / "letta-turns" / f"{name}.sqlite"
        server = cls(settings, base_url, settings.letta_api_key, turns)
        server.api.model = settings.llm_model
        try:
            await server._look()
        except CredentialsError:
            await server.api.close()
            raise
        if not server.answers:
            server._task = asyncio.create_task(server._until_reached(), name="letta server")
        return server

    async def _look(self) -> None:
        """Probes an external server once, and sets the state from its answer."""
        try:
            async with asyncio.timeout(_EXTERNAL_LOOK_S):
                await self.api.check()
        except TimeoutError:
            self.state = "unreachable"
            self.error = StageTimeoutError(
                "letta server", _EXTERNAL_LOOK_S, f"{self.base_url} has not answered"
            )
        except ServerUnreachableError as error:
            self.state, self.error = "unreachable", error
        else:
            self.state, self.error = "external", None
        self._settled.set()

    async def _until_reached(self) -> None:
        while not self.answers:
            await asyncio.sleep(_EXTERNAL_POLL_S)
            try:
                await self._look()
            except CredentialsError as error:
                self.error = error

    @property
    def answers(self) -> bool:
        """Whether it has answered, and has not ended since."""
        return self.state in ("up", "external")

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded server."""
        return self._parts is not None

    @property
    def processes(self) -> list[ManagedProcess]:
        """Its started processes: PostgreSQL, the scripted LLM, Letta."""
        return self._parts.processes if self._parts else []

    async def until_up(self, timeout_s: float = 1800.0) -> None:
        """Waits until the server answers.

        Args:
            timeout_s: How long, in seconds; the first installation takes minutes.

        Raises:
            StageTimeoutError: It does not answer in time.
            LabvoiceError: It failed, or an external server cannot be reached.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            raise StageTimeoutError(
                "letta server", timeout_s, f"its state is {self.state!r}"
            ) from None
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        """Stops what was started; safe to call twice."""
        if self._task is not None:
            await cancel(self._task)
        if self._parts is not None:
            await self._parts.stop()
        await self.api.close()
        self.state = "stopped"
        if self._throwaway is not None:
            await asyncio.to_thread(shutil.rmtree, self._throwaway, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()

    async def _keep_up(self, parts: LettaParts, progress: Progress) -> None:
        """Starts the server, and restarts it whenever a part of it ends or fails to start."""
        troubles: list[float] = []
        try:
            env = await prepare_letta_env(self._settings.cache_dir, progress)
            await asyncio.to_thread(import_client)
            while True:
                self.state = "starting"
                try:
                    await parts.start(env, progress)
                    self.state, self.error = "up", None
                    self._settled.set()
                    ended = await parts.any_ended()
                    self._settled.clear()
                    trouble: LabvoiceError = ProcessError(
                        f"{ended.name} ended with status {ended.returncode}",
                        f"see `{ended.log_path}`",
                        ended.log_tail(),
                    )
                except LabvoiceError as error:
                    trouble = error
                now = time.monotonic()
                troubles = [at for at in troubles if now - at < _REVIVALS_WITHIN_S] + [now]
                if len(troubles) > _MOST_REVIVALS:
                    # An endpoint that cannot be reached may come back at any time.
                    if not isinstance(trouble, ServerUnreachableError):
                        raise trouble
                    self.error = trouble
                    self._settled.set()
                told = trouble.observed.partition("\n\n")[0]  # without lines of a log
                progress(f"Letta: {told}; starting it again")
                await asyncio.sleep(min(_LONGEST_PAUSE_S, 2.0 ** (len(troubles) - 1) - 1))
        except Exception as error:  # any error: callers wait for the state
            if not isinstance(error, LabvoiceError):
                error = ProcessError(f"Letta cannot be started: {type(error).__name__}: {error}")
            self.error = error
            self.state = "failed"
            self._settled.set()
            progress(f"Letta: failed; {error.observed}")
            await parts.stop()


def _only_user(root: Path) -> FileLock:
    """Locks a data folder; the lock ends with this process at the latest.

    Raises:
        UsageError: Another lab holds it.
    """
    path = root / "lock"
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = path.read_text(encoding="utf-8").strip() or "unknown"
        raise UsageError(
            f"another lab (process {holder}) has the memories in `{root}` open",
            "stop it, use an empty database with `--fresh`, or set LABVOICE_DATA_DIR to "
            "another folder",
        ) from None
    path.write_text(str(os.getpid()), encoding="utf-8")
    return lock
