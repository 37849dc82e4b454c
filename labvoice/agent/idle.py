"""Idle timeout: an agent leaves a room without a human, whether never joined or left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from livekit import rtc


class IdleWatch:
    """Watches a connected room and reports, once, when no human was in it for the timeout.

    Args:
        on_idle: Called with the reason.
    """

    def __init__(self, room: rtc.Room, timeout_s: float, on_idle: Callable[[str], None]) -> None:
        self._room = room
        self._timeout_s = timeout_s
        self._on_idle = on_idle
        self._timer: asyncio.TimerHandle | None = None
        self._check()
        room.on("participant_connected", self._check)
        room.on("participant_disconnected", self._check)

    def _check(self, _: rtc.RemoteParticipant | None = None) -> None:
        agent = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        others = self._room.remote_participants.values()
        if any(participant.kind != agent for participant in others):
            self.close()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            words = f"nobody was in the room for {self._timeout_s:g} s"
            self._timer = loop.call_later(self._timeout_s, self._on_idle, words)

    def close(self) -> None:
        """Stops the timer until the room is empty again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
