"""A real LiveKit server: found, started on loopback only, checked, and stopped."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from livekit import api
from pydantic import SecretStr

from labvoice.errors import (
    BuildError,
    CredentialsError,
    ProcessError,
    ServerUnreachableError,
)
from labvoice.settings import Settings, load_settings
from labvoice.stack.livekit.binary import find_or_build, pinned_version
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.processes import free_port


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveKitServer]:
    """A server of our own."""
    state_dir = tmp_path_factory.mktemp("livekit")
    async with await LiveKitServer.start(load_settings(), state_dir=state_dir) as running:
        yield running


@pytest.mark.smoke
async def test_serves_rooms_with_its_key(server: LiveKitServer) -> None:
    """The server takes LiveKit's own client with the key it was started with."""
    secret = server.api_secret.get_secret_value()
    async with api.LiveKitAPI(server.url, server.api_key, secret) as client:
        await client.room.create_room(api.CreateRoomRequest(name="a room"))
        rooms = await client.room.list_rooms(api.ListRoomsRequest())
    assert [room.name for room in rooms.rooms] == ["a room"]


@pytest.mark.smoke
def test_every_socket_is_on_loopback(server: LiveKitServer) -> None:
    """TCP and UDP sockets of the server are bound to 127.0.0.1 and to nothing else."""
    assert server.process is not None
    sockets = psutil.Process(server.process.pid).net_connections(kind="inet")
    kinds = {entry.type for entry in sockets}
    assert kinds == {socket.SOCK_STREAM, socket.SOCK_DGRAM}
    assert {entry.laddr.ip for entry in sockets} == {"127.0.0.1"}


def test_secret_shows_nowhere(server: LiveKitServer) -> None:
    """The secret is long, and is neither in the process's arguments nor in its log."""
    assert server.process is not None
    secret = server.api_secret.get_secret_value()
    assert len(secret) >= 32
    assert secret not in " ".join(psutil.Process(server.process.pid).cmdline())
    assert secret not in server.process.log_path.read_text()


async def test_named_server_is_used(server: LiveKitServer, tmp_path: Path) -> None:
    """With an address in the settings that server is used, and stopping leaves it alone."""
    settings = load_settings(
        livekit_url=server.http_url,
        livekit_api_key=server.api_key,
        livekit_api_secret=server.api_secret,
    )
    named = await LiveKitServer.start(settings, state_dir=tmp_path)
    assert (named.url, named.process, named.version) == (server.url, None, None)
    await named.stop()
    await LiveKitServer.check(server.url, server.api_key, server.api_secret)


async def test_environment_of_the_user_does_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that the server would read over its configuration change nothing."""
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1:1")
    monkeypatch.setenv("LIVEKIT_KEYS", "other: " + "x" * 32)
    async with await LiveKitServer.start(load_settings(), state_dir=tmp_path) as running:
        await LiveKitServer.check(running.url, running.api_key, running.api_secret)


async def test_wrong_key_and_wrong_secret(server: LiveKitServer) -> None:
    """A wrong key and a wrong secret are told apart, and the secret is not repeated."""
    wrong = SecretStr("wrong" * 8)
    with pytest.raises(CredentialsError, match="does not know the key nobody"):
        await LiveKitServer.check(server.url, "nobody", server.api_secret)
    with pytest.raises(CredentialsError, match="refuses the secret") as caught:
        await LiveKitServer.check(server.url, server.api_key, wrong)
    assert wrong.get_secret_value() not in str(caught.value)
    assert "LIVEKIT_API_SECRET" in caught.value.hint


async def test_no_server(tmp_path: Path) -> None:
    """An address where nothing answers ends in one clear error, before anything is started."""
    settings = load_settings(
        livekit_url=f"ws://127.0.0.1:{free_port()}",
        livekit_api_key="key",
        livekit_api_secret=SecretStr("s" * 32),
    )
    with pytest.raises(ServerUnreachableError, match="no LiveKit server answers at ws://"):
        await LiveKitServer.start(settings, state_dir=tmp_path)
    assert os.listdir(tmp_path) == []


async def test_address_without_host() -> None:
    """An address that is none is an error in words too."""
    with pytest.raises(ServerUnreachableError, match="no LiveKit server answers at ws://"):
        await LiveKitServer.check("ws://", "key", SecretStr("s" * 32))


async def test_something_else_answers(server: LiveKitServer) -> None:
    """An HTTP server that is not LiveKit's is told from one that is."""
    assert server.metrics_url is not None
    with pytest.raises(ServerUnreachableError, match="is not a LiveKit server"):
        await LiveKitServer.check(server.metrics_url, server.api_key, server.api_secret)


async def test_silent_server() -> None:
    """A server that accepts and says nothing ends in the time-out."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match="did not answer within"):
            await LiveKitServer.check(url, "key", SecretStr("s" * 32), timeout_s=0.2)


async def test_stop_with_a_participant_connected(tmp_path: Path) -> None:
    """The server stops although somebody is in a room, and its port is free again."""
    from livekit import rtc

    running = await LiveKitServer.start(load_settings(), state_dir=tmp_path)
    port = int(running.url.rpartition(":")[2])
    assert running.process is not None
    secret = running.api_secret.get_secret_value()
    grants = api.VideoGrants(room_join=True, room="occupied")
    token = api.AccessToken(running.api_key, secret).with_identity("guest").with_grants(grants)
    room = rtc.Room()
    await room.connect(running.url, token.to_jwt())
    try:
        await running.stop()
        assert not psutil.pid_exists(running.process.pid)
    finally:
        await room.disconnect()
    with socket.create_server(("127.0.0.1", port)):
        pass


# -- finding and building ----------------------------------------------------------------


def _program(path: Path, script: str) -> Path:
    """Writes an executable script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _settings(cache_dir: Path) -> Settings:
    return load_settings(cache_dir=cache_dir)


async def test_program_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `livekit-server` on PATH is used whatever its version."""
    found = _program(tmp_path / "bin" / "livekit-server", "print('livekit-server version 9.9.9')")
    monkeypatch.setenv("PATH", str(found.parent), prepend=os.pathsep)
    assert await find_or_build(_settings(tmp_path), lambda _: None) == (found, "9.9.9")


async def test_broken_program_on_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `livekit-server` on PATH that is something else is an error with its path."""
    found = _program(tmp_path / "bin" / "livekit-server", "raise SystemExit(1)")
    monkeypatch.setenv("PATH", str(found.parent), prepend=os.pathsep)
    with pytest.raises(ProcessError, match=str(found)):
        await find_or_build(_settings(tmp_path), lambda _: None)


async def test_no_program_and_no_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without server, Go and network there is one error with a hint, and nothing half-made."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    told: list[str] = []
    with pytest.raises(BuildError, match="neither a LiveKit server nor a Go toolchain") as caught:
        await find_or_build(_settings(tmp_path / "cache"), told.append)
    assert "LIVEKIT_URL" in caught.value.hint
    assert any("Go toolchain" in line for line in told)
    left = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert left == ["lock"]


async def test_old_go_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Go older than the module asks for counts as none."""
    old = _program(tmp_path / "bin" / "go", "print('go version go1.19.8 linux/amd64')")
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    with pytest.raises(BuildError, match="nor a Go toolchain to build it"):
        await find_or_build(_settings(tmp_path / "cache"), lambda _: None)


_FAKE_GO = """
import pathlib, sys, time
if sys.argv[1] == "version":
    print("go version go1.26.0 linux/amd64")
    raise SystemExit
pathlib.Path({calls!r}).open("a").write("build\\n")
print("go: downloading example.com/module v1.0.0", file=sys.stderr, flush=True)
print("example.com/module", file=sys.stderr, flush=True)
time.sleep({lasts_s})
{end}
"""
_MAKES_SERVER = """
target = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
target.write_text("#!" + sys.executable + "\\nprint('livekit-server version {version}')\\n")
target.chmod(0o755)
"""


async def test_two_at_once_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that need the server at the same time share one build; both hear how far it is."""
    end = _MAKES_SERVER.format(version=pinned_version())
    calls = tmp_path / "calls"
    go = _program(tmp_path / "bin" / "go", _FAKE_GO.format(calls=str(calls), end=end, lasts_s=4))
    monkeypatch.setenv("PATH", str(go.parent))
    settings = _settings(tmp_path / "cache")
    told: list[list[str]] = [[], []]
    first, second = await asyncio.gather(*(find_or_build(settings, t.append) for t in told))
    assert first == second
    assert first.version == pinned_version()
    assert calls.read_text().splitlines() == ["build"]
    lines = told[0] + told[1]
    assert any("1 modules fetched, 1 packages compiled" in line for line in lines)
    assert any("another process builds" in line for line in lines)
    assert sorted(p.name for p in first.path.parent.iterdir()) == ["livekit-server", "lock"]


async def test_failed_build_shows_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that fails ends in an error with the compiler's words and leaves no program."""
    end = "sys.exit('example.com/module: no space left on device')"
    calls = str(tmp_path / "calls")
    go = _program(tmp_path / "bin" / "go", _FAKE_GO.format(calls=calls, end=end, lasts_s=0))
    monkeypatch.setenv("PATH", str(go.parent))
    with pytest.raises(BuildError, match="no space left on device"):
        await find_or_build(_settings(tmp_path / "cache"), lambda _: None)
    left = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert left == ["lock"]


async def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made is an error with its path."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(BuildError, match="cannot be built in"):
        await find_or_build(_settings(tmp_path / "cache"), lambda _: None)
