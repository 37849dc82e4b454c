"""Proxies of the environment, and what else must not disturb the lab."""

from __future__ import annotations

import ast
import builtins
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import labvoice
from labvoice.lab import Lab
from labvoice.proxies import http_client, loopback_spared, proxy_for, spare_loopback
from labvoice.settings import load_settings
from labvoice.stack.workers.worker import worker_environment

_PROXY = "http://proxy.test:3128"
_LOCAL = "ws://127.0.0.1:7880"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("url", [_LOCAL, "http://localhost:1/v1", "http://[::1]:8283"])
def test_this_machine_is_asked_without_a_proxy(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever variable names a proxy, nothing on loopback goes through it; the rest does."""
    monkeypatch.setenv(name, _PROXY)
    assert proxy_for(url) is None
    assert proxy_for("http://model.test/v1") == _PROXY


def test_the_users_exceptions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `NO_PROXY` names is asked directly."""
    monkeypatch.setenv("HTTPS_PROXY", _PROXY)
    monkeypatch.setenv("NO_PROXY", "model.test")
    assert proxy_for("https://model.test/v1") is None
    assert proxy_for("https://api.test/v1") == _PROXY


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_a_running_lab_hides_the_proxy_from_the_native_client(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit's native client finds none, our own clients do, and afterwards all is as before."""
    monkeypatch.setenv(name, _PROXY)
    before = dict(os.environ)
    with loopback_spared(_LOCAL), loopback_spared(_LOCAL):
        assert name not in os.environ
        assert "127.0.0.1" in os.environ["NO_PROXY"]
        assert proxy_for("http://model.test/v1") == _PROXY
        environment = worker_environment(
            load_settings(livekit_url=_LOCAL, livekit_api_key="k", livekit_api_secret="s")
        )
        assert _PROXY not in (environment.get("HTTP_PROXY"), environment.get("http_proxy"))
        assert environment["LABVOICE_PROXY_FOR_HTTP"] == _PROXY
    assert dict(os.environ) == before


def test_a_server_elsewhere_keeps_its_proxy() -> None:
    """A LiveKit server that is not on this machine is reached through the user's proxy."""
    environment = {"HTTP_PROXY": _PROXY, "NO_PROXY": "model.test"}
    spare_loopback(environment, "ws://livekit.test:7880")
    assert environment["HTTP_PROXY"] == _PROXY
    assert environment["no_proxy"] == "model.test,127.0.0.1,localhost,::1"


async def test_a_socks_proxy_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client for this machine can be made under a proxy that httpx does not speak."""
    monkeypatch.setenv("ALL_PROXY", "socks5h://proxy.test:1080")
    async with http_client("http://127.0.0.1:1") as client:
        assert not client.trust_env


def test_no_telemetry() -> None:
    """Importing the package is enough to keep onnxruntime from its maker's telemetry."""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    command = "import labvoice, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"


def test_letta_with_or_without_v1() -> None:
    """Letta's address may end in `/v1`."""
    wanted = "http://localhost:8283"
    for given in (wanted, f"{wanted}/", f"{wanted}/v1", f"{wanted}/v1/"):
        assert str(load_settings(letta_base_url=given).letta_base_url).rstrip("/") == wanted


def test_a_log_in_ascii_takes_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign that the output cannot show becomes one that it can."""
    from labvoice.cli.common import show_anywhere

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show_anywhere()
    sys.stdout.write("✓ worker’s ✗ 世\n")
    sys.stdout.flush()
    assert raw.getvalue() == b"+ worker's x ?\n"


def _of_the_locale(file: Path) -> Iterator[int]:
    """Lines that read or write text in whatever encoding the user's locale has."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {*(each.arg for each in node.keywords), *map(ast.unparse, node.args)}
        programs = node.func.attr in ("run", "Popen", "check_output") and "text" in given
        texts = node.func.attr in ("read_text", "write_text")
        if (texts or programs) and given.isdisjoint(("encoding", "'utf-8'")):
            yield node.lineno


def test_no_text_depends_on_the_users_locale() -> None:
    """Files and the output of programs are text of one encoding, which the code names."""
    package = Path(labvoice.__file__).parent
    found = [
        f"{file.relative_to(package)}:{line}"
        for file in package.rglob("*.py")
        for line in _of_the_locale(file)
    ]
    assert found == []


@pytest.mark.parametrize("module", ["labvoice.agent", "labvoice.stack.gateway"])
def test_files_named_like_packages(tmp_path: Path, module: str) -> None:
    """A file of the user's in the working directory does not stand in for a package's."""
    for name in ("openai", "token", "livekit", "queue", "labvoice"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_child_looks_for_modules_in_the_working_directory() -> None:
    """Every Python that labvoice starts with `-m` is told `-P`."""
    package = Path(labvoice.__file__).parent
    words = [
        (file.name, before)
        for file in package.rglob("*.py")
        for before in file.read_text(encoding="utf-8").split('"-m"')[:-1]
    ]
    assert len(words) > 5
    assert [name for name, before in words if '"-P"' not in before[-80:]] == []


def test_the_doctors_signs_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a log cannot hold ✓, ✗ and –, the doctor's lines are written all the same."""
    from labvoice.cli.common import show_anywhere, tell
    from labvoice.health.doctor import Check

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show_anywhere()
    for ok in (True, False, None):
        tell(str(Check("worker", ok, "says so")))
    sys.stdout.flush()
    signs = [line.split()[0] for line in raw.getvalue().decode("ascii").splitlines() if line]
    assert signs == ["+", "x", "-"]


@pytest.mark.usefixtures("dead_server")
async def test_a_second_lab_of_a_kernel_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A notebook's cell that is run again hears, before it waits, how to stop the lab before."""
    first, second = (
        Lab(llm="paced", letta=False, workers=0, model=False, data_dir=tmp_path) for _ in range(2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await first.start()
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    with pytest.warns(UserWarning, match="Lab.stop_all"):
        await second.start()
    await Lab.stop_all()
    assert not first.running
    assert not second.running
