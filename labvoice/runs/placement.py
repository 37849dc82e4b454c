"""Where a turn's stages lie in time, as far as that is known."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import pandas as pd

from labvoice.protocol.vocabulary import TRANSPORT, TURN_STAGES

_HEARD, _ANSWER = (stage.name for stage in TURN_STAGES)
_GENERATION: Final = ("playback_latency", "tts_node_ttfb", "llm_node_ttfs")
"""LiveKit's stages of a reply, each of which ends where the one before it here begins."""


class Placed(NamedTuple):
    """A stage of a turn; `start_s` is since the last voiced sample left the caller."""

    name: str
    start_s: float
    duration_s: float


def measured_stages(rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Returns the measured stages of one unit's rows: name to start and duration, in seconds.

    Figures that cannot be are left out.
    """
    rows = rows[rows["plausible"]]
    starts, durations = (rows[name].to_numpy(float) for name in ("start_s", "duration_s"))
    return {
        str(name): (float(start_s), float(duration_s))
        for name, start_s, duration_s in zip(rows["stage"], starts, durations, strict=True)
        if not math.isnan(duration_s)
    }


def place(measured: dict[str, tuple[float, float]]) -> list[Placed]:
    """Places the stages of a turn that was answered.

    LiveKit reports how long its stages took and not when they began. Where a start was not
    recorded, recognition is placed forward from the end of speech and generation backward from the
    first audio. The rest, `transport`, lies partly before the agent's time and is placed behind it,
    whole.

    Args:
        measured: As :func:`measured_stages` returns it; `voice_to_voice` is among them.
    """
    zero_s = measured[_HEARD][0]
    e2e_s = measured.get("e2e_latency", (0.0, math.nan))[1]
    end_of_turn_s = measured.get("end_of_turn_delay", (0.0, math.nan))[1]
    answer: dict[str, float] = {}
    begin_s = e2e_s
    for name in _GENERATION:
        begin_s -= measured.get(name, (0.0, 0.0))[1]
        answer[name] = begin_s
    places = {
        _HEARD: 0.0,
        _ANSWER: 0.0,
        "e2e_latency": 0.0,
        "transcription_delay": 0.0,
        "end_of_turn_delay": 0.0,
        "on_user_turn_completed_delay": end_of_turn_s,
        "llm_node_ttft": begin_s,
        **dict(reversed(answer.items())),
        TRANSPORT: e2e_s,
    }
    placed = []
    for name, start_s in places.items():
        recorded_s, duration_s = measured.get(name, (math.nan, math.nan))
        if not math.isnan(recorded_s):
            start_s = recorded_s - zero_s
        if not math.isnan(start_s + duration_s):
            placed.append(Placed(name, start_s, duration_s))
    return placed
