"""The HTTP service over a real lab: real agents, real webhooks, real restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from livekit import api, rtc
from pydantic import SecretStr

from labvoice.lab import Lab
from labvoice.stack.processes import ManagedProcess, free_port
from labvoice.web.app import create_app
from labvoice.web.lab_backend import LabBackend
from labvoice.web.security import Keyring
from labvoice.web.server import HttpServer, bind_port
from labvoice.web.settings import WebSettings
from tests.stack.talking import PATIENCE_S

KEY = "stack-test-key-0123456789"
DEPLOY = Path(__file__).parents[2] / "deploy"


@asynccontextmanager
async def serving(lab: Lab) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service over a lab."""
    settings = WebSettings(api_key=SecretStr(KEY))
    app = create_app(LabBackend(lab), settings, Keyring(settings))
    async with (
        HttpServer(app, bind_port("127.0.0.1", 0)) as server,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{server.port}",
            headers={"Authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=30,
        ) as asking,
    ):
        yield asking


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    """A lab whose agents join and do nothing: a worker with models takes seconds after each job."""
    async with Lab(llm="paced", workers=0, letta=False) as running:
        await running.add_workers(program="labvoice.agent.noop")
        yield running


@pytest.fixture(scope="module")
async def client(lab: Lab) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key of a service over the lab."""
    async with serving(lab) as asking:
        yield asking


@pytest.fixture
async def room(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A room's name; the room is deleted and the worker warm again after the test."""
    name = re.sub(r"\W+", "-", f"web-{request.node.name}").strip("-")
    yield name
    with contextlib.suppress(api.TwirpError):  # cleaned away
        await lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=name))
    await lab.wait_idle()


async def people(client: httpx.AsyncClient, room: str) -> dict[str, str]:
    """Who is in a room, as the service tells: kind by identity."""
    rooms = (await client.get("/api/rooms")).json()["rooms"]
    found = [each for each in rooms if each["name"] == room]
    return {p["identity"]: p["kind"] for each in found for p in each["participants"]}


@pytest.mark.smoke
async def test_a_dispatch_over_http_puts_one_agent_in(client: httpx.AsyncClient, room: str) -> None:
    """The answer names the agent that is in the room, and asking again makes no second one."""
    first, second = [
        (await client.post("/api/dispatch-agent", json={"room": room})).json() for _ in range(2)
    ]
    assert first["success"]
    assert not first["room_existed"]
    assert second["room_existed"]
    assert second["dispatch_id"] == first["dispatch_id"]
    assert second["attempts"] == 0
    assert await people(client, room) == {first["agent_identity"]: "agent"}
    workers = (await client.get("/api/workers")).json()["workers"]
    assert first["worker_id"] in {worker["worker_id"] for worker in workers}


async def test_a_dispatch_that_nobody_takes_names_the_cause(
    client: httpx.AsyncClient, room: str
) -> None:
    """A wrong name is 404 with the right one, and an odd room 422; both are counted."""
    body = {"room": room, "agent_name": "letta-voice-agnet", "timeout_s": 1}
    answer = await client.post("/api/dispatch-agent", json=body)
    assert answer.status_code == 404
    assert answer.json()["success"] is False
    assert answer.json()["outcome"] == "name_mismatch"
    assert "letta-voice-agent" in answer.json()["error"]["hint"]
    assert (await client.post("/api/dispatch-agent", json={"room": "a/b"})).status_code == 422
    text = (await client.get("/metrics")).text
    assert re.search(r'labvoice_dispatches_total{outcome="name_mismatch"} [1-9]', text)


async def test_a_deleted_dispatch_ends_its_agent(client: httpx.AsyncClient, room: str) -> None:
    """After DELETE the agent leaves; a second DELETE finds nothing."""
    done = (await client.post("/api/dispatch-agent", json={"room": room})).json()
    answer = await client.delete(f"/api/dispatches/{done['dispatch_id']}")
    assert answer.json() == {"dispatch_id": done["dispatch_id"], "room": room}
    async with asyncio.timeout(20):
        while await people(client, room):
            await asyncio.sleep(0.1)
    assert (await client.delete(f"/api/dispatches/{done['dispatch_id']}")).status_code == 404


@pytest.mark.parametrize("how", ["delete", "clean"])
async def test_two_that_remove_the_same_are_both_answered(
    client: httpx.AsyncClient, room: str, how: str
) -> None:
    """Whoever comes second finds it gone or going; neither meets a fault, nor who lists rooms."""
    done = (await client.post("/api/dispatch-agent", json={"room": room})).json()
    if how == "delete":
        asked = [client.delete(f"/api/dispatches/{done['dispatch_id']}") for _ in range(3)]
    else:
        asked = [client.post(f"/api/rooms/{room}/clean") for _ in range(3)]
    lists = [client.get("/api/rooms") for _ in range(5)]
    answers = await asyncio.gather(*asked, *lists)
    statuses = sorted(answer.status_code for answer in answers[:3])
    assert 200 in statuses
    assert set(statuses) <= {200, 404}, [answer.text for answer in answers]
    assert [answer.status_code for answer in answers[3:]] == [200] * 5


async def test_an_identity_that_is_in_the_room_gets_no_second_token(
    client: httpx.AsyncClient, room: str
) -> None:
    """Nobody takes another's place under its name; under another one, or later, one may come."""
    body = {"room": room, "identity": "ada"}
    token = (await client.post("/api/token", json=body)).json()
    caller = rtc.Room()
    await caller.connect(token["url"], token["token"])
    try:
        refused = await client.post("/api/token", json=body)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "identity_taken"
        assert (await client.post("/api/token", json={**body, "identity": "eve"})).is_success
    finally:
        await caller.disconnect()
    async with asyncio.timeout(20):
        while not (await client.post("/api/token", json=body)).is_success:
            await asyncio.sleep(0.1)


async def test_a_letta_agent_is_refused_without_letta(client: httpx.AsyncClient) -> None:
    """A lab without Letta says so, in the answer to whoever asks for one."""
    for path in ("/api/dispatch-agent", "/api/token"):
        answer = await client.post(path, json={"room": "r", "letta_agent_id": "Rex"})
        assert answer.status_code == 422
        assert "without Letta" in answer.json()["error"]["message"]


async def test_cleaning_a_room_spares_humans(client: httpx.AsyncClient, room: str) -> None:
    """A caller with a token of ours stays; agents and dispatches go; an empty room goes too."""
    token = (await client.post("/api/token", json={"room": room, "identity": "ada"})).json()
    caller = rtc.Room()
    await caller.connect(token["url"], token["token"])
    try:
        done = (await client.post("/api/dispatch-agent", json={"room": room})).json()
        answer = (await client.post(f"/api/rooms/{room}/clean")).json()
        assert answer["agents_removed"] == [done["agent_identity"]]
        assert done["dispatch_id"] in answer["dispatches_deleted"]
        assert not answer["room_deleted"]
        assert await people(client, room) == {"ada": "standard"}
    finally:
        await caller.disconnect()
    async with asyncio.timeout(20):
        while await people(client, room):
            await asyncio.sleep(0.1)
    assert (await client.post(f"/api/rooms/{room}/clean")).json()["room_deleted"]
    assert (await client.post("/api/rooms/never-made/clean")).status_code == 404


@pytest.mark.smoke
async def test_a_token_opens_one_room_only(client: httpx.AsyncClient, room: str) -> None:
    """LiveKit itself refuses the token for another room's administration."""
    token = (await client.post("/api/token", json={"room": room, "identity": "eve"})).json()
    address = token["url"].replace("ws", "http", 1)
    async with httpx.AsyncClient(trust_env=False) as eve:
        for call, body in [
            ("ListRooms", {}),
            ("CreateRoom", {"name": "mine"}),
            ("ListParticipants", {"room": room}),
            ("RemoveParticipant", {"room": room, "identity": "ada"}),
        ]:
            answer = await eve.post(
                f"{address}/twirp/livekit.RoomService/{call}",
                json=body,
                headers={"Authorization": f"Bearer {token['token']}"},
            )
            assert answer.status_code in (401, 403), call


async def test_a_token_may_bring_its_agent(client: httpx.AsyncClient, room: str) -> None:
    """With the strategy `token` the agent comes without another request, as the caller joins."""
    body = {"room": room, "identity": "ada", "strategy": "token"}
    traced = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    token = (await client.post("/api/token", json=body, headers=traced)).json()
    claims = jwt.decode(token["token"], options={"verify_signature": False})
    (named,) = claims["roomConfig"]["agents"]
    assert json.loads(named["metadata"]) == traced  # the job's spans go on in the page's trace
    caller = rtc.Room()
    await caller.connect(token["url"], token["token"])
    try:
        async with asyncio.timeout(20):
            while sorted((await people(client, room)).values()) != ["agent", "standard"]:
                await asyncio.sleep(0.1)
        done = (await client.post("/api/dispatch-agent", json={"room": room})).json()
        assert done["success"]
        assert len(await people(client, room)) == 2
    finally:
        await caller.disconnect()


async def test_a_diagnosis_really_dispatches(lab: Lab, client: httpx.AsyncClient) -> None:
    """Its last check is an agent that joined a scratch room, which is gone afterwards."""
    checks = (await client.post("/api/diagnose")).json()["checks"]
    assert checks[-1]["name"] == "dispatch"
    assert checks[-1]["ok"], checks
    rooms = (await client.get("/api/rooms")).json()["rooms"]
    assert not [each for each in rooms if each["name"].startswith("scratch-")]
    await lab.wait_idle()


@pytest.mark.smoke
async def test_ready_says_that_all_is_well(client: httpx.AsyncClient) -> None:
    """With everything up, each dependency's check is good and in the metrics."""
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert {check["name"]: check["ok"] for check in answer.json()["checks"]} == {
        "livekit": True,
        "workers": True,
        "model": True,
    }
    text = (await client.get("/metrics")).text
    for name in ("livekit", "workers", "model"):
        assert f'labvoice_dependency_up{{dependency="{name}"}} 1.0' in text


@pytest.mark.debian
async def test_prometheus_answers_what_the_dashboard_asks(
    client: httpx.AsyncClient, room: str, tmp_path: Path
) -> None:
    """A real Prometheus with the shipped configuration has a value for each of its queries."""
    await client.post("/api/dispatch-agent", json={"room": room})
    turn = {"number": 0, "marks": {"user_speech_end": 4, "reply_heard": 5}}
    report = {"room": room, "marks": {"click": 0, "agent_listening": 1.5}, "turns": [turn]}
    assert (await client.post("/api/calls/call-0001", json=report)).is_success
    assert (await client.post("/api/dispatch-agent", json={})).is_client_error
    text = (await client.get("/metrics")).text
    checked = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout
    config = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("127.0.0.1:9000", f"127.0.0.1:{client.base_url.port}")
    (tmp_path / "prometheus.yml").write_text(config.replace("5s", "1s"), encoding="utf-8")
    (tmp_path / "labvoice.key").write_text(KEY, encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    process = await ManagedProcess.start(
        "prometheus", command, log_path=tmp_path / "prometheus.log", env=dict(os.environ)
    )
    dashboard = json.loads((DEPLOY / "grafana" / "labvoice.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    try:
        async with httpx.AsyncClient(
            base_url=f"http://{address}/api/v1", trust_env=False
        ) as asking:

            async def value(query: str) -> list[Any]:
                """The result, empty as long as there is none; a query it cannot read fails."""
                answer = await asking.get("/query", params={"query": query})
                assert answer.status_code == 200, answer.text
                found: list[Any] = answer.json()["data"]["result"]
                return found

            async def scraped() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    # Until then, while it starts, it refuses every query.
                    if (await asking.get(f"http://{address}/-/ready")).is_success:
                        return bool(
                            await value('rate(labvoice_dispatches_total{outcome="ok"}[1m])')
                        )
                return False

            await process.until_ready(scraped, timeout_s=30, hint="its log tells")
            missing = [
                query
                for query in asked
                # No webhook came here.
                if not await value(query) and "labvoice_webhooks_total" not in query
            ]
            with contextlib.suppress(TimeoutError):  # a rate needs two scrapes of its own
                async with asyncio.timeout(PATIENCE_S):
                    while missing := [query for query in missing if not await value(query)]:
                        await asyncio.sleep(0.5)
            assert missing == []
            (up,) = await value('up{job="labvoice"}')
            assert up["value"][1] == "1"
    finally:
        await process.stop()


async def test_ready_tells_the_truth_when_parts_die() -> None:
    """A lab without workers is not ready; when its LiveKit server dies, that is named too."""
    async with Lab(llm="paced", letta=False, workers=0) as lab:
        backend = LabBackend(lab)
        bad = {check.name for check in await backend.checks() if not check.ok}
        assert bad == {"workers"}
        await lab.faults.stop_livekit()
        await lab.faults.stop_model()
        bad = {check.name for check in await backend.checks() if not check.ok}
        assert bad == {"livekit", "workers", "model"}


async def test_ready_tells_that_livekit_hangs() -> None:
    """A server that is there and answers nothing is named as that, by /metrics as well."""
    async with (
        Lab(llm="paced", letta=False, workers=0, supervise=False) as lab,
        serving(lab) as web,
    ):
        hung = lab.faults.hang_livekit()
        try:
            ready = await web.get("/readyz")
            text = (await web.get("/metrics")).text
        finally:
            hung.resume()
    assert ready.status_code == 503
    assert {check["name"]: check["ok"] for check in ready.json()["checks"]}["livekit"] is False
    assert 'labvoice_dependency_up{dependency="livekit"} 0.0' in text
    assert 'labvoice_dependency_up{dependency="model"} 1.0' in text
    assert "labvoice_rooms NaN" in text


async def test_workers_are_judged_by_what_can_be_known(lab: Lab) -> None:
    """A draining worker takes no call; with a server of others, theirs are not called missing."""
    backend = LabBackend(lab)
    (worker,) = lab.pool.workers
    worker.draining = True
    try:
        checks = {check.name: check for check in await backend.checks()}
    finally:
        worker.draining = False
    assert not checks["workers"].ok
    settings = lab.settings.model_copy(update={"llm": "paced"})
    async with Lab(settings=settings, letta=False, workers=0, supervise=False) as elsewhere:
        checks = {check.name: check for check in await LabBackend(elsewhere).checks()}
    assert checks["workers"].ok
    assert "elsewhere" in checks["workers"].message


async def test_agents_without_letta(client: httpx.AsyncClient) -> None:
    """The list is empty, with the reason."""
    answer = (await client.get("/api/agents")).json()
    assert answer["agents"] == []
    assert "without Letta" in answer["reason"]
