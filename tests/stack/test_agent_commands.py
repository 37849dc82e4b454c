"""An agent that is not labvoice's, in every command that takes one; nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from livekit import api

from labvoice.errors import UsageError
from labvoice.lab import Lab
from labvoice.runs.run import Run
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.test_cli import labvoice
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


def started_in(folder: Path) -> list[psutil.Process]:
    """Returns processes whose state is kept there."""
    found = []
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("LABVOICE_DATA_DIR") == str(folder):
            found.append(process)
    return found


@pytest.mark.parametrize("name", ["shop-elsewhere", ""])
async def test_an_agent_elsewhere_is_called_and_nothing_is_left_there(
    lab: Lab, tmp_path: Path, name: str
) -> None:
    """By its name, or dispatched by the server to all rooms; no process and no room stays."""
    here = await lab.add_target(Target.program(SHOP, env={"AGENT_NAME": name}), apart=True)
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


async def test_two_agents_of_one_name_are_told_apart(lab: Lab, shop: TargetAgent) -> None:
    """The second is stopped with one error that names both; the first goes on."""
    before = len(psutil.Process().children(recursive=True))
    with pytest.raises(UsageError, match="two agents are registered as 'shop'") as refused:
        await lab.add_target(Target.program(SHOP))
    assert "--arm" in refused.value.hint
    assert len(psutil.Process().children(recursive=True)) <= before
    async with lab.call(agent_name=shop) as call:
        assert "bakery" in await call.hear_greeting()


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
