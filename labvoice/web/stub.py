"""The HTTP service with nothing behind it: what its own part costs, and how it behaves alone.

`python -m labvoice.web.stub PORT LEDGER` serves; every accepted dispatch is a line of the ledger.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Final

from livekit.protocol.webhook import WebhookEvent
from pydantic import SecretStr

from labvoice.dispatch import Dispatch
from labvoice.errors import NameMismatchError
from labvoice.settings import read_settings
from labvoice.stack.workers.worker import WorkerStatus
from labvoice.web.app import create_app
from labvoice.web.backend import Counts, issue_token, verified_event
from labvoice.web.errors import HttpError, no_letta
from labvoice.web.logs import set_up_logs
from labvoice.web.models import (
    AgentsAnswer,
    Check,
    CleanAnswer,
    DispatchRequest,
    RoomFacts,
    TokenAnswer,
    TokenRequest,
)
from labvoice.web.security import Keyring
from labvoice.web.server import HttpServer, bind_port
from labvoice.web.settings import WebSettings

AGENT_NAME: Final = "stub-agent"
DISPATCH_S: Final = 0.1
"""Duration of a dispatch, about that of a warm worker, in seconds."""


class StubBackend:
    """Answers as a lab would, after a fixed time, and keeps a ledger.

    Args:
        ledger: File that gets a line for every room that an agent was put into.

    Attributes:
        agent_name: The one name that is known here.
        media_url: An address where nothing listens.
        idle_timeout_s: After so long alone, its agents would leave.
    """

    agent_name = AGENT_NAME
    media_url = "ws://127.0.0.1:9"
    idle_timeout_s = 60.0

    def __init__(self, ledger: Path | None = None) -> None:
        self.api_key = "stub"
        self.api_secret = SecretStr(secrets.token_urlsafe(32))
        self._ledger = ledger
        known = ledger.read_text(encoding="utf-8").split() if ledger and ledger.exists() else []
        self._rooms: dict[str, str] = dict(line.split("=") for line in known)

    async def dispatch(self, body: DispatchRequest, traceparent: str | None) -> Dispatch:
        """Puts an agent into the ledger, once for each room."""
        room, agent_name = body.room, body.agent_name or AGENT_NAME
        requested_s = time.monotonic()
        if body.letta_agent_id is not None:
            raise no_letta()
        await asyncio.sleep(DISPATCH_S)
        if agent_name != AGENT_NAME:
            raise NameMismatchError(f"no worker is registered as {agent_name!r}", AGENT_NAME)
        existed = room in self._rooms
        if not existed:
            self._rooms[room] = f"AD_{secrets.token_hex(6)}"
            if self._ledger:
                with self._ledger.open("a", encoding="utf-8") as file:
                    file.write(f"{room.replace(' ', '_')}={self._rooms[room]}\n")
        done_s = time.monotonic()
        return Dispatch(
            room,
            agent_name,
            self._rooms[room],
            "AJ_stub",
            "AW_stub",
            "agent-AJ_stub",
            existed,
            found=existed,
            attempts=0 if existed else 1,
            marks={"dispatch_requested": requested_s, "dispatch_acknowledged": done_s},
        )

    async def token(self, body: TokenRequest, traceparent: str | None) -> TokenAnswer:
        """Returns a real token for a server that is not there."""
        if body.letta_agent_id is not None:
            raise no_letta()
        return issue_token(body, self.api_key, self.api_secret, self.media_url, AGENT_NAME)

    async def agents(self) -> AgentsAnswer:
        """There are none."""
        return AgentsAnswer(agents=[], letta=False, reason="this is a stub")

    async def rooms(self) -> list[RoomFacts]:
        """Lists rooms without anybody in them."""
        return [
            RoomFacts(name=name, created_at_s=0, participants=[], dispatches=[])
            for name in list(self._rooms)[:100]
        ]

    async def workers(self) -> list[WorkerStatus]:
        """One idle worker."""
        return [WorkerStatus("AW_stub", AGENT_NAME, 0, 0.0)]

    async def clean(self, room: str) -> CleanAnswer:
        """Forgets a room."""
        if room not in self._rooms:
            raise HttpError(404, "no_such_room", f"there is no room {room!r}")
        return CleanAnswer(
            room=room,
            agents_removed=["agent-AJ_stub"],
            dispatches_deleted=[self._rooms.pop(room)],
            room_deleted=True,
        )

    async def delete_dispatch(self, dispatch_id: str) -> str:
        """Forgets a dispatch; returns its room."""
        for room, known in self._rooms.items():
            if known == dispatch_id:
                del self._rooms[room]
                return room
        raise HttpError(404, "no_such_dispatch", f"no room has a dispatch {dispatch_id!r}")

    async def checks(self) -> list[Check]:
        """All is well."""
        return [Check(name="stub", ok=True, message="nothing to go wrong")]

    async def diagnose(self) -> list[Check]:
        """All is well."""
        return await self.checks()

    async def counts(self) -> Counts:
        """Nothing is counted."""
        return Counts()

    def verify_webhook(self, body: str, token: str) -> WebhookEvent:
        """Verifies with the stub's own key."""
        return verified_event(body, token, self.api_key, self.api_secret)


async def serve(port: int, ledger: Path) -> None:
    """Serves until a signal comes, and answers what was accepted before it ends."""
    settings = read_settings(WebSettings)
    set_up_logs(sys.stderr, [settings.api_key])
    app = create_app(StubBackend(ledger), settings, Keyring(settings))
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with HttpServer(app, bind_port("127.0.0.1", port)):
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
