"""Several LiveKit servers behind one address: the balancer, their logs, and their Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from labvoice.errors import LabvoiceError, ProcessError, ServerUnreachableError, SettingsError
from labvoice.faults import Faults
from labvoice.lab import Lab
from labvoice.settings import load_settings
from labvoice.stack.livekit.balancer import Balancer
from labvoice.stack.livekit.cluster import Cluster
from labvoice.stack.livekit.log import LiveKitLog
from labvoice.stack.livekit.redis import RedisServer, find_program
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.processes import free_port
from labvoice.stack.workers.pool import Pool


@asynccontextmanager
async def says(word: bytes) -> AsyncIterator[int]:
    """A server that says a word and then what it hears; tells its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(word)
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects; returns the first byte that the server says, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            return await reader.readexactly(1), reader, writer
    except BaseException:
        writer.close()
        raise


async def test_connections_take_turns_and_pass_both_ways() -> None:
    """Each next connection goes to the next server; what is sent and answered is not changed."""
    async with says(b"a") as one, says(b"b") as two:
        balancer = Balancer([one, two])
        port = await balancer.listen()
        heard = []
        for _ in range(4):
            word, reader, writer = await ask(port)
            heard.append(word)
            sent = b"x" * 200_000
            writer.write(sent)
            async with asyncio.timeout(10):
                assert await reader.readexactly(len(sent)) == sent
            writer.close()
        assert heard == [b"a", b"b", b"a", b"b"]
        await balancer.close()


async def test_a_server_that_is_gone_is_passed_over() -> None:
    """Its own entry leads to the other one; with none left the connection just ends."""
    dead = free_port()
    async with says(b"b") as two:
        balancer = Balancer([dead, two])
        own = await balancer.listen(0)
        for _ in range(2):
            word, _, writer = await ask(own)
            assert word == b"b"
            writer.close()
        await balancer.close()
    balancer = Balancer([dead])
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await ask(await balancer.listen())
    await balancer.close()


async def test_closing_ends_open_connections() -> None:
    """A client learns at once that the balancer is gone, and its port is free."""
    async with says(b"a") as one:
        balancer = Balancer([one])
        port = await balancer.listen()
        _, reader, writer = await ask(port)
        await balancer.close()
        await balancer.close()
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


def line(at: str, message: str, **fields: str) -> str:
    """One line as the server writes it."""
    stamp = f"2026-11-22T15:54:{at}Z"
    return f"{stamp}\tINFO\tlivekit\tservice/server.go:292\t{message}\t{json.dumps(fields)}\n"


def test_the_logs_of_nodes_are_read_as_one(tmp_path: Path) -> None:
    """Workers of both are known; a restarted node forgets its own; the latest line counts."""
    one, two = tmp_path / "1.log", tmp_path / "2.log"
    assigned = {"room": "r", "agentName": "a", "jobType": "JT_ROOM"}
    one.write_text(
        line("01", "starting LiveKit server", nodeID="ND_1")
        + line("02", "worker registered", agentName="a", workerID="AW_1")
        + line("09", "assigned job to worker", jobID="AJ_2", workerID="AW_1", **assigned)
    )
    two.write_text(
        line("03", "worker registered", agentName="b", workerID="AW_2")
        + line("05", "assigned job to worker", jobID="AJ_1", workerID="AW_2", **assigned)
    )
    log = LiveKitLog(one, two)
    assert log.workers() == {"AW_1": "a", "AW_2": "b"}
    job = log.job("r", "a", 0)
    assert job is not None
    assert job.job_id == "AJ_2"
    with one.open("a") as more:
        more.write(line("10", "starting LiveKit server", nodeID="ND_3"))
    assert log.workers() == {"AW_2": "b"}
    assert LiveKitLog(one).node_id() == "ND_3"


async def test_without_a_redis_the_hint_says_where_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started; one that does not answer is named, without its password."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProcessError, match="there is none here") as caught:
        find_program()
    assert "apt-get install redis-server" in caught.value.hint
    address = f"127.0.0.1:{free_port()}"
    named = load_settings(redis_url=f"redis://:not-a-real-password@{address}/1")
    with pytest.raises(ServerUnreachableError, match=f"no Redis answers at {address}") as unreached:
        await Cluster.start_nodes(named, 2, state_dir=tmp_path)
    assert "not-a-real-password" not in str(unreached.value)
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_is_no_redis_is_told(tmp_path: Path) -> None:
    """What answers otherwise is an error in words."""
    async with says(b"HTTP/1.1 400\r\n") as port:
        with pytest.raises(ServerUnreachableError, match="it is no Redis"):
            await RedisServer(f"redis://127.0.0.1:{port}").ping()


def test_the_address_of_redis_becomes_livekits_configuration() -> None:
    """User, password, database and TLS; characters of a password may be quoted."""
    url = "rediss://user:pass%2Fword@redis.example:6380/3"
    assert RedisServer(url).livekit_config() == {
        "address": "redis.example:6380",
        "username": "user",
        "password": "pass/word",
        "db": 3,
        "use_tls": True,
    }
    assert RedisServer("redis://host").address == "host:6379"
    with pytest.raises(SettingsError, match="must be redis://"):
        load_settings(redis_url="http://host")


def test_what_a_lab_with_nodes_cannot_be() -> None:
    """No node, and the wire's relay before several, are refused; one lab has no cluster."""
    with pytest.raises(LabvoiceError, match="cannot have 0 nodes"):
        Lab(nodes=0)
    with pytest.raises(LabvoiceError, match="with `wire` cannot have 2 nodes"):
        Lab(nodes=2, wire=True)
    with pytest.raises(LabvoiceError, match="no cluster"):
        _ = Lab().cluster


async def test_nodes_of_a_server_that_runs_cannot_be_asked_for(tmp_path: Path) -> None:
    """With LIVEKIT_URL its operator decides on nodes."""
    settings = load_settings(livekit_url="ws://h", livekit_api_key="k", livekit_api_secret="s")
    with pytest.raises(LabvoiceError, match="LIVEKIT_URL names a server already"):
        await Cluster.start_nodes(settings, 2, state_dir=tmp_path)


def test_a_fault_in_a_cluster_names_its_node() -> None:
    """Which of several servers is killed is not guessed."""
    whole = LiveKitServer("ws://127.0.0.1:1", "key", SecretStr("s" * 32))
    whole.nodes = [whole, whole]
    with pytest.raises(LabvoiceError, match="this lab has 2 LiveKit servers"):
        Faults(Pool(), whole).kill_livekit()
