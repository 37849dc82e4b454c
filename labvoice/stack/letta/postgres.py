"""PostgreSQL with pgvector on loopback, from a wheel; its data is kept in one folder."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from labvoice.errors import ProcessError
from labvoice.stack.processes import ManagedProcess, Server

DATABASE: Final = "letta"
USER: Final = DATABASE
_READY_TIMEOUT_S: Final = 60.0
_COMMAND_TIMEOUT_S: Final = 120.0
# An orderly stop flushes everything first; an interrupted one is recovered at the next start.
_STOP_STEP_S: Final = 15.0
_LEFT_BEHIND_TIMEOUT_S: Final = 2 * _STOP_STEP_S + 5.0


class Postgres(Server):
    """A running PostgreSQL server; created by :meth:`start`."""

    process: ManagedProcess

    def __init__(self, binaries: Path, password: str, port: int, process: ManagedProcess) -> None:
        self.port = port
        self.process = process
        self._binaries = binaries
        self._password = password

    @classmethod
    async def start(cls, root: Path, binaries: Path, log_path: Path, *, port: int) -> Postgres:
        """Starts the server; creates its data folder at the first start.

        The caller must hold a lock, so that no other process starts one on the same folder.

        Args:
            root: Folder for the data and the password; only the user can read it.
            binaries: Folder with `postgres`, `initdb` and `psql`.
            log_path: File for the server's log.
            port: TCP port for it on loopback.

        Raises:
            ProcessError: It cannot be started.
        """
        data = root / "pgdata"
        password = await asyncio.to_thread(_password, root / "postgres-password")
        if not data.exists():
            await _initialise(data, root / "postgres-password", binaries)
        await _forget_dead_postmaster(data)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "max_connections": "60",
        }
        process = await ManagedProcess.start(
            "PostgreSQL",
            [
                *_unprivileged(),
                binaries / "postgres",
                "-D",
                data,
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            log_path=log_path,
            env=_plain_env(),
            stop_step_s=_STOP_STEP_S,
        )
        server = cls(binaries, password, port, process)

        async def answers() -> bool:
            try:
                return await server.sql("select 1", database="postgres") == "1"
            except ProcessError:
                return False

        await process.until_ready(
            answers,
            timeout_s=_READY_TIMEOUT_S,
            hint=f"the data is in `{data}`; move it away to begin with an empty database",
            interval_s=0.1,
        )
        try:
            if not await server.sql(
                "select 1 from pg_database where datname = current_user", database="postgres"
            ):
                await server.sql(f"create database {DATABASE}", database="postgres")
            await server.sql("create extension if not exists vector")
        except BaseException:
            await process.stop()
            raise
        return server

    @property
    def uri(self) -> str:
        """Address of the database, with the password."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    async def sql(self, statement: str, *, database: str = DATABASE) -> str:
        """Runs a statement; returns its rows as text, unaligned.

        Raises:
            ProcessError: The server refused it or is not there.
        """
        return await self._client("psql", "-qtA", "-c", statement, database=database)

    async def dump(self) -> str:
        """Returns the database as SQL."""
        return await self._client("pg_dump", "--no-owner", database=DATABASE)

    async def restore(self, dump: Path) -> None:
        """Restores a file of :meth:`dump` in one transaction."""
        await self._client("psql", "-q", "-o", os.devnull, "-1f", str(dump), database=DATABASE)

    async def _client(self, program: str, *arguments: str, database: str) -> str:
        target = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database]
        quiet = ["-X", "-v", "ON_ERROR_STOP=1"] if program == "psql" else []
        return await _run(
            program,
            [self._binaries / program, *target, *quiet, *arguments],
            {**_plain_env(), "PGPASSWORD": self._password},
        )


def _plain_env() -> dict[str, str]:
    # PGHOST, PGDATA and similar variables in the user's environment belong to another server.
    return {name: os.environ[name] for name in ("PATH", "TMPDIR", "TZ") if name in os.environ}


def _password(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(24), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _unprivileged() -> list[str]:
    """Returns the prefix of a PostgreSQL command, which refuses to run as root.

    As root the command runs as `nobody`, and keeps the one capability to read its programs and data
    in folders of root (`/root`, a private temporary folder).

    Raises:
        ProcessError: Run as root without `setpriv`.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ProcessError(
            "PostgreSQL does not run as root, and there is no `setpriv` to drop to `nobody` with",
            "install util-linux, run labvoice as an ordinary user, or set LETTA_BASE_URL",
        )
    nobody = pwd.getpwnam("nobody")
    return [
        setpriv,
        f"--reuid={nobody.pw_uid}",
        f"--regid={nobody.pw_gid}",
        "--clear-groups",
        # PostgreSQL asks with access(2), which counts capabilities only under this bit.
        "--securebits=+no_setuid_fixup",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]


async def _initialise(data: Path, password_file: Path, binaries: Path) -> None:
    """Creates the data folder under a temporary name first, so that it is complete or missing."""
    partial = data.with_name(f"{data.name}.partial")
    await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(partial, nobody.pw_uid, nobody.pw_gid)
    await _run(
        "initdb",
        [
            *_unprivileged(),
            binaries / "initdb",
            "--encoding=UTF8",
            "--no-locale",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--auth=scram-sha-256",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "-D",
            partial,
        ],
        _plain_env(),
    )
    partial.rename(data)


async def _forget_dead_postmaster(data: Path) -> None:
    """Waits for the end of a server left behind by a crash; removes a stale pid file.

    After a reboot the number in it may belong to any process of the user, and PostgreSQL
    would then refuse to start.

    Raises:
        ProcessError: Another server still runs on this folder.
    """
    pid_file = data / "postmaster.pid"
    until = time.monotonic() + _LEFT_BEHIND_TIMEOUT_S
    while pid_file.exists():
        pid = await asyncio.to_thread(_server_on, data)
        if pid is None:
            pid_file.unlink(missing_ok=True)
            return
        if time.monotonic() > until:
            raise ProcessError(
                f"another PostgreSQL server (process {pid}) runs on `{data}`",
                f"stop it with `kill -INT {pid}`",
            )
        await asyncio.sleep(0.2)


def _server_on(data: Path) -> int | None:
    """Returns the process of the folder's pid file, if it is the folder's server."""
    try:
        process = psutil.Process(int((data / "postmaster.pid").read_bytes().split()[0]))
        if process.name() != "postgres":
            return None
    except (ValueError, IndexError, psutil.Error, OSError):
        return None
    try:
        return process.pid if Path(process.cwd()) == data.resolve() else None
    except psutil.AccessDenied:
        return process.pid
    except psutil.Error:
        return None


async def _run(name: str, command: Sequence[str | Path], env: Mapping[str, str]) -> str:
    """Runs a short command; returns what it printed.

    Raises:
        ProcessError: It failed or did not end.
    """
    # Not the caller's folder: `nobody` may have no access to it.
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        cwd="/",
    )
    try:
        async with asyncio.timeout(_COMMAND_TIMEOUT_S):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise ProcessError(f"{name} did not end within {_COMMAND_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ProcessError(
            f"{name} failed with status {process.returncode}",
            log_tail=complaint.decode(errors="replace").strip()[-1000:],
        )
    return output.decode().strip()
