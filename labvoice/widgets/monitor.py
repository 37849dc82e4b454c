"""The monitor: what servers, workers, rooms, dispatches and turns do at this moment."""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets
from livekit import api
from livekit.protocol.models import ParticipantInfo

from labvoice.errors import LabvoiceError, UsageError

if TYPE_CHECKING:
    from labvoice.lab import Lab

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_PARTS_EVERY = 5  # rounds; memory of all processes costs some milliseconds each
_KEPT = 120
"""Points of a sparkline: two minutes."""
_SHOWN = 20
"""Dispatches and turns whose median is shown."""


class Monitor(anywidget.AnyWidget):
    """Shows a running lab live; made by `lab.monitor()`.

    It asks once a second and sends the page what has changed, so a notebook full of monitors
    floods nothing. It ends with the lab, or with :meth:`close`.

    Args:
        lab: The running lab.

    Raises:
        LabvoiceError: The lab is not running.
        UsageError: There is no running event loop.
    """

    _esm = Path(__file__).parent / "static" / "monitor.js"
    snapshot = traitlets.Dict().tag(sync=True)

    def __init__(self, lab: Lab) -> None:
        _ = lab.dispatcher  # refuses a lab that is not running, in words
        super().__init__()
        self._lab = lab
        self._series: dict[str, deque[float | None]] = {}
        self._parts: list[dict[str, Any]] = []
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError(
                "a widget needs the notebook's event loop",
                "make it in a cell of a notebook, where the lab was started",
            ) from None
        self._task = loop.create_task(self._watch(), name="labvoice-monitor")

    async def _watch(self) -> None:
        number = 0
        while self._lab.running:
            try:
                self.snapshot = await self.look(with_parts=number % _PARTS_EVERY == 0)
            except (LabvoiceError, api.TwirpError, OSError) as error:
                self.snapshot = {**self.snapshot, "trouble": str(error)}
            number += 1
            await asyncio.sleep(_EVERY_S)
        self.snapshot = {"running": False}

    async def look(self, *, with_parts: bool = True) -> dict[str, Any]:
        """Asks everything once; returns what the page shows, times in seconds.

        Args:
            with_parts: Whether to ask the processes for their memory too.

        Raises:
            LabvoiceError: The lab was stopped.
        """
        lab = self._lab
        if with_parts or not self._parts:
            parts = await asyncio.to_thread(lab.parts)
            self._parts = [
                {"name": p.name, "state": p.state, "address": p.address, "memory": p.memory}
                for p in parts
            ]
        statuses = await lab.pool.statuses()
        rooms = await self._rooms()
        past = list(lab.dispatcher.history)
        took = [one.took_s for one in past[-_SHOWN:] if one.outcome == "ok"]
        heard = [
            turn.voice_to_voice_s
            for call in lab.recent_calls
            for turn in call.turns
            if turn.voice_to_voice_s is not None
        ][-_SHOWN:]
        failed = [one for one in past if one.outcome != "ok"]
        figures: dict[str, float | None] = {
            "rooms": len(rooms),
            "agents": sum(len(room["agents"]) for room in rooms),
            "load": statistics.fmean(s.load for s in statuses) if statuses else None,
            "dispatch_s": statistics.median(took) if took else None,
            "voice_to_voice_s": statistics.median(heard) if heard else None,
            "memory_backlog": await lab.memory_backlog(),
        }
        for name, value in figures.items():
            self._series.setdefault(name, deque(maxlen=_KEPT)).append(value)
        return {
            "running": True,
            "parts": self._parts,
            "workers": [
                {
                    "name": status.agent_name,
                    "id": status.worker_id,
                    "jobs": status.active_jobs,
                    "load": status.load,
                }
                for status in statuses
            ],
            "silent_workers": len(lab.pool.workers) - len(statuses),
            "rooms": rooms,
            "dispatches": len(past),
            "failed": len(failed),
            "last_failure": failed[-1].outcome if failed else "",
            "turns": len(heard),
            "figures": figures,
            "series": {name: list(values) for name, values in self._series.items()},
        }

    async def _rooms(self) -> list[dict[str, Any]]:
        client = self._lab.dispatcher.api.room
        listed = await client.list_rooms(api.ListRoomsRequest())
        rooms = []
        for room in listed.rooms:
            there = await client.list_participants(api.ListParticipantsRequest(room=room.name))
            agents = [p for p in there.participants if p.kind == ParticipantInfo.Kind.AGENT]
            rooms.append(
                {
                    "name": room.name,
                    "callers": len(there.participants) - len(agents),
                    "agents": [p.attributes.get("lk.agent.state", "joining") for p in agents],
                }
            )
        return rooms

    def close(self) -> None:
        """Ends the watching and removes the widget."""
        self._task.cancel()
        super().close()

    def __repr__(self) -> str:
        seen = self.snapshot
        if not seen.get("running"):
            return "<Monitor of a lab that is not running>"
        return (
            f"<Monitor rooms={len(seen['rooms'])} workers={len(seen['workers'])} "
            f"dispatches={seen['dispatches']} failed={seen['failed']} turns={seen['turns']}>"
        )
