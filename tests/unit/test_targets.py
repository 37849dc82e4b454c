"""Agents that are not labvoice's: what a user may name, and what their processes get to know."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from labvoice.bench.base import RunOptions
from labvoice.cli.agents import AgentOptions
from labvoice.errors import UsageError
from labvoice.scenarios.suite import agent_of, target_near
from labvoice.settings import load_settings
from labvoice.targets.agent import TargetAgent
from labvoice.targets.config import read_config
from labvoice.targets.revision import checked_out
from labvoice.targets.target import Target
from labvoice.targets.worker import secrets_of, target_environment


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


async def test_two_ways_to_write_one_agent_are_one_worker(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative and an absolute path share it, though metadata differ; revisions do not."""
    folder = script.parent
    monkeypatch.chdir(folder.parent)
    started: list[Target] = []

    async def add_target(target: Target, *, apart: bool) -> TargetAgent:
        started.append(target)
        agent = cast("TargetAgent", Agent(target))
        lab.targets.append(agent)
        return agent

    @dataclass(frozen=True)
    class Agent:
        target: Target

    lab: Any = SimpleNamespace(targets=[], add_target=add_target)
    relative = f"{folder.name}/agent.py"
    ways = [relative, str(script), f"./{folder.name}/../{relative}"]
    targets = [target_near("agent.py", folder), *(Target.parse(way, metadata=way) for way in ways)]
    called = [await agent_of(lab, target, RunOptions()) for target in targets]
    assert started == targets[:1]
    assert [agent.target for agent in called] == targets
    await agent_of(lab, Target.parse(f"{relative}@main"), RunOptions())
    await agent_of(lab, Target.parse(relative, env={"STT": "base"}), RunOptions())
    assert len(started) == 3


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
        agent_url="ws://127.0.0.1:3", api_key="its", api_secret=SecretStr("own")
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


def git(folder: Path, *words: str) -> None:
    """Runs git in a repository of the test's own."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(script: Path) -> Path:
    """A repository whose script was committed as it is, and has changed since."""
    git(script.parent, "init", "--quiet")
    git(script.parent, "add", "agent.py")
    git(script.parent, "commit", "--quiet", "--message", "before")
    script.write_text("after = 1", encoding="utf-8")
    (script.parent / ".env").write_text("MY_API_KEY=of-the-users\n", encoding="utf-8")
    return script


async def test_a_revision_is_checked_out_and_removed(repository: Path, tmp_path: Path) -> None:
    """The script is there as it was, with the user's `.env`, and git knows no worktree after."""
    folder = tmp_path / "state" / "revision"
    async with checked_out(repository, "HEAD", folder) as old:
        assert old.read_text(encoding="utf-8") == ""
        assert (old.parent / ".env").read_text(encoding="utf-8").startswith("MY_API_KEY")
    assert not folder.exists()
    assert repository.read_text(encoding="utf-8") == "after = 1"
    assert not list((repository.parent / ".git").glob("worktrees/*"))


@pytest.mark.parametrize(
    ("revision", "name", "words"),
    [("no-such", "agent.py", "no revision 'no-such'"), ("HEAD", "other.py", "no other.py at")],
)
async def test_a_revision_that_does_not_exist_is_told(
    repository: Path, tmp_path: Path, revision: str, name: str, words: str
) -> None:
    """And one that has no such script; nothing stays checked out."""
    folder = tmp_path / "state" / "revision"
    with pytest.raises(UsageError, match=words):
        async with checked_out(repository.with_name(name), revision, folder):
            pass
    assert not folder.exists()


def test_a_log_does_not_show_what_is_named_like_a_secret(repository: Path) -> None:
    """From the environment, and from the `.env` that the agent reads by itself."""
    environment = {"DEEPGRAM_API_KEY": "dg-secret", "KEY": "1", "PATH": "/usr/bin"}
    assert secrets_of(environment, repository.parent) == {"dg-secret", "of-the-users"}


CONFIG = """
agent = "agent.py"
metadata = { customer = "Ann" }
room = "support-{id}"
greeting_timeout_s = 2.5

[arms.before]
agent = "agent.py@HEAD"
env = { STT = "base" }

[arms.fast]
settings = { min_endpointing_delay_s = 0.2 }
metadata = ""
"""


def test_the_file_names_agents_and_arms(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys at the top count for every arm that says nothing else; paths begin at the file."""
    (script.parent / "labvoice.toml").write_text(CONFIG, encoding="utf-8")
    config = read_config(script.parent / "labvoice.toml")
    assert config.agent is not None
    assert (config.agent.text, config.agent.metadata) == (str(script), '{"customer": "Ann"}')
    before = config.arms["before"]
    assert (before.revision, before.env, before.room) == ("HEAD", {"STT": "base"}, "support-{id}")
    assert config.arms["fast"].settings == {"min_endpointing_delay_s": 0.2}
    monkeypatch.chdir(tmp_path)
    assert set(AgentOptions(env=["before:STT=tiny"]).arms()) == {"before", "fast"}
    named = AgentOptions(
        arm=["before", "new=node agent.js"], env=["before:STT=tiny"], metadata="x"
    ).arms()
    assert named["before"].env == {"STT": "tiny"}
    assert named["before"].greeting_timeout_s == 2.5
    assert (named["new"].kind, named["new"].metadata) == ("command", "x")
    (own, named_here) = (
        AgentOptions(arm=["own=own", "new=node agent.js"], greeting_timeout=0.0).arms().values()
    )
    assert (own.greeting_timeout_s, named_here.greeting_timeout_s) == (8.0, 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[arms.a]\npyton = 'x'", r"labvoice\.toml: there is no key 'arms\.a\.pyton'"),
        ("agents = 'x'", r"there is no key 'agents'"),
        ("[env]\nA = 1", r"labvoice\.toml: env\.A: "),
        ("agent = ", "is no TOML"),
        ("[arms.a]\nagent = 'missing.py'", r"labvoice\.toml: arms\.a: there is no file"),
        ("agent = 'node a.js'\nsettings = {stt = 'tiny'}", "labvoice's own agent"),
        ("metadata = '@missing.json'\nagent = 'node a.js'", "missing.json cannot be read"),
    ],
)
def test_the_file_is_refused_by_name_and_key(tmp_path: Path, text: str, words: str) -> None:
    """The message names file, key and what is allowed."""
    path = tmp_path / "labvoice.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words) as refused:
        read_config(path)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"arm": ["a=node a.js"], "agent": "node a.js"}, "both --agent and --arm"),
        ({"arm": ["a=node a.js", "a=node b.js"]}, "named twice"),
        ({"arm": ["mine"]}, "names no agent"),
        ({"arm": ["a=node a.js"], "env": ["b:STT=base"]}, "no arm 'b'"),
        ({"arm": ["a=node a.js"], "env": ["STT"]}, "no KEY=VALUE"),
        ({"env": ["STT=base"]}, "no agent"),
        ({"agent": "own", "metadata": "x"}, "no agent of your own"),
        ({"agent": "own", "greeting_timeout": 1.0}, "--greeting-timeout is given, and no agent"),
    ],
)
def test_options_that_contradict_are_refused(
    given: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        AgentOptions(**given).arms()
