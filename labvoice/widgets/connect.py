"""The Connect button: a call with the agent by the user's microphone, measured as every call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets
from pydantic import BaseModel, ConfigDict, Field

from labvoice.dispatch import rooms
from labvoice.dispatch.strategies import STRATEGIES, StrategyName, ahead_lifetime_s
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import DispatchError, LabvoiceError
from labvoice.health.checks import diagnose
from labvoice.protocol.metadata import JobMetadata
from labvoice.widgets.bridge import Bridge
from labvoice.widgets.call import BrowserCall
from labvoice.widgets.record import CallRecord
from labvoice.widgets.sound import Piece

if TYPE_CHECKING:
    from labvoice.lab import Lab

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
"""Folder of the built JavaScript; its sources are in `js/`."""

_LOOKS_FOR_CALLER = 15
"""Checked once a second; a closed browser leaves its room at once, a page's request waits 20 s."""


def strategies_for(lab: Lab) -> list[dict[str, str | float]]:
    """Returns the strategies that the widget offers, with the fields of `js/src/types.ts`.

    Automatic dispatch is included only if a worker serves every room.
    """
    serves_all = any(not worker.agent_name for worker in lab.pool.workers)
    lifetime_s = ahead_lifetime_s(lab.settings.idle_timeout_s)
    return [
        {
            "name": each.name,
            "title": each.title,
            "when": each.when,
            "lifetime_s": lifetime_s,
        }
        for each in STRATEGIES.values()
        if serves_all or not each.every_room
    ]


class _Ask(BaseModel):
    model_config = ConfigDict(extra="forbid")

    room: str | None = Field(None, max_length=128)
    letta_agent_id: str | None = Field(None, max_length=128)
    strategy: StrategyName = "sequential"


class ConnectButton(anywidget.AnyWidget):
    """A call from the browser, with its real microphone.

    Made by `lab.connect_button()`; show it as the last line of a cell. Every call that is made
    with it is kept in :attr:`calls`.

    Attributes:
        calls: All calls made with this button, oldest first.

    Raises:
        LabvoiceError: The lab is not running.
        UsageError: There is no running event loop.
    """

    _esm = STATIC / "call.js"
    strategies = traitlets.List(traitlets.Dict()).tag(sync=True)
    agent_name = traitlets.Unicode().tag(sync=True)
    recording = traitlets.Unicode().tag(sync=True)

    def __init__(self, lab: Lab) -> None:
        _ = lab.dispatcher  # raises if the lab is not running
        super().__init__(
            strategies=strategies_for(lab),
            agent_name=lab.settings.agent_name,
            recording=lab.settings.recording,
        )
        self._lab = lab
        self.calls: list[BrowserCall] = []
        self._bridge = Bridge(
            {
                "token": self._token,
                "dispatch": self._dispatch,
                "agents": self._agents,
                "create_agent": self._create_agent,
                "hello": self._hello,
                "diagnose": self._diagnose,
                "record": self._record,
                "sound": self._sound,
            },
            self.send,
        )
        self.on_msg(lambda _widget, content, buffers: self._bridge.take(content, buffers))

    @property
    def call(self) -> BrowserCall:
        """The last call, running or ended.

        Raises:
            LabvoiceError: There is none yet.
        """
        if not self.calls:
            raise LabvoiceError("no call was made with this button yet", "press Connect first")
        return self.calls[-1]

    async def _token(self, arguments: dict[str, Any]) -> dict[str, Any]:
        ask = _Ask.model_validate(arguments)
        _ = self._lab.dispatcher  # raises if the lab was stopped
        settings = self._lab.settings
        url, key, secret = settings.livekit
        room = ask.room or f"browser-{secrets.token_hex(4)}"
        token = caller_token(
            key,
            secret,
            room,
            f"browser-{secrets.token_hex(4)}",
            strategy=ask.strategy,
            agent_name=settings.agent_name,
            metadata=JobMetadata(letta_agent_id=ask.letta_agent_id),
        )
        return {"token": token, "url": url, "room": room}

    async def _dispatch(self, arguments: dict[str, Any]) -> dict[str, Any]:
        received_s = time.monotonic()
        ask = _Ask.model_validate(arguments)
        name = STRATEGIES[ask.strategy].dispatched_as(self._lab.settings.agent_name)
        answer: dict[str, Any] = {"agent_name": name}
        try:
            done = await self._lab.dispatch(ask.room or "", name, letta_agent=ask.letta_agent_id)
        except DispatchError as error:
            answer |= {
                "success": False,
                "outcome": error.outcome,
                "message": error.observed,
                "hint": error.hint,
            }
        else:
            answer |= {
                "success": True,
                "outcome": "ok",
                "message": f"{name or 'an agent'} is in the room",
                "dispatch_id": done.dispatch_id,
                "marks": done.marks,
            }
        answer["clock"] = {"received_s": received_s, "answered_s": time.monotonic()}
        return answer

    async def _agents(self, _: dict[str, Any]) -> list[dict[str, Any]] | None:
        if not self._lab.has_letta:
            return None
        if not self._lab.letta_server.answers:
            return []  # it is still starting; the page asks again
        agents = await self._lab.letta.agents()
        return [
            {"id": str(agent.id), "name": str(agent.name), "description": str(agent.human)}
            for agent in agents.itertuples()
        ]

    async def _create_agent(self, _: dict[str, Any]) -> dict[str, Any]:
        name = f"voice {datetime.now():%Y-%m-%d %H-%M-%S}"
        return {"id": await self._lab.letta.create(name), "name": name, "description": ""}

    async def _hello(self, _: dict[str, Any]) -> None:
        """A page was opened: ends the calls of an earlier page that was reloaded or closed."""
        for call in [call for call in self.calls if not call.ended]:
            for _look in range(_LOOKS_FOR_CALLER):
                connecting = "room_connected" not in call.marks
                if call.ended or not (connecting or await self._caller_is_there(call.record.room)):
                    break
                await asyncio.sleep(1.0)
            else:
                continue  # it continues in another window
            if not call.ended:
                detail = call.record.detail or "The page was reloaded or closed during the call."
                call.record = call.record.model_copy(update={"ended": True, "detail": detail})
                await self._finish(call)

    async def _caller_is_there(self, room: str) -> bool:
        dispatcher = self._lab.dispatcher
        try:
            async with dispatcher.server_errors():
                there = await rooms.participants(dispatcher.api, room)
        except LabvoiceError:
            return False  # without a server there is no call
        return any(not rooms.is_agent(one) for one in there)

    async def _diagnose(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "name": check.name,
                "ok": check.ok is not False,
                "detail": check.observed,
                "hint": check.hint,
            }
            for check in await diagnose(self._lab)
        ]

    async def _record(self, arguments: dict[str, Any]) -> None:
        record = CallRecord.model_validate(arguments)
        known = next((c for c in self.calls if c.record.call_id == record.call_id), None)
        if known is None:
            known = BrowserCall(record, self._lab.settings)
            self.calls.append(known)
            self._lab.remember(known)
        elif known.ended:
            return
        known.record = record
        if record.ended:
            await self._finish(known)

    async def _sound(self, arguments: dict[str, Any]) -> None:
        piece = Piece.model_validate(arguments)
        for call in self.calls:
            if call.record.call_id == piece.call_id and not call.ended:
                call.sound.add(piece)

    async def _finish(self, call: BrowserCall) -> None:
        try:
            await asyncio.to_thread(call.save)
        finally:
            if room := call.record.room:
                # Ends the agent's job at once, not only when the room is closed.
                name = self._lab.settings.agent_name
                if known := STRATEGIES.get(call.record.strategy):
                    name = known.dispatched_as(name)
                with contextlib.suppress(LabvoiceError):
                    await self._lab.dispatcher.end_room(room, name)

    def __repr__(self) -> str:
        return f"<ConnectButton agent={self.agent_name!r} calls={len(self.calls)}>"
