"""What was sent and heard in a simulated call: its player, with marks and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from labvoice.caller.recorder import SAMPLE_RATE_HZ, Recording
from labvoice.caller.turns import Turn
from labvoice.errors import LabvoiceError
from labvoice.runs.players import Caption, Player, player


def call_player(
    title: str,
    recording: Recording | None,
    marks: Mapping[str, float],
    greeting: str,
    turns: Sequence[Turn],
) -> Player:
    """Returns the player of a call, over or under way.

    Args:
        recording: Of the call; None where there is none.
        marks: Of the connection, in seconds on the caller's clock.

    Raises:
        LabvoiceError: Nothing was sent or heard yet.
    """
    if recording is None:
        raise LabvoiceError("nothing was recorded yet", "connect the call first")
    zero_s = marks.get("click", recording.start_s)
    every: list[tuple[str, int | None, float]]
    every = [(name, None, at_s - zero_s) for name, at_s in marks.items()]
    every += [
        (name, turn.number, at_s - zero_s) for turn in turns for name, at_s in turn.marks.items()
    ]
    said = (
        [Caption("agent", greeting, marks["greeting_heard"])] if "greeting_heard" in marks else []
    )
    for turn in turns:
        if "user_speech_start" in turn.marks:
            words = turn.said or turn.transcript
            said.append(Caption("caller", words, turn.marks["user_speech_start"]))
        if "reply_heard" in turn.marks:
            cut = turn.outcome == "interrupted"
            said.append(Caption("agent", turn.reply, turn.marks["reply_heard"], cut))
    return player(
        title,
        np.asarray(recording.samples / 32768, np.float32),
        SAMPLE_RATE_HZ,
        recording.encoded(".ogg"),
        ".ogg",
        recording.start_s - zero_s,
        every,
        [each._replace(at_s=each.at_s - zero_s) for each in said],
    )
