"""An agent that is not labvoice's, in every command that takes one; nothing is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from livekit import api

from labvoice.errors import UsageError
from labvoice.health.doctor import examine
from labvoice.lab import Lab
from labvoice.runs.run import Run
from labvoice.settings import load_settings
from labvoice.stack.processes import free_port
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.talking import LISTENS
from tests.stack.test_cli import labvoice, server_of
from tests.stack.test_web_up import up

SHOP = Path(__file__).parent / "kinds" / "shop_agent.py"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    """A supervised lab without an agent of labvoice's."""
    async with Lab(workers=0, letta=False, llm="paced") as running:
        yield running


@pytest.fixture(scope="module")
async def shop(lab: Lab) -> TargetAgent:
    """The agent, whose worker is registered at the lab's server."""
    return await lab.add_target(Target.program(SHOP))


def git(folder: Path, *words: str) -> str:
    """Runs git as somebody; returns what it printed."""
    who = ("-c", "user.name=any", "-c", "user.email=any@test.invalid")
    argv = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository in which the agent once was a mill and is a bakery now."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for words in ("mill", "bakery"):
        source = SHOP.read_text(encoding="utf-8").replace("bakery", words)
        (folder / "agent.py").write_text(source, encoding="utf-8")
        git(folder, "add", "agent.py")
        git(folder, "commit", "--quiet", "--message", words)
    return folder


def started_in(folder: Path) -> list[psutil.Process]:
    """Returns processes whose state is kept there."""
    found = []
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("LABVOICE_DATA_DIR") == str(folder):
            found.append(process)
    return found


@LISTENS
async def test_a_script_its_former_revision_and_labvoices_own_take_turns(
    repository: Path, tmp_path: Path
) -> None:
    """Three arms, one run: in a round all hear the same words, and each is what it should be."""
    (repository / "labvoice.toml").write_text('[arms.own]\nagent = "own"\n', encoding="utf-8")
    data = tmp_path / "data"
    code, output = await labvoice(
        *("bench", "turns", "--trials", "1", "--warmup", "0", "--llm", "paced"),
        *("--arm", "now=agent.py", "--arm", "before=agent.py@HEAD~1", "--arm", "own"),
        *("--no-recording", "--out", "run.jsonl", "--json", "run.json"),
        cwd=repository,
        env={"LABVOICE_DATA_DIR": str(data)},
        timeout_s=300,
    )
    assert code == 0, output
    run = Run.load(repository / "run.jsonl")
    assert run.arms == ["now", "before", "own"]
    assert {str(run.header.arms[arm]["agent"]) for arm in run.arms} == {
        "agent.py",
        "agent.py@HEAD~1",
        "own",
    }
    heard = run.marks.merge(run.outcomes[["trial", "arm"]].drop_duplicates(), on="trial")
    heard = heard[heard["mark"] == "reply_heard"]
    assert sorted(heard["arm"]) == ["before", "now", "own"], output
    turns = run.frame[run.frame["stage"] == "voice_to_voice"]
    assert turns["said"].nunique() == 1
    assert set(turns["round"]) == {0}
    notes = run.notes.merge(run.outcomes[["trial", "arm"]].drop_duplicates(), on="trial")
    greetings = notes.dropna(subset="greeting").set_index("arm")["greeting"]
    assert "bakery" in greetings["now"]
    assert "mill" in greetings["before"]
    written = json.loads((repository / "run.json").read_text(encoding="utf-8"))
    assert set(written["ratios"]) == {"before/now", "own/now"}
    assert any("deepgram/nova-3 → moonshine" in sentence for sentence in run.warnings)
    # Nothing stays: no checkout, no folder, no process.
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert list((data / "labs").iterdir()) == []
    assert started_in(data) == []


@pytest.mark.parametrize("name", ["shop", ""])
async def test_an_agent_elsewhere_is_called_and_nothing_is_left_there(
    lab: Lab, shop: TargetAgent, tmp_path: Path, name: str
) -> None:
    """By its name, or dispatched by the server to all rooms; no process and no room stays."""
    here = shop
    if not name:
        here = await lab.add_target(Target.program(SHOP, env={"AGENT_NAME": ""}), apart=True)
    assert here.name == name
    server = {
        "LIVEKIT_URL": here.server.url,
        "LIVEKIT_API_KEY": here.server.api_key,
        "LIVEKIT_API_SECRET": here.server.api_secret.get_secret_value(),
    }
    data = tmp_path / "data"
    code, output = await labvoice(
        *("bench", "connect", "--agent", f"name:{name}", "--trials", "1", "--warmup", "0"),
        *("--out", "run.jsonl"),
        cwd=tmp_path,
        env={**server, "LABVOICE_DATA_DIR": str(data)},
    )
    assert code == 0, output
    run = Run.load(tmp_path / "run.jsonl")
    frame = run.frame
    assert (frame.loc[frame["stage"] == "time_to_greeting", "duration_s"] > 0).all()
    assert set(frame["ready_by"]) == {"agent_listening"}
    assert "bakery" in run.notes["greeting"].iloc[0]
    # Its dispatches are gone with the room.
    rooms = (await here.dispatcher.api.room.list_rooms(api.ListRoomsRequest())).rooms
    assert [room.name for room in rooms] == []
    assert list((data / "labs").iterdir()) == []
    assert started_in(data) == []


@pytest.mark.parametrize(
    ("command", "arms"),
    [
        (("call", "--agent", "name:shop", "--say", "Are you open on Sunday?"), ["default"]),
        (
            (
                *("bench", "endpointing", "--arm", "a=name:shop", "--arm", "b=name:shop"),
                *("--trials", "1", "--warmup", "0"),
            ),
            ["a", "b"],
        ),
    ],
)
async def test_an_agent_elsewhere_is_spoken_to(
    shop: TargetAgent, tmp_path: Path, command: tuple[str, ...], arms: list[str]
) -> None:
    """By one call, and beside another in the bench of endpointing: each turn is answered."""
    server = {
        "LIVEKIT_URL": shop.server.url,
        "LIVEKIT_API_KEY": shop.server.api_key,
        "LIVEKIT_API_SECRET": shop.server.api_secret.get_secret_value(),
    }
    code, output = await labvoice(
        *(*command, "--no-recording", "--out", "run.jsonl"), cwd=tmp_path, env=server, timeout_s=120
    )
    assert code == 0, output
    run = Run.load(tmp_path / "run.jsonl")
    assert run.arms == arms
    turns = run.frame[run.frame["stage"] == "voice_to_voice"]
    assert set(turns["arm"]) == set(arms)
    assert (turns["duration_s"] > 0).all()


async def test_what_the_user_sends_reaches_the_agent(lab: Lab) -> None:
    """Metadata of job and room, the caller's attributes and the rooms' names are the user's own."""
    target = dataclasses.replace(
        Target.program(SHOP, env={"AGENT_NAME": "shop-told"}, metadata="From the job."),
        room="support-{id}",
        room_metadata="From the room.",
        attributes={"note": "From the caller."},
    )
    async with lab.call(agent_name=await lab.add_target(target)) as call:
        assert call.room_name.startswith("support-")
        assert await call.hear_greeting() == "From the job. From the room. From the caller."


async def test_a_burst_gives_each_room_one_agent_of_ones_own(
    lab: Lab, shop: TargetAgent, tmp_path: Path
) -> None:
    """Every room gets exactly one, and no room is left."""
    named = Target.program(SHOP, env={"AGENT_NAME": "shop-of-many"})
    run = await lab.bench.burst(
        2, 1, agent=named, arms="confirmed", warmup=0, out=tmp_path / "burst.jsonl"
    )
    assert list(run.outcomes["outcome"]) == ["ok", "ok"]
    assert run.header.config["agent"] == str(SHOP)
    rooms = (await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())).rooms
    assert not {room.name for room in rooms} & set(run.outcomes["room"])


async def test_a_killed_agent_of_ones_own_is_replaced_and_timed(lab: Lab, tmp_path: Path) -> None:
    """Its job's process is found by its connection; another agent of the same worker takes over."""
    named = Target.program(SHOP, env={"AGENT_NAME": "shop-to-kill"})
    run = await lab.bench.failover(1, kills="job", agent=named, out=tmp_path / "failover.jsonl")
    assert list(run.outcomes["outcome"]) == ["ok"], run.outcomes["detail"].tolist()
    stages = dict(zip(run.frame["stage"], run.frame["duration_s"], strict=True))
    assert stages["silence"] > stages["recovery"] > 0


@pytest.mark.parametrize(
    ("agent", "kills", "words"),
    [
        (Target.named("anybody"), "job", "no worker that this lab starts"),
        (Target.program(SHOP), "worker", "nobody starts another's again"),
    ],
)
async def test_what_cannot_be_killed_is_refused(
    lab: Lab, tmp_path: Path, agent: Target, kills: str, words: str
) -> None:
    """Before anything is started."""
    with pytest.raises(UsageError, match=words) as refused:
        await lab.bench.failover(1, kills=kills, agent=agent, out=tmp_path / "failover.jsonl")
    assert refused.value.hint
    assert not (tmp_path / "failover.jsonl").exists()


def running_scripts() -> set[int]:
    """Returns the processes that run the agent's script, without those that it starts itself."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(SHOP) in process.cmdline():
                found.add(process.pid)
    return found


async def test_two_agents_of_one_name_are_told_apart(lab: Lab, shop: TargetAgent) -> None:
    """The second is stopped with one error that names both; the first goes on."""
    before = running_scripts()
    assert before
    with pytest.raises(UsageError, match="two agents are registered as 'shop'") as refused:
        await lab.add_target(Target.program(SHOP))
    assert "--arm" in refused.value.hint
    assert running_scripts() <= before
    async with lab.call(agent_name=shop) as call:
        assert "bakery" in await call.hear_greeting()


async def test_the_doctor_has_ones_own_agent_join(
    lab: Lab, shop: TargetAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dispatches the agent that is named; no worker here has labvoice's."""
    for name, value in {**server_of(lab), "LABVOICE_LLM": "paced"}.items():
        monkeypatch.setenv(name, value)
    named = Target.named(shop.name)
    checks = await examine(load_settings(), port=free_port(), target=named)
    assert {check.name for check in checks if check.ok} >= {"livekit", "dispatch"}, checks


async def test_up_dispatches_an_agent_of_ones_own(tmp_path: Path) -> None:
    """The HTTP service puts it into a room by its name; Ctrl-C ends it with all the rest."""
    async with up(tmp_path, {}, "--agent", str(SHOP)) as running:
        async with httpx.AsyncClient(
            base_url=running.url, headers=running.headers, trust_env=False, timeout=60
        ) as client:
            done = (await client.post("/api/dispatch-agent", json={"room": "up"})).json()
            assert done["success"], done
            assert done["agent_name"] == "shop"
            token = (await client.post("/api/token", json={"room": "up"})).json()
            assert token["room"] == "up"
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert any(str(SHOP) in " ".join(child.cmdline()) for child in children)
    assert "is registered as 'shop'" in running.printed
    _, alive = psutil.wait_procs(children, 20)
    assert alive == []
