"""The rules of turns, by the table that `js/tests/turn_rules.test.ts` runs too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labvoice.caller.turns import Item, Turns

_CASES = json.loads((Path(__file__).parents[1] / "turn_rules.json").read_text(encoding="utf-8"))


def _feed(turns: Turns, name: str, *given: Any) -> None:
    if name == "user_starts":
        turns.begin("")
    elif name == "user_ends":
        turns.spoken(turns.all[-1], *given)
    elif name in ("user", "assistant", "cut_off"):
        message_id, text, *told = given  # figures, and when it was spoken
        role = "user" if name == "user" else "assistant"
        turns.item(Item(message_id, role, text, name == "cut_off", *told))
    else:
        getattr(turns, name)(*given)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["name"])
def test_a_sequence_of_events_makes_its_turns(case: dict[str, Any]) -> None:
    """The same events make the same turns here and in the browser."""
    turns = Turns()
    for event in case["events"]:
        _feed(turns, *event)
    assert turns.greeting == case["greeting"]
    assert len(turns.all) == len(case["turns"])
    for turn, expected in zip(turns.all, case["turns"], strict=True):
        assert {name: getattr(turn, name) for name in expected} == expected
        assert turn.voice_to_voice_s is None or turn.voice_to_voice_s >= 0
