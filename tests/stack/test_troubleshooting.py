"""Every entry of docs/troubleshooting.md but the browser's is caused here, in its own words."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from livekit import api
from livekit.protocol.models import ParticipantInfo
from pydantic import SecretStr

from labvoice.dispatch import Dispatcher
from labvoice.dispatch.rooms import ATTRIBUTE_AGENT_NAME
from labvoice.errors import (
    AgentLostError,
    DispatchError,
    LabvoiceError,
    NoReplyError,
    SettingsError,
)
from labvoice.failover.replacement import Replacements
from labvoice.failover.watched import Watched
from labvoice.health.doctor import Check, examine, to_json
from labvoice.lab import Lab
from labvoice.protocol.metadata import JobMetadata
from labvoice.settings import load_settings
from labvoice.stack.processes import free_port
from labvoice.stack.workers.events import EventLog
from tests.serving import serving
from tests.stack.conftest import delete_rooms
from tests.stack.fake_deepgram import KEY, FakeDeepgram
from tests.stack.talking import PATIENCE_S
from tests.stack.test_cli import server_of
from tests.stack.test_dispatch import agents_in
from tests.stack.test_exactly_one import dispatcher_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
OURS, _, _ = DOCUMENT.read_text(encoding="utf-8").partition("## In the browser")
"""`js/tests/troubles.test.ts` causes the rest."""
ENTRIES = re.findall(r"^> (.+)$", OURS, re.MULTILINE)


def assert_documented(words: str, entry: str) -> None:
    """The words that were printed hold the entry's, and the entry is in the document."""
    assert entry in words
    assert entry in ENTRIES


@pytest.fixture(scope="module")
async def bare() -> AsyncIterator[Lab]:
    """A lab without any worker."""
    async with Lab(llm="paced", workers=0, letta=False) as lab:
        yield lab


@pytest.fixture(scope="module")
async def faulty() -> AsyncIterator[Lab]:
    """A lab to which the tests add faulty workers."""
    async with Lab(llm="paced", workers=0, letta=False) as lab:
        yield lab


@pytest.fixture(scope="module")
async def named(faulty: Lab) -> Lab:
    """The same, with a worker that may run one job."""
    await faulty.add_workers(agent_name="named-agent", program="labvoice.agent.noop", max_jobs=1)
    return faulty


async def failure(lab: Lab, agent_name: str, room: str, timeout_s: float = 4.0) -> DispatchError:
    with pytest.raises(DispatchError) as caught:
        await lab.dispatcher.dispatch(room, agent_name, timeout_s=timeout_s)
    assert caught.value.hint
    return caught.value


@pytest.mark.smoke
def test_every_entry_is_caused_by_a_test() -> None:
    """The document has no entry that nothing here, or in the files beside, produces."""
    files = (
        Path(__file__),
        Path(__file__).with_name("test_media_blocked.py"),
        Path(__file__).with_name("test_container.py"),
        Path(__file__).with_name("test_strategies.py"),
        Path(__file__).parents[1] / "unit" / "test_media_blocked.py",
    )
    tests = "".join(file.read_text(encoding="utf-8") for file in files)
    caused = re.findall(r'"([^"]+)",?\s*\)  # entry', tests)
    assert sorted(set(ENTRIES)) == sorted(set(caused))


async def test_nobody_is_there(bare: Lab) -> None:
    """Without a worker."""
    error = await failure(bare, "some-agent", "nobody", timeout_s=1)
    assert error.outcome == "no_worker"
    assert_documented(error.observed, "no worker is registered")  # entry


async def test_nobody_is_known_to_be_there(bare: Lab) -> None:
    """Without a worker, and without the server's log, as with somebody else's server."""
    async with dispatcher_of(bare, evidence=bare.pool.statuses) as dispatcher:
        with pytest.raises(DispatchError) as caught:
            await dispatcher.dispatch("nobody-known", "some-agent", timeout_s=1)
    assert caught.value.outcome == "no_worker"
    assert_documented(
        caught.value.observed, "this lab has no worker, and no other one took the dispatch"
    )  # entry


async def test_another_name_is_there(named: Lab) -> None:
    """With a worker of another name, which the server's log knows, wherever it runs."""
    error = await failure(named, "named-agnet", "misnamed", timeout_s=1)
    assert error.outcome == "name_mismatch"
    assert "'named-agent'" in error.hint
    assert_documented(error.observed, "no worker is registered as")  # entry


async def test_the_request_is_refused(named: Lab) -> None:
    """With metadata that the agent does not know."""

    class Odd(JobMetadata):
        unknown: int = 1

    with pytest.raises(DispatchError) as caught:
        await named.dispatcher.dispatch("odd", "named-agent", metadata=Odd(), timeout_s=4)
    assert caught.value.outcome == "rejected"
    assert "unknown" in caught.value.observed
    assert_documented(
        caught.value.observed, "the worker's request handler refused the job"
    )  # entry


async def test_the_worker_is_full(named: Lab) -> None:
    """With a worker that may run one job, and runs it."""
    await named.dispatcher.dispatch("first", "named-agent")
    error = await failure(named, "named-agent", "second")
    assert error.outcome == "worker_full"
    assert_documented(error.observed, "is full")  # entry
    await delete_rooms(named)
    async with asyncio.timeout(PATIENCE_S):
        while any(
            status.active_jobs
            for status in await named.pool.statuses()
            if status.agent_name == "named-agent"
        ):
            await asyncio.sleep(0.1)


async def test_the_entrypoint_fails(faulty: Lab) -> None:
    """With an agent that raises before it joins."""
    await faulty.add_workers(agent_name="raising-agent", program="tests.stack.faulty_agent")
    error = await failure(faulty, "raising-agent", "raising", timeout_s=10)
    assert error.outcome == "agent_lost"
    assert_documented(error.observed, "ended before the agent stayed in the room")  # entry


async def test_the_entrypoint_never_joins(faulty: Lab) -> None:
    """With an agent that takes the job and sleeps."""
    await faulty.add_workers(agent_name="sleeping-agent", program="tests.stack.faulty_agent")
    error = await failure(faulty, "sleeping-agent", "sleeping")
    assert error.outcome == "join_timeout"
    assert_documented(error.observed, "a worker took the job but")  # entry


async def test_the_process_does_not_start(faulty: Lab) -> None:
    """With weights that vanish after the worker's first process has loaded them."""
    (faulty.settings.data_dir / "weights").write_text("weights", encoding="utf-8")
    await faulty.add_workers(agent_name="broken-agent", program="tests.stack.faulty_agent")
    # The first job takes the process that is warm; the next one's cannot load any more.
    await failure(faulty, "broken-agent", "takes-the-warm-one", timeout_s=3)
    error = await failure(faulty, "broken-agent", "broken")
    assert "the weights of the voice are gone" in error.observed
    assert "last log lines" in error.observed
    assert_documented(error.observed, "could start for the job")  # entry


async def test_the_server_is_not_there() -> None:
    """With an address at which nobody listens."""
    url = f"ws://127.0.0.1:{free_port()}"
    async with Dispatcher(url, "key", SecretStr("s" * 32)) as dispatcher:
        with pytest.raises(LabvoiceError) as caught:
            await dispatcher.dispatch("room", "agent", timeout_s=2)
    assert_documented(caught.value.observed, "no LiveKit server answers at")  # entry


async def test_the_secret_is_wrong(bare: Lab) -> None:
    """With a secret that is not the server's."""
    assert bare.settings.livekit_url
    assert bare.settings.livekit_api_key
    wrong = SecretStr("wrong-secret-wrong-secret-wrong-secret")
    address = (bare.settings.livekit_url, bare.settings.livekit_api_key, wrong)
    async with Dispatcher(*address) as dispatcher:
        with pytest.raises(LabvoiceError) as caught:
            await dispatcher.dispatch("room", "agent", timeout_s=2)
    assert_documented(caught.value.observed, "refuses the key or the secret")  # entry


async def test_two_agents_of_a_name(lab: Lab) -> None:
    """With plain dispatches until there are two, taken by a worker that refuses none."""
    await lab.add_workers(agent_name="plain-agent", program="tests.stack.faulty_agent")
    request = api.CreateAgentDispatchRequest(agent_name="plain-agent", room="doubled")

    def told() -> list[str]:
        events = lab.pool.log.frame()
        mine = (events["event"] == "duplicate_agent") & (events["room"] == "doubled")
        return list(events[mine]["detail"])

    async with asyncio.timeout(90):
        while not told():
            # The server loses some of these, and says so to nobody.
            if len(await agents_in(lab, "doubled")) < 2:
                await lab.dispatcher.api.agent_dispatch.create_dispatch(request)
                await asyncio.sleep(4)
            await asyncio.sleep(0.2)
        while len(await agents_in(lab, "doubled")) != 1:
            await asyncio.sleep(0.2)
    await lab.dispatcher.end_room("doubled", "plain-agent")
    await lab.pool.scale(0, agent_name="plain-agent")
    assert_documented(told()[0], "the first one stays")  # entry


async def test_agents_that_always_die(lab: Lab) -> None:
    """With six losses in a room within a minute."""
    log = EventLog()
    replacements = Replacements(lab.dispatcher, log, lambda *_: [])
    for number in range(6):
        lost = ParticipantInfo(
            identity=f"agent-{number}", attributes={ATTRIBUTE_AGENT_NAME: f"agent-{number}"}
        )
        replacements.begin(Watched("unlucky", lost, 0.0))
    events = log.frame()
    await replacements.stop()
    (detail,) = events[events["event"] == "replacement_waits"]["detail"]
    assert_documented(detail, "agents were lost within 60 s")  # entry


async def checks_of(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, port: int = 0, **env: str
) -> dict[str, Check]:
    """Runs the doctor against a lab's server, with these settings besides."""
    for name, value in {**server_of(lab), **env}.items():
        monkeypatch.setenv(name, value)
    checks = await examine(load_settings(), port=port or free_port(), evidence=lab.pool.statuses)
    return {check.name: check for check in checks}


@pytest.mark.smoke
async def test_the_doctor_finds_a_sound_lab_sound(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every check passes, and an agent of the lab's worker joined."""
    checks = await checks_of(lab, monkeypatch, LABVOICE_LLM="paced")
    assert [str(check) for check in checks.values() if check.ok is False] == []
    assert {name for name, check in checks.items() if check.ok} == {
        *("versions", "memory", "http", "livekit", "key", "network", "media", "speech", "model"),
        *("worker", "dispatch"),
    }
    assert "LETTA_BASE_URL is not set" in checks["letta"].observed
    assert checks["microphone"].ok is None
    assert_documented(checks["microphone"].observed, "its page, does not run")  # entry
    assert "joined a scratch room" in checks["dispatch"].observed
    assert to_json(list(checks.values()))["ok"]


async def test_the_doctor_finds_what_is_missing(bare: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model, no Letta and no worker: each is one line with a hint, and the rest goes on."""
    dead = f"http://127.0.0.1:{free_port()}"
    checks = await checks_of(
        bare, monkeypatch, OPENAI_BASE_URL=dead, LABVOICE_LLM="openai", LETTA_BASE_URL=dead
    )
    assert_documented(checks["model"].observed, "no model answers at")  # entry
    assert_documented(checks["letta"].observed, "where a Letta server was expected")  # entry
    failed = {name for name, check in checks.items() if check.ok is False}
    assert failed == {"model", "letta", "worker", "dispatch"}
    assert all(checks[name].hint for name in failed)
    assert str(checks["model"]).startswith("✗ model")
    assert not to_json(list(checks.values()))["ok"]


async def test_the_doctor_tells_a_wrong_key_from_a_dead_server(
    bare: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wrong secret the server is there, the key is refused, and nothing is dispatched."""
    checks = await checks_of(bare, monkeypatch, LIVEKIT_API_SECRET="x" * 32, LABVOICE_LLM="paced")
    assert checks["livekit"].ok
    assert checks["key"].ok is False
    assert checks["dispatch"].ok is None


async def test_a_key_that_deepgram_refuses_is_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told why the agent left, and the doctor that it is the key."""
    async with FakeDeepgram(await lab.utterance("Hello.")).serving() as fake:
        name = "refused-agent"
        key = SecretStr("not-the-key")
        await lab.add_workers(
            agent_name=name, deepgram_api_key=key, deepgram_base_url=fake.base_url
        )
        async with lab.call(agent_name=name) as call:
            with pytest.raises(AgentLostError) as caught:
                await call.hear_greeting()
        assert fake.refused
        assert_documented(caught.value.observed, "the agent left the room while")  # entry
        assert "401" in caught.value.observed
        assert "deepgram" in caught.value.observed
        assert "not-the-key" not in str(caught.value)
        checks = await checks_of(
            lab, monkeypatch, DEEPGRAM_API_KEY="not-the-key", DEEPGRAM_BASE_URL=fake.base_url
        )
        assert checks["speech"].ok is False
        assert_documented(checks["speech"].observed, "refuses the key")  # entry
        checks = await checks_of(
            lab, monkeypatch, DEEPGRAM_API_KEY=KEY, DEEPGRAM_BASE_URL=fake.base_url
        )
        assert "takes the key" in checks["speech"].observed


async def test_a_model_that_refuses_is_quoted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call and the doctor show the endpoint's own sentence, without the key."""
    key = "sk-of-the-user"
    asked: list[dict[str, Any]] = []
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Response:
        asked.append(await request.json())
        if "max_tokens" in asked[-1] or asked[-1].get("temperature", 1) != 1:
            sentence = f"Unsupported value: 'temperature' does not support 0.5 ({key})."
            return JSONResponse({"error": {"message": sentence, "param": "temperature"}}, 400)
        delta = {"index": 0, "delta": {"role": "assistant", "content": "Fine."}}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "strict"}
        text = f"data: {json.dumps(chunk | {'choices': [delta]})}\n\ndata: [DONE]\n\n"
        return Response(text, media_type="text/event-stream")

    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    async with serving(app, port):
        await lab.add_workers(
            agent_name="strict-agent",
            llm="openai",
            openai_base_url=url,
            llm_model="strict",
            llm_temperature=0.5,
            openai_api_key=SecretStr(key),
        )
        async with lab.call(agent_name="strict-agent") as call:
            await call.hear_greeting()
            asked.clear()
            await call.say(await lab.utterance("What is the capital of France?"))
            with pytest.raises(NoReplyError) as caught:
                await call.hear(10)
        assert call.turns[0].outcome == "no_reply"
        errors = [each for each in call.session_events if each["event"] == "error"]
        assert any("temperature" in each["message"] for each in errors), errors
        assert {body["temperature"] for body in asked} == {0.5}
        assert_documented(caught.value.observed, "the model refused")  # entry
        assert "'temperature' does not support 0.5 (***)" in caught.value.observed
        assert "LABVOICE_LLM_TEMPERATURE" in caught.value.hint
        assert key not in str(caught.value)
        monkeypatch.setenv("OPENAI_API_KEY", key)
        monkeypatch.setenv("LABVOICE_LLM_MODEL", "strict")
        checks = await checks_of(lab, monkeypatch, OPENAI_BASE_URL=url)
        assert checks["model"].ok
        monkeypatch.setenv("LABVOICE_LLM_TEMPERATURE", "0.5")
        checks = await checks_of(lab, monkeypatch)
        assert not checks["model"].ok
        assert "'temperature' does not support 0.5 (***)" in checks["model"].observed
        assert "LABVOICE_LLM_TEMPERATURE" in checks["model"].hint


async def test_a_speech_engine_that_nobody_has() -> None:
    """With a name that no package registers, before anything is started."""
    with pytest.raises(SettingsError) as caught:
        await Lab(letta=False, stt="nobody's").start()
    assert_documented(caught.value.observed, "there is no engine")  # entry


async def test_the_doctor_finds_a_stranger_on_the_port_and_that_memory_is_short(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that answers nonsense where the HTTP service would, on a machine that is full."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ready\r\n")
        writer.close()

    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**29))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        checks = await checks_of(lab, monkeypatch, port=port, LABVOICE_LLM="paced")
    assert checks["http"].ok is False
    assert_documented(
        checks["http"].observed, "something that is not labvoice listens on port"
    )  # entry
    assert checks["memory"].ok is False
    assert checks["memory"].observed.startswith("only 0.5")
    assert_documented(checks["memory"].observed, "GiB of memory are free")  # entry
