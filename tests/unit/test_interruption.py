"""What the agent's voice did while the caller spoke over it, from sequences of events."""

from __future__ import annotations

from typing import Any

import pytest

from labvoice.caller.ear import Voice
from labvoice.caller.interruption import check_at, interruption, reply_onset
from labvoice.caller.turns import AgentVoice, Turn
from labvoice.errors import UsageError

START_S, END_S, NOW_S = 12.0, 13.5, 30.0

# Voices as (start, end), then the user's messages that were there at the onset of each.
_CASES: list[tuple[str, list[tuple[float, float]], dict[float, int], dict[str, Any]]] = [
    (
        "it stops and answers",
        [(10.0, 12.5), (14.5, 16.0)],
        {14.5: 1},
        {"yield_latency_s": 0.5, "recovery_s": 1.0, "resumed_s": None, "overlap_s": 0.5},
    ),
    (
        "it goes on to the end and answers then",
        [(10.0, 20.0), (21.5, 23.0)],
        {21.5: 1},
        {"yield_latency_s": 8.0, "recovery_s": 8.0, "overlap_s": 1.5},
    ),
    (
        "it stops, and goes on where nothing was taken for a turn",
        [(10.0, 12.5), (14.6, 20.0)],
        {14.6: 0},
        {"yield_latency_s": 0.5, "resumed_s": 14.6, "replied_s": None},
    ),
    (
        "it stops, goes on, and answers after that",
        [(10.0, 12.5), (14.6, 18.0), (20.0, 22.0)],
        {14.6: 0, 20.0: 1},
        {"yield_latency_s": 0.5, "resumed_s": 14.6, "replied_s": 20.0},
    ),
    (
        "a pause between two sentences is no stop",
        [(10.0, 12.3), (12.9, 20.0)],
        {12.9: 0},
        {"yielded_s": 20.0, "resumed_s": None},
    ),
    (
        "an answer that comes as fast as a next sentence is an answer",
        [(10.0, 13.4), (14.0, 16.0)],
        {14.0: 1},
        {"yielded_s": 13.4, "recovery_s": 0.5},
    ),
    (
        "it stops and says nothing more",
        [(10.0, 12.5)],
        {},
        {"yield_latency_s": 0.5, "replied_s": None, "resumed_s": None},
    ),
    (
        "it had stopped before",
        [(10.0, 11.5), (14.5, 16.0)],
        {14.5: 1},
        {"over_agent": False, "yielded_s": None, "recovery_s": 1.0, "overlap_s": 0.0},
    ),
]


def _turn(messages: dict[float, int]) -> Turn:
    turn = Turn(1, "Stop.", over_agent=True)
    turn.marks = {"user_speech_start": START_S, "user_speech_end": END_S}
    turn.voices = [AgentVoice(at_s, count) for at_s, count in messages.items()]
    return turn


def _voices(spans: list[tuple[float, float]], ended: bool = True) -> list[Voice]:
    return [Voice(start_s, end_s, ended) for start_s, end_s in spans]


@pytest.mark.parametrize(
    ("spans", "messages", "expected"), [case[1:] for case in _CASES], ids=[c[0] for c in _CASES]
)
def test_voices_and_messages_tell_what_the_agent_did(
    spans: list[tuple[float, float]], messages: dict[float, int], expected: dict[str, Any]
) -> None:
    """Yield, resumption and new reply are told apart by ear and by the user's messages."""
    found = interruption(_turn(messages), _voices(spans), NOW_S)
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)


def test_a_voice_that_goes_on_has_not_yielded_yet() -> None:
    """Neither while it is heard, nor in a silence that may be a pause."""
    speaking = interruption(_turn({}), _voices([(10.0, 14.0)], ended=False), 14.1)
    pausing = interruption(_turn({}), _voices([(10.0, 14.0)]), 14.5)
    assert speaking.yielded_s is pausing.yielded_s is None
    assert speaking.over_agent


def test_without_words_the_ear_alone_decides() -> None:
    """Of an agent that tells no words, what follows the caller's last sample is the new reply."""
    voices = _voices([(10.0, 12.5), (14.5, 16.0)])
    found = interruption(_turn({14.5: 0}), voices, NOW_S, words_told=False)
    assert found.replied_s == 14.5
    assert found.resumed_s is None


def test_the_marks_are_those_that_happened() -> None:
    """A mark that did not happen is absent."""
    found = interruption(_turn({}), _voices([(10.0, 12.5)]), NOW_S)
    assert found.marks == {
        "interruption_start": START_S,
        "interruption_end": END_S,
        "agent_yielded": 12.5,
    }


def test_a_turn_that_was_not_said_has_no_interruption() -> None:
    """It is refused in words."""
    with pytest.raises(UsageError, match="not said yet"):
        interruption(Turn(0, "Hi."), [], NOW_S)


def test_a_reply_begins_where_it_was_first_heard() -> None:
    """A greeting before the first turn; a reply that is due has none; one spoken over goes on."""
    voices = _voices([(1.0, 2.0)])
    assert reply_onset([], []) is None
    assert reply_onset([], voices) == 1.0
    asked = Turn(0, "Tell me a story.")
    assert reply_onset([asked], voices) is None
    asked.marks["reply_heard"] = 5.0
    heard = [*voices, Voice(5.0, 7.0)]
    over = Turn(1, "Mm-hm.", over_agent=True)
    assert reply_onset([asked, over], heard) == 5.0
    heard[-1].ended = True
    assert reply_onset([asked, over], heard) is None


@pytest.mark.parametrize("at", [-0.1, float("nan"), float("inf")])
def test_a_time_that_cannot_be_waited_for_is_refused(at: float) -> None:
    """Nobody speaks before the onset, or never."""
    with pytest.raises(UsageError, match="no time after the onset"):
        check_at(at)
