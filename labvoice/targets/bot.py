"""A bot that joins by itself: its command is started for each call, with a token for its room."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from livekit.protocol.models import ParticipantInfo

from labvoice.concurrency import poll
from labvoice.dispatch import Dispatch, Dispatcher, rooms
from labvoice.dispatch.tokens import agent_token
from labvoice.errors import JoinTimeoutError, ProcessError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.processes import ManagedProcess
from labvoice.targets.target import Target
from labvoice.targets.worker import secrets_of

JOIN_TIMEOUT_S: Final = 60.0
"""A bot of Python loads its models after it was started, on two busy cores."""
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class Bot:
    """A bot that is started for each call.

    Attributes:
        target: The bot.
        server: The LiveKit server whose rooms it joins.
        dispatcher: Dispatcher of that server; lists the participants of a room.
        environment: The whole environment of its processes.
        state_dir: Takes the log of each process.
    """

    target: Target
    server: LiveKitServer
    dispatcher: Dispatcher
    environment: Mapping[str, str]
    state_dir: Path

    @asynccontextmanager
    async def in_room(
        self, room: str, caller: str, timeout_s: float, on_mark: Callable[[Mark], None]
    ) -> AsyncIterator[Dispatch]:
        """Starts the bot and waits until it is in the room; leaving the block stops it.

        Its participant is an agent by its token, so that a room it is alone in counts as empty.
        If it makes a token of its own, it is the first participant that is not the caller.

        Args:
            timeout_s: How long to wait for it, in seconds; 60 at the least.
            on_mark: Called with `dispatch_requested` before the start, and with
                `dispatch_acknowledged` when the process runs.

        Raises:
            UsageError: The command cannot be started.
            JoinTimeoutError: It ended or is not there in time; with its last log lines.
        """
        others = {each.identity for each in await self._there(room)} | {caller}
        identity = f"bot-{secrets.token_hex(4)}"
        token = agent_token(
            self.server.api_key,
            self.server.api_secret,
            room,
            identity,
            metadata=self.target.metadata,
        )
        marks = {"dispatch_requested": time.monotonic()}
        on_mark(Mark("dispatch_requested", marks["dispatch_requested"]))
        values = {"url": self.server.agent_url, "token": token, "room": room}
        try:
            process = await ManagedProcess.start(
                f"the bot {self.target.text}",
                self.target.bot_argv(**values),
                log_path=self.state_dir / f"{identity}.log",
                env={
                    **self.environment,
                    "LIVEKIT_TOKEN": token,
                    "LIVEKIT_ROOM_NAME": room,
                },
                cwd=self.target.folder,
                stop_step_s=2.0,
                secrets={token, *secrets_of(self.environment, self.target.folder)},
            )
        except ProcessError as error:
            raise UsageError(error.observed, "check the command and its interpreter") from None
        try:
            marks["dispatch_acknowledged"] = time.monotonic()
            on_mark(Mark("dispatch_acknowledged", marks["dispatch_acknowledged"]))
            joined = await self._joined(process, room, others, max(timeout_s, JOIN_TIMEOUT_S))
            yield Dispatch(
                room,
                "",
                dispatch_id="",
                job_id="",
                worker_id="",
                agent_identity=joined,
                room_existed=False,
                marks=marks,
            )
        finally:
            await asyncio.shield(process.stop())

    async def _there(self, room: str) -> list[ParticipantInfo]:
        async with self.dispatcher.server_errors():
            return await rooms.participants(self.dispatcher.api, room)

    async def _joined(
        self, process: ManagedProcess, room: str, others: set[str], timeout_s: float
    ) -> str:
        """Returns the bot's identity when it is in the room."""
        found = ""

        async def joined_or_ended() -> bool:
            nonlocal found
            for one in await self._there(room):
                if one.identity not in others and one.state == ParticipantInfo.State.ACTIVE:
                    found = one.identity
                    break
            return bool(found) or not process.running

        ended = await poll(joined_or_ended, timeout_s, _POLL_S)
        if not found:
            what = f"is not in room {room!r} after {timeout_s:g} s"
            if ended:
                what = f"ended with status {process.returncode} before it was in room {room!r}"
            raise JoinTimeoutError(
                f"{process.name} {what}\n\nlast log lines:\n{process.log_tail()}",
                "its command takes {url}, {token} and {room}, or LIVEKIT_URL, LIVEKIT_TOKEN and "
                "LIVEKIT_ROOM_NAME of its environment",
            )
        return found
