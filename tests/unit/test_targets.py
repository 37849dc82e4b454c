"""Agents that are not labvoice's: what a user may name, and what their processes get to know."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from labvoice.errors import UsageError
from labvoice.settings import load_settings
from labvoice.targets.target import Target
from labvoice.targets.worker import target_environment


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A worker's script."""
    path = tmp_path / "agent.py"
    path.write_text("", encoding="utf-8")
    return path


def test_a_script_is_started_by_the_interpreter_of_its_own_environment(script: Path) -> None:
    """`.venv` beside the script, else this interpreter; another one where it is named."""
    assert Target.parse(str(script)).argv() == [sys.executable, str(script.resolve()), "start"]
    own = script.parent / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert Target.parse(str(script)).argv()[0] == str(own)
    named = Target.parse(str(script), python=Path(sys.executable))
    assert named.argv()[0] == sys.executable
    assert named.folder == script.parent.resolve()


def test_a_command_line_and_a_name_are_told_apart() -> None:
    """`name:` means an agent that runs already; other words are a command."""
    assert Target.parse("node agent.js start").argv() == ["node", "agent.js", "start"]
    named = Target.parse("name:my agent", metadata="x")
    assert (named.kind, named.text, named.metadata) == ("named", "my agent", "x")
    every_room = Target.parse("name:")
    assert (every_room.kind, every_room.text) == ("named", "")
    assert Target.parse("uv run agent.py").kind == "command"


def test_a_revision_is_told_from_a_path(script: Path) -> None:
    """What follows `@` is the revision, unless a script has such a name."""
    target = Target.parse(f"{script}@main~2")
    assert (target.kind, target.text, target.revision) == ("program", str(script), "main~2")
    odd = script.with_name("agent.py@home.py")
    odd.touch()
    assert Target.parse(str(odd)).revision == ""


@pytest.mark.parametrize("text", ["", "own"])
def test_nothing_means_labvoices_own_agent(text: str) -> None:
    """Its environment is its settings."""
    target = Target.parse(text, env={"LABVOICE_MIN_ENDPOINTING_DELAY_S": "0.2"})
    assert (target.kind, target.settings) == ("own", {"min_endpointing_delay_s": 0.2})
    assert target == Target.own(min_endpointing_delay_s=0.2)


def test_a_bots_command_gets_the_calls_room() -> None:
    """What is put in is one word each, whatever it holds."""
    bot = Target.parse("bot:python bot.py --url {url} --room={room} '{token}' {\"a\":1}")
    assert bot.kind == "bot"
    assert bot.bot_argv(url="ws://x", room="a room", token="t")[2:] == [
        "--url",
        "ws://x",
        "--room=a room",
        "t",
        "{a:1}",
    ]


def test_a_room_pattern_gives_each_call_a_room_of_its_own() -> None:
    """A pattern without `{id}` would put two calls into one room."""
    assert Target("named", "mine", room="support-{id}").room == "support-{id}"
    with pytest.raises(UsageError, match="the same room"):
        Target("named", "mine", room="support")


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("missing/agent.py", {}, "there is no file"),
        ('node "agent.js', {}, "cannot be read"),
        ("name:mine", {"env": {"A": "b"}}, "no environment"),
        ("name:-", {}, "cannot be used as a agent name"),
        ("bot:", {}, "empty"),
        ("bot:python bot.py {uri}", {}, r"no \{uri\}"),
        ("own", {"env": {"STT": "tiny"}}, "no setting STT"),
        ("stock", {"metadata": "x"}, "no metadata"),
        ("node agent.js", {"python": Path(sys.executable)}, "for scripts"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, more: dict[str, Any], words: str) -> None:
    """A wrong path, quote or option ends before anything is started."""
    with pytest.raises(UsageError, match=words):
        Target.parse(text, **more)


def test_a_missing_interpreter_is_told(script: Path) -> None:
    """Not as a traceback of the process that cannot be made."""
    with pytest.raises(UsageError, match="no interpreter"):
        Target.parse(str(script), python=script.parent / "python")


def test_the_worker_gets_the_labs_server_and_the_users_environment(
    monkeypatch: pytest.MonkeyPatch, script: Path
) -> None:
    """Its own keys stay its own; nothing leads it to a proxy or to the cloud's inference."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("LIVEKIT_INFERENCE_API_KEY", "of-the-cloud")
    monkeypatch.setenv("MY_KEY", "mine")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = load_settings().model_copy(
        update={
            "livekit_url": "ws://127.0.0.1:1",
            "livekit_api_key": "key",
            "livekit_api_secret": SecretStr("secret"),
        }
    )
    gateway: Any = SimpleNamespace(base_url="http://127.0.0.1:2/v1", key=SecretStr("gate"))
    target = Target.program(script, env={"STT": "base"})
    server: Any = SimpleNamespace(
        url="ws://127.0.0.1:3", api_key="its", api_secret=SecretStr("own")
    )
    environment = target_environment(target, server, settings, gateway)
    assert environment["LIVEKIT_URL"] == "ws://127.0.0.1:3"
    assert environment["LIVEKIT_API_SECRET"] == "own"
    assert environment["LIVEKIT_INFERENCE_URL"] == "http://127.0.0.1:2/v1"
    assert environment["LIVEKIT_INFERENCE_API_KEY"] == "key"
    assert environment["OPENAI_BASE_URL"] == "http://127.0.0.1:2/v1"
    assert (environment["MY_KEY"], environment["STT"]) == ("mine", "base")
    assert "HTTPS_PROXY" not in environment
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-users")
    theirs = target_environment(target, server, settings, gateway)
    assert theirs["OPENAI_API_KEY"] == "sk-of-the-users"
    assert "OPENAI_BASE_URL" not in theirs
