"""The durable list of finished turns, one SQLite file that all job processes of a worker share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

_T = TypeVar("_T")
DISK_ERRORS: Final = (sqlite3.Error, OSError)
"""Errors that every method of :class:`TurnStore` raises if the disk is full, slow or missing."""
_BUSY_TIMEOUT_S: Final = 10.0
_WAL_PAUSE_S: Final = 0.02
# A written turn is kept without its text, so that adding it again does nothing.
_REMEMBERED_S: Final = 7 * 24 * 3600.0
# How long the turn of an agent that died while Letta answered is held.
_HELD_S: Final = 120.0
MAX_REFUSALS: Final = 30
"""A turn that was refused this often is retried after the turns behind it."""
_SCHEMA: Final = """
create table if not exists turns (
    seq integer primary key autoincrement,
    turn_id text not null unique,
    agent_id text not null,
    room text not null,
    user_text text not null,
    agent_text text not null,
    put_at real not null,
    state text not null default 'waiting' check (state in ('waiting', 'written', 'lost')),
    sent integer not null default 0,
    written_at real,
    error text,
    refused integer not null default 0,
    held_until real not null default 0
);
create index if not exists turns_waiting on turns (agent_id, seq) where state = 'waiting';
create table if not exists leases (
    agent_id text primary key,
    holder text not null,
    expires_at real not null
);
"""


@dataclass(frozen=True)
class Turn:
    """A finished turn on its way to Letta.

    Attributes:
        seq: Its number in the order of all turns.
        turn_id: Its id; also the `otid` of its message in Letta.
        agent_id: The Letta agent whose memory it belongs to; its name until the id is known.
        sent: How often it was sent without a known outcome.
        refused: How often Letta refused it.
    """

    seq: int
    turn_id: str
    agent_id: str
    user_text: str
    agent_text: str
    sent: int
    refused: int


@dataclass(frozen=True)
class Counts:
    """Summary of the file.

    Attributes:
        waiting: Number of turns not yet written, of all agents.
        waiting_since: When the oldest of them ended, in wall-clock seconds.
        error: Why the first waiting turn was not written at its last attempt, if it failed.
        lost: Number of turns that cannot be written because their agent was deleted; their text is
            kept.
        lost_error: Why the last of them was lost.
    """

    waiting: int = 0
    waiting_since: float | None = None
    error: str | None = None
    lost: int = 0
    lost_error: str | None = None


class TurnStore:
    """Keeps turns on disk; safe to use from many processes.

    Args:
        path: The file; created if missing, readable by the user only.
        max_refusals: How often a turn is refused before the turns behind it go first.

    Every method runs in a thread of its own and may raise :data:`DISK_ERRORS`.
    """

    def __init__(self, path: Path, max_refusals: int = MAX_REFUSALS) -> None:
        self._path = path
        self._max_refusals = max_refusals
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labvoice-turns")
        self._connection: sqlite3.Connection | None = None

    async def put(
        self,
        agent_id: str,
        room: str,
        turn_id: str,
        user_text: str,
        agent_text: str,
        sent: int = 0,
    ) -> bool:
        """Adds a finished turn, or finishes the one that was started under this id.

        Returns:
            Whether it was new or under way; a second finished turn of one id is ignored.
        """
        statement = (
            "insert into turns (turn_id, agent_id, room, user_text, agent_text, put_at, sent) "
            "values (?, ?, ?, ?, ?, ?, ?) on conflict (turn_id) do update set "
            "agent_text = excluded.agent_text, put_at = excluded.put_at, held_until = 0 "
            "where held_until > 0 and state = 'waiting'"
        )
        values = (turn_id, agent_id, room, user_text, agent_text, time.time(), sent)
        return await self._do(lambda db: db.execute(statement, values).rowcount == 1)

    async def begin(
        self, agent_id: str, room: str, turn_id: str, user_text: str, instead_of: str | None = None
    ) -> None:
        """Records a turn before the request to Letta; it is not sent meanwhile.

        Args:
            instead_of: An abandoned turn, whose text is contained in this one.
        """

        def note(db: sqlite3.Connection) -> None:
            now = time.time()
            db.execute("begin immediate")
            with db:
                if instead_of:
                    db.execute(
                        "delete from turns where turn_id = ? and held_until > 0", (instead_of,)
                    )
                db.execute(
                    "insert or ignore into turns "
                    "(turn_id, agent_id, room, user_text, agent_text, put_at, sent, held_until) "
                    "values (?, ?, ?, ?, '', ?, 1, ?)",
                    (turn_id, agent_id, room, user_text, now, now + _HELD_S),
                )

        await self._do(note)

    async def begun(self, room: str) -> tuple[str, str] | None:
        """Returns id and user text of the turn that a lost agent left unfinished in a room."""
        query = (
            "select turn_id, user_text from turns "
            "where room = ? and state = 'waiting' and held_until > 0 order by seq desc limit 1"
        )
        row = await self._do(lambda db: db.execute(query, (room,)).fetchone())
        return (row[0], row[1]) if row else None

    async def waiting_agents(self) -> list[str]:
        """Returns the agents that have turns waiting, the longest waiting first."""
        query = (
            "select agent_id from turns where state = 'waiting' and held_until < ? "
            "group by agent_id order by min(seq)"
        )
        now = (time.time(),)
        return [row[0] for row in await self._do(lambda db: db.execute(query, now).fetchall())]

    async def rename(self, name: str, agent_id: str) -> None:
        """Moves the turns stored under an agent's name to its id."""
        statement = "update turns set agent_id = ? where agent_id = ? and state = 'waiting'"
        await self._do(lambda db: db.execute(statement, (agent_id, name)))

    async def next(self, agent_id: str) -> Turn | None:
        """Returns an agent's first waiting turn."""
        query = (
            "select seq, turn_id, agent_id, user_text, agent_text, sent, refused "
            "from turns where state = 'waiting' and agent_id = ? and held_until < ? "
            "order by refused / ?, seq limit 1"
        )
        values = (agent_id, time.time(), self._max_refusals)
        row = await self._do(lambda db: db.execute(query, values).fetchone())
        return Turn(*row) if row else None

    async def sending(self, turn: Turn) -> None:
        """Records that a turn is about to be sent."""
        await self._update("sent = sent + 1", turn)

    async def not_sent(self, turn: Turn, error: str) -> None:
        """Reverts the record: the request did not reach the server."""
        await self._update("sent = sent - 1, error = ?", turn, error)

    async def unknown(self, turn: Turn, error: str) -> None:
        """Records why the outcome of a turn is unknown."""
        await self._update("error = ?", turn, error)

    async def refused(self, turn: Turn, error: str) -> None:
        """Records that Letta refused the turn, and why."""
        await self._update("refused = refused + 1, error = ?", turn, error)

    async def written(self, turn: Turn) -> None:
        """Records that Letta has the turn, and deletes its text."""
        change = "state = 'written', written_at = ?, user_text = '', agent_text = '', error = null"
        await self._update(change, turn, time.time())

    async def lost(self, turn: Turn, error: str) -> None:
        """Records that a turn cannot be written, and why; its text is kept."""
        await self._update("state = 'lost', error = ?", turn, error)

    async def lease(self, agent_id: str, holder: str, seconds: float) -> bool:
        """Acquires or renews the lease to write to an agent; returns whether it is held."""

        def take(db: sqlite3.Connection) -> bool:
            now = time.time()
            statement = (
                "insert into leases values (?, ?, ?) on conflict (agent_id) do update set "
                "holder = excluded.holder, expires_at = excluded.expires_at "
                "where leases.holder = excluded.holder or leases.expires_at < ?"
            )
            return db.execute(statement, (agent_id, holder, now + seconds, now)).rowcount == 1

        return await self._do(take)

    async def release(self, agent_id: str, holder: str) -> None:
        """Releases the lease."""
        statement = "delete from leases where agent_id = ? and holder = ?"
        await self._do(lambda db: db.execute(statement, (agent_id, holder)))

    async def counts(self, agent_id: str | None = None) -> Counts:
        """Returns how many turns wait or are lost.

        Args:
            agent_id: Count errors and lost turns of this agent only.
        """
        query = (
            "select count(*) filter (where state = 'waiting'), "
            "min(put_at) filter (where state = 'waiting'), "
            "(select error from turns where state = 'waiting' and error is not null "
            "and agent_id = ifnull(:agent, agent_id) order by seq limit 1), "
            "count(*) filter (where state = 'lost' and agent_id = ifnull(:agent, agent_id)), "
            "(select error from turns where state = 'lost' "
            "and agent_id = ifnull(:agent, agent_id) order by seq desc limit 1) from turns"
        )
        return Counts(*await self._do(lambda db: db.execute(query, {"agent": agent_id}).fetchone()))

    async def synced(self, room: str) -> dict[str, float]:
        """Returns how long each written turn of a room waited, in seconds, by turn id."""
        query = (
            "select turn_id, written_at - put_at from turns where room = ? and state = 'written'"
        )
        return dict(await self._do(lambda db: db.execute(query, (room,)).fetchall()))

    async def close(self) -> None:
        """Closes the file."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()

    async def _update(self, change: str, turn: Turn, *values: object) -> None:
        # Only from the waiting state: a holder whose lease expired changes nothing.
        statement = f"update turns set {change} where seq = ? and state = 'waiting'"  # noqa: S608
        await self._do(lambda db: db.execute(statement, (*values, turn.seq)))

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        def run() -> _T:
            if self._connection is None:
                self._connection = _open(self._path)
            return work(self._connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Its journals take the same mode. Only ever a new file is opened here: closing one that SQLite
    # uses in this process would drop SQLite's locks (https://sqlite.org/howtocorrupt.html, 2.2).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    db = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    _use_wal(db)
    # A stored turn survives a power cut.
    db.execute("pragma synchronous = full")
    db.executescript(_SCHEMA)
    db.execute(
        "delete from turns where state = 'written' and written_at < ?",
        (time.time() - _REMEMBERED_S,),
    )
    return db


def _use_wal(db: sqlite3.Connection) -> None:
    """Enables the write-ahead log; SQLite's own timeout does not cover concurrent attempts."""
    from stamina import retry_context  # 0.1 s, and this runs in a thread

    for attempt in retry_context(
        sqlite3.OperationalError,
        None,
        _BUSY_TIMEOUT_S,
        _WAL_PAUSE_S,
        wait_jitter=0,
        wait_exp_base=1,
    ):
        with attempt:
            db.execute("pragma journal_mode = wal")
