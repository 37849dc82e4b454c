"""The offset between the agent's wall clock and the caller's monotonic clock."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from livekit import rtc

from labvoice.protocol.vocabulary import RPC_CLOCK, Mark

_ROUNDS = 5


@dataclass(frozen=True)
class ClockOffset:
    """Offset from the agent's wall clock to the caller's clock.

    Attributes:
        offset_s: To subtract from the agent's wall time, in seconds.
        uncertainty_s: Half the shortest round trip: the true offset lies within plus or minus.
    """

    offset_s: float
    uncertainty_s: float

    def to_caller(self, name: str, agent_wall_s: float) -> Mark:
        """Returns an agent's instant as a mark on the caller's monotonic clock."""
        return Mark(name, agent_wall_s - self.offset_s, "worker", self.uncertainty_s)


async def measure_offset(room: rtc.Room, agent_identity: str) -> ClockOffset:
    """Measures the offset over the room; the shortest of several round trips counts.

    Raises:
        rtc.RpcError: The agent does not answer.
    """
    best: ClockOffset | None = None
    for _ in range(_ROUNDS):
        asked_s = time.monotonic()
        answer = await room.local_participant.perform_rpc(
            destination_identity=agent_identity, method=RPC_CLOCK, payload="", response_timeout=5.0
        )
        answered_s = time.monotonic()
        half = (answered_s - asked_s) / 2
        if best is None or half < best.uncertainty_s:
            best = ClockOffset(json.loads(answer)["wall_s"] - (asked_s + half), half)
    assert best is not None
    return best
