"""The monitor: live state of servers, workers, rooms, dispatches and turns."""

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

from labvoice.dispatch.rooms import participants
from labvoice.errors import LabvoiceError
from labvoice.widgets.bridge import notebook_loop

if TYPE_CHECKING:
    from labvoice.lab import Lab

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_PARTS_EVERY = 5  # rounds; reading the memory of a process takes some milliseconds
_KEPT = 120
"""Points of a sparkline: two minutes."""
_SHOWN = 20
"""Number of dispatches and turns whose median is shown."""


class Watcher:
    """Reads the state of a lab once a second for all its monitors; ends with the last of them.

    Attributes:
        views: The monitors.
        seen: The last state.
    """

    def __init__(self, lab: Lab) -> None:
        self.views: set[Monitor] = set()
        self.seen: dict[str, Any] = {}
        self._lab = lab
        self._series: dict[str, deque[float | None]] = {}
        self._parts: list[dict[str, Any]] = []
        self.task = notebook_loop().create_task(self._watch(), name="labvoice-monitor")

    async def _watch(self) -> None:
        number = 0
        try:
            while self._lab.running:
                try:
                    self._show(await self.look(with_parts=number % _PARTS_EVERY == 0))
                except LabvoiceError as error:
                    self._show({**self.seen, "trouble": str(error)})
                except Exception as error:
                    if not self._lab.running:
                        break  # it was stopped meanwhile
                    logger.exception("the monitor could not read the state of the lab")
                    self._show({**self.seen, "trouble": f"{type(error).__name__}: {error}"})
                number += 1
                await asyncio.sleep(_EVERY_S)
        finally:
            self._forget()
            self._show({"running": False})

    def _forget(self) -> None:
        if _WATCHERS.get(self._lab) is self:
            del _WATCHERS[self._lab]

    def remove(self, view: Monitor) -> None:
        """Removes a monitor."""
        self.views.discard(view)
        if not self.views:
            self._forget()  # here too: a task cancelled before it starts runs no `finally`
            self.task.cancel()

    def _show(self, seen: dict[str, Any]) -> None:
        self.seen = seen
        for view in self.views:
            view.snapshot = seen

    async def look(self, *, with_parts: bool = True) -> dict[str, Any]:
        """Returns the state of the lab as the page shows it, times in seconds.

        Args:
            with_parts: Whether to read the memory of the processes.

        Raises:
            LabvoiceError: The lab was stopped, or its LiveKit server does not answer.
        """
        lab = self._lab
        if with_parts or not self._parts:
            parts = await asyncio.to_thread(lab.parts)
            self._parts = [
                {"name": p.name, "state": p.state, "address": p.address, "memory": p.memory}
                for p in parts
            ]
        statuses = await lab.pool.statuses()
        async with lab.dispatcher.server_errors():
            rooms = await self._rooms()
        history = list(lab.dispatcher.history)
        failed = [one for one in history if one.outcome != "ok"]
        took = [one.took_s for one in history[-_SHOWN:] if one.outcome == "ok"]
        heard = [
            turn.voice_to_voice_s
            for call in lab.recent_calls
            for turn in call.turns
            if turn.voice_to_voice_s is not None
        ]
        figures: dict[str, float | None] = {
            "rooms": len(rooms),
            "agents": sum(len(room["agents"]) for room in rooms),
            "load": statistics.fmean(s.load for s in statuses) if statuses else None,
            "success": (len(history) - len(failed)) / len(history) if history else None,
            "dispatch_s": statistics.median(took) if took else None,
            "voice_to_voice_s": statistics.median(heard[-_SHOWN:]) if heard else None,
            "memory_backlog": await lab.stack.memory_backlog(),
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
            "dispatches": len(history),
            "failed": len(failed),
            "last_failure": failed[-1].outcome if failed else "",
            "turns": len(heard),
            "figures": figures,
            "series": {name: list(values) for name, values in self._series.items()},
        }

    async def _rooms(self) -> list[dict[str, Any]]:
        server = self._lab.dispatcher.api
        listed = await server.room.list_rooms(api.ListRoomsRequest())
        rooms = []
        for room in listed.rooms:
            try:
                there = await participants(server, room.name)
            except api.TwirpError as error:
                if error.code == "not_found":  # it was deleted meanwhile
                    continue
                raise
            agents = [p for p in there if p.kind == ParticipantInfo.Kind.AGENT]
            rooms.append(
                {
                    "name": room.name,
                    "callers": len(there) - len(agents),
                    "agents": [p.attributes.get("lk.agent.state", "joining") for p in agents],
                }
            )
        return rooms


_WATCHERS: dict[Lab, Watcher] = {}
"""By lab, while it has monitors."""


class Monitor(anywidget.AnyWidget):
    """Shows the state of a running lab; created by `lab.monitor()`.

    All monitors of a lab share one reading a second; the page gets a message only if something has
    changed. It ends with the lab, or with :meth:`close`.

    Attributes:
        snapshot: The last state.

    Raises:
        LabvoiceError: The lab is not running.
        UsageError: There is no running event loop.
    """

    _esm = Path(__file__).parent / "static" / "monitor.js"
    snapshot = traitlets.Dict().tag(sync=True)
    _watcher: Watcher | None = None

    def __init__(self, lab: Lab) -> None:
        _ = lab.dispatcher  # raises if the lab is not running
        watcher = _WATCHERS.get(lab) or _WATCHERS.setdefault(lab, Watcher(lab))
        super().__init__(snapshot=watcher.seen)
        self._watcher = watcher
        watcher.views.add(self)

    def close(self) -> None:
        """Removes the widget; the last one of a lab ends its watcher."""
        if self._watcher is not None:
            self._watcher.remove(self)
        super().close()

    def __repr__(self) -> str:
        seen = self.snapshot
        if "rooms" not in seen:
            return (
                "<Monitor of a lab that is not running>"
                if seen.get("running") is False
                else f"<Monitor that has seen nothing yet {seen.get('trouble', '')}>"
            )
        return (
            f"<Monitor rooms={len(seen['rooms'])} workers={len(seen['workers'])} "
            f"dispatches={seen['dispatches']} failed={seen['failed']} turns={seen['turns']}>"
        )
