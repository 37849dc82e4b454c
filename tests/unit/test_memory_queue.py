"""The durable turn queue and the memory watch, against a Letta stand-in that fails on demand."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from letta_client import AsyncLetta

from labvoice.errors import (
    LabvoiceError,
    ServerUnreachableError,
    StageTimeoutError,
    UsageError,
)
from labvoice.memory.api import LettaApi
from labvoice.memory.blocks import MemorySnapshot, load_memory, watch
from labvoice.memory.circuit import CircuitBreaker, CircuitOpenError
from labvoice.memory.client import AgentMissingError, new_client
from labvoice.memory.queue import MemoryQueue
from labvoice.memory.turn_store import TurnStore
from labvoice.stack.processes import free_port
from tests.unit.fake_letta import FakeLetta, serving

TIMEOUT_S = 60.0
A = "agent-00000000-0000-4000-8000-00000000000a"
B = "agent-00000000-0000-4000-8000-00000000000b"


@pytest.fixture
async def letta() -> AsyncIterator[FakeLetta]:
    async with serving(FakeLetta(free_port())) as fake:
        yield fake


@pytest.fixture
async def client(letta: FakeLetta) -> AsyncIterator[AsyncLetta]:
    async with new_client(letta.base_url, None) as made:
        yield made


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[TurnStore]:
    """What a queue in that folder keeps, as another process reads it."""
    stored = TurnStore(folder / "turns.sqlite")
    try:
        yield stored
    finally:
        await stored.close()


@asynccontextmanager
async def open_queue(path: Path, client: AsyncLetta, **options: Any) -> AsyncIterator[MemoryQueue]:
    breaker = CircuitBreaker(first_s=0.01, longest_s=0.1)
    queue = MemoryQueue(path / "turns.sqlite", client, breaker=breaker, **options)
    try:
        yield queue
    finally:
        await queue.close()


@pytest.fixture
def short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue gives up a request soon."""
    monkeypatch.setattr("labvoice.memory.queue.SEND_TIMEOUT_S", 0.1)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def all_written(queue: MemoryQueue) -> None:
    async def none_waits() -> bool:
        return not (await queue.store.counts()).waiting

    await until(none_waits)


async def put(queue: MemoryQueue, agent: str, *said: str) -> None:
    for words in said:
        await queue.store.put(agent, "room", f"{agent}-{words}", words, "I see.")


async def test_turns_arrive_in_order_and_each_once(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """Every agent's turns reach Letta in the order in which they were put, never two at once."""
    letta.delay_s = 0.02
    async with open_queue(tmp_path, client) as queue:
        for number in range(5):
            await put(queue, A, f"{number}")
            await put(queue, B, f"{number}")
        queue.start()
        await all_written(queue)
        assert letta.told == {agent: list("01234") for agent in (A, B)}
        assert letta.most_at_once == 1
        async with store(tmp_path) as stored:
            synced = await stored.synced("room")
        assert set(synced) == {f"{a}-{n}" for a in (A, B) for n in range(5)}
        assert all(sync_s > 0 for sync_s in synced.values())


async def test_turns_put_under_a_name_go_to_the_agent_of_that_name(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """A call that began without Letta knew only its agent's name; nothing of it is lost."""
    letta.names["Anna"] = A
    async with open_queue(tmp_path, client) as queue:
        await put(queue, "Anna", "one", "two")
        queue.start()
        await all_written(queue)
    assert letta.told == {A: ["one", "two"]}


async def test_a_turn_that_letta_has_already_is_not_sent(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """A turn of letta mode is looked for first, and sent only when its run kept nothing."""
    async with open_queue(tmp_path, client) as queue:
        for turn in ("kept", "cancelled"):
            await queue.store.put(A, "room", turn, turn, "I see.", sent=1)
        letta.has(A, "kept")
        queue.start()
        await all_written(queue)
    assert letta.told == {A: ["cancelled"]}


async def test_the_same_turn_counts_once(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """Putting a turn again does nothing, before and after it was written."""
    async with open_queue(tmp_path, client) as queue:
        assert await queue.store.put(A, "room", "t1", "hello", "hi")
        assert not await queue.store.put(A, "room", "t1", "hello", "hi")
        queue.start()
        await all_written(queue)
        assert not await queue.store.put(A, "room", "t1", "hello", "hi")
        await all_written(queue)
    assert letta.told == {A: ["hello"]}


@pytest.mark.parametrize(
    "faults",
    [
        ["500"],
        ["500-after"],
        ["garbage-after"],
        ["500", "500-after", "500", "garbage-after"],
        ["401", "500"],
        ["401-model", "404", "422"],
    ],
)
async def test_failures_lose_and_double_nothing(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path, faults: list[str]
) -> None:
    """Whether Letta stored a message before it failed or not, the turn is there once."""
    letta.faults = faults
    async with open_queue(tmp_path, client) as queue:
        queue.start()
        await put(queue, A, "one", "two", "three")
        await all_written(queue)
    assert letta.told == {A: ["one", "two", "three"]}


@pytest.mark.usefixtures("short_requests")
@pytest.mark.parametrize("fault", ["hang", "proxy-500"])
async def test_a_late_answer_is_waited_for(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path, fault: str
) -> None:
    """Letta goes on after the client gave up; the turn is not sent a second time meanwhile."""
    letta.faults = [fault]
    async with open_queue(tmp_path, client) as queue:
        await put(queue, A, "one", "two")
        queue.start()
        await all_written(queue)
    await letta.finish()
    assert letta.told == {A: ["one", "two"]}
    assert letta.requests == 2


@pytest.mark.usefixtures("short_requests")
async def test_a_look_that_fails_says_nothing_of_the_turn(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """Letta's HTTP 500 to the question for its runs does not end the one that is under way."""
    letta.faults, letta.hang_s, letta.failing_looks = ["hang"], 2.0, 1
    async with open_queue(tmp_path, client) as queue:
        queue.start()
        await put(queue, A, "one")
        await all_written(queue)
    await letta.finish()
    assert letta.failing_looks == 0
    assert letta.told == {A: ["one"]}
    assert letta.requests == 1


@pytest.mark.usefixtures("short_requests")
async def test_a_tunnel_that_is_down_says_nothing_of_lettas_runs(tmp_path: Path) -> None:
    """Behind a port where nothing listens for a while, Letta may still finish what it was told."""
    fake = FakeLetta(free_port())
    fake.hang_s = 2.0
    async with (
        new_client(fake.base_url, None) as client,
        open_queue(tmp_path, client) as queue,
    ):
        async with serving(fake):
            fake.faults = ["hang"]
            await put(queue, A, "one")
            queue.start()

            async def sent() -> bool:
                return fake.requests == 1

            await until(sent)
            await asyncio.sleep(0.2)

        async def refused() -> bool:
            return "attempts failed" in ((await queue.store.counts()).error or "")

        await until(refused)
        async with serving(fake):
            await all_written(queue)
            await fake.finish()
    assert fake.told == {A: ["one"]}


async def test_a_turn_that_is_refused_lets_others_pass(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """Refused again and again it is not lost, and those behind it are written meanwhile."""
    letta.faults = ["422", "422"]
    async with open_queue(tmp_path, client, max_refusals=2) as queue:
        await put(queue, A, "poison", "two", "three")
        queue.start()
        await all_written(queue)
        assert (await queue.store.counts()).lost == 0
    assert letta.told == {A: ["two", "three", "poison"]}


async def test_the_models_key_is_not_told_as_ours(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """A 401 that Letta passes on from its model does not send the user to LETTA_API_KEY."""
    letta.faults = ["401-model"] * 100
    async with open_queue(tmp_path, client) as queue:
        await put(queue, A, "one")
        queue.start()

        async def told() -> bool:
            return (await queue.store.counts()).error is not None

        await until(told)
        error = (await queue.store.counts()).error
    assert error is not None
    assert "the model behind the Letta server" in error
    assert "no such key" in error


async def test_a_name_is_resolved_at_once_or_handed_on(letta: FakeLetta) -> None:
    """Slow, failing or refusing, Letta delays no call; only a name that it denies is refused."""
    letta.names["Anna"] = A
    async with LettaApi(letta.base_url) as api:
        assert await api.resolve_at_once("Anna") == A
        with pytest.raises(UsageError, match="there is no Letta agent named 'Ann'"):
            await api.resolve_at_once("Ann")
        letta.list_status = 401
        assert await api.resolve_at_once("Ann") == "Ann"
        letta.list_status = 500
        assert await api.resolve_at_once("Ann") == "Ann"
        letta.list_status, letta.list_s = 200, TIMEOUT_S
        assert await api.resolve_at_once("Anna") == "Anna"
    async with LettaApi(f"http://127.0.0.1:{free_port()}") as nobody:
        assert await nobody.resolve_at_once("Anna") == "Anna"


async def test_a_server_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """With nothing listening, turns wait, visibly; they are written when the server comes."""
    fake = FakeLetta(free_port())
    async with new_client(fake.base_url, None) as client, open_queue(tmp_path, client) as queue:
        await put(queue, A, "one", "two")
        queue.start()

        async def failed() -> bool:
            return (await queue.store.counts()).error is not None

        await until(failed)
        backlog = await queue.store.counts()
        assert (backlog.waiting, backlog.lost) == (2, 0)
        assert backlog.waiting_since is not None
        assert backlog.error is not None
        assert "nothing answers" in backlog.error
        async with serving(fake):
            await all_written(queue)
    assert fake.told == {A: ["one", "two"]}


async def test_a_failing_server_is_not_hammered(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """While the circuit is open, many agents' turns lead to single attempts, not to one each."""
    letta.down = True
    breaker = CircuitBreaker(first_s=0.2, longest_s=3600.0)
    queue = MemoryQueue(tmp_path / "turns.sqlite", client, breaker=breaker)
    queue.start()
    await put(queue, A, "one")

    async def opened() -> bool:
        return letta.requests >= 3 and breaker.is_open

    await until(opened)
    before = letta.requests
    for agent in "bcdefghij":
        await put(queue, agent, "one")
    await asyncio.sleep(0.1)
    assert letta.requests <= before + 1
    await queue.close()


async def test_who_waits_for_an_attempt_that_fails_gives_up() -> None:
    """A second writer does not sit out the pause with its lease in hand."""
    breaker = CircuitBreaker(first_s=1.0, longest_s=10.0)
    begun = asyncio.Event()

    async def fail() -> None:
        async with breaker.attempt():
            begun.set()
            await asyncio.sleep(0.1)
            raise ServerUnreachableError("down")

    with pytest.raises(ServerUnreachableError):
        await fail()
    with pytest.raises(CircuitOpenError):
        await fail()
    while breaker.is_open:
        await asyncio.sleep(0.05)
    begun.clear()
    first = asyncio.create_task(fail())
    await begun.wait()
    with pytest.raises(CircuitOpenError):
        await fail()
    with pytest.raises(ServerUnreachableError):
        await first


async def test_a_deleted_agent_stops_nobody_else(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """A turn for an agent that is gone is set apart and counted; others are written."""
    letta.gone = {B}
    async with open_queue(tmp_path, client) as queue:
        await put(queue, B, "one")
        await put(queue, A, "one")
        queue.start()
        await all_written(queue)
        backlog = await queue.store.counts()
        async with store(tmp_path) as stored:
            of_a = await stored.counts(A)
    assert (backlog.waiting, backlog.lost) == (0, 1)
    assert (of_a.lost, of_a.lost_error) == (0, None)
    assert backlog.error is None
    assert backlog.lost_error is not None
    assert "404" in backlog.lost_error
    assert letta.told == {A: ["one"]}


async def test_a_restart_goes_on_where_it_was_cut_off(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """Closed in the middle of a send, the next queue on the file finishes without a double."""
    letta.faults = ["hang"]
    async with open_queue(tmp_path, client) as queue:
        await put(queue, A, "one", "two")
        queue.start()

        async def sent() -> bool:
            return letta.requests == 1

        await until(sent)
    async with open_queue(tmp_path, client) as queue:
        assert (await queue.store.counts()).waiting == 2
        queue.start()
        await all_written(queue)
    assert letta.told == {A: ["one", "two"]}


_WRITER = """
import asyncio, sys
from pathlib import Path
from labvoice.memory import queue as module
from labvoice.memory.queue import MemoryQueue
from labvoice.memory.client import new_client

async def work():
    module.LEASE_S = 1.0
    queue = MemoryQueue(Path(sys.argv[1]), new_client(sys.argv[2], None))
    await queue.store.put(sys.argv[3], "room", "first", "from the dead", "I see.")
    queue.start()
    await asyncio.sleep(3600)

asyncio.run(work())
"""


async def test_a_killed_worker_loses_nothing(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """A process killed in the middle of a send leaves a lease that expires; another goes on."""
    letta.faults = ["hang"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(tmp_path / "turns.sqlite"), letta.base_url, A
    )

    async def sent() -> bool:
        return letta.requests == 1

    await until(sent)
    process.kill()
    await process.wait()
    async with open_queue(tmp_path, client) as queue:
        queue.start()
        await put(queue, A, "from the living")
        await all_written(queue)
    assert letta.told == {A: ["from the dead", "from the living"]}


async def test_two_processes_never_write_to_one_agent_at_once(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """Two queues on one file, as in two job processes, keep order and write each turn once."""
    letta.delay_s = 0.02
    async with open_queue(tmp_path, client) as one, open_queue(tmp_path, client) as other:
        one.start()
        other.start()
        for number in range(10):
            await put(one if number % 2 else other, A, f"{number}")
        await all_written(one)
        await all_written(other)
    assert letta.told == {A: [str(number) for number in range(10)]}
    assert letta.most_at_once == 1


async def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Processes that start together on no file all get it; none is told that it is locked."""
    for number in range(20):
        stores = [TurnStore(tmp_path / f"{number}.sqlite") for _ in range(12)]
        counted = await asyncio.gather(*(store.counts() for store in stores))
        assert [counts.waiting for counts in counted] == [0] * len(stores)
        await asyncio.gather(*(store.close() for store in stores))


async def test_only_the_user_can_read_the_turns(
    letta: FakeLetta, client: AsyncLetta, tmp_path: Path
) -> None:
    """The file is closed to others, and forgets the words of a written turn."""
    async with open_queue(tmp_path, client) as queue:
        await put(queue, A, "a secret of mine")
        files = list(tmp_path.glob("turns.sqlite*"))
        assert files
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        queue.start()
        await all_written(queue)
    with contextlib.closing(sqlite3.connect(tmp_path / "turns.sqlite")) as db:
        words = db.execute("select user_text, agent_text from turns").fetchall()
    assert words == [("", "")]


async def test_memory_is_loaded_as_prompt_text(letta: FakeLetta, client: AsyncLetta) -> None:
    """Blocks come in the server's order; empty ones are left out of the text."""
    letta.blocks[A] = {"persona": "I am kind.", "human": "\nHas a dog.", "notes": ""}
    memory = await load_memory(client, A, 5.0)
    assert memory.text == "<persona>\nI am kind.\n</persona>\n\n<human>\nHas a dog.\n</human>"


async def test_memory_that_does_not_come_is_named(letta: FakeLetta, client: AsyncLetta) -> None:
    """Slow, failing and missing are three different errors."""
    letta.blocks[A] = {"human": ""}
    with pytest.raises(AgentMissingError):
        await load_memory(client, "nobody", 5.0)
    letta.delay_s = 1.0
    with pytest.raises(StageTimeoutError, match="memory_load"):
        await load_memory(client, A, 0.05)
    letta.down = True
    with pytest.raises(ServerUnreachableError, match="503"):
        await load_memory(client, A, 5.0)


async def test_a_session_takes_up_what_changed(letta: FakeLetta, client: AsyncLetta) -> None:
    """Changes are told once each; a failure and its end are told, and end nothing."""
    letta.blocks[A] = {"human": "Has a dog."}
    seen: list[MemorySnapshot] = []
    errors: list[LabvoiceError | None] = []
    following = asyncio.create_task(
        watch(client, A, seen.append, on_error=errors.append, interval_s=0.02)
    )

    async def told(count: int) -> None:
        async def enough() -> bool:
            return len(seen) + len(errors) == count

        await until(enough)

    await told(1)
    letta.blocks[A]["human"] = "Has a dog and a cat."
    await told(2)
    letta.down = True
    await told(3)
    letta.blocks[A]["human"] = "Has a cat."
    letta.down = False
    await told(5)
    following.cancel()
    await asyncio.wait([following])
    told_of = [memory.blocks["human"] for memory in seen]
    assert told_of == ["Has a dog.", "Has a dog and a cat.", "Has a cat."]
    assert isinstance(errors[0], ServerUnreachableError)
    assert errors[1:] == [None]
